"""Optimizers by name, as dictionaries, and as copies."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest

import distopt as tf

optimizers = tf.keras.optimizers
LEGACY = ["SGD", "Adam", "Adamax", "Nadam", "Adagrad", "Adadelta", "RMSprop", "Ftrl"]


def steps(optimizer: Any, target: tf.Variable, count: int) -> bytes:
    for step in range(count):
        optimizer.apply_gradients([(tf.Tensor(np.float32([1, -2]) * (step + 1)), target)])
    return bytes(target.numpy().tobytes())


@pytest.mark.parametrize("name", LEGACY)
def test_a_name_in_any_case_and_a_dictionary_give_the_class(name: str) -> None:
    cls = getattr(optimizers, name)
    assert getattr(optimizers.legacy, name) is cls
    assert getattr(tf.optimizers, name) is cls
    for given in (name, name.lower(), name.upper(), {"class_name": name, "config": {}}):
        assert type(optimizers.get(given)) is cls


@pytest.mark.parametrize("name", LEGACY)
def test_an_optimizer_survives_json(name: str) -> None:
    optimizer = getattr(optimizers, name)(0.25, clipvalue=0.5)
    for use_legacy_format in (False, True):
        described = optimizers.serialize(optimizer, use_legacy_format=use_legacy_format)
        made = optimizers.deserialize(json.loads(json.dumps(described)))
        assert type(made) is type(optimizer)
        assert made.get_config() == optimizer.get_config()
    assert set(described or ()) == {"class_name", "config"}


def test_serialize_and_get_take_only_optimizers() -> None:
    optimizer = optimizers.SGD()
    assert optimizers.get(optimizer) is optimizer
    assert optimizers.serialize(None) is None
    described = optimizers.serialize(optimizer)
    assert described is not None
    assert described["module"] == "keras.optimizers.legacy"
    for wrong in (None, 3, "no such optimizer", {"config": {}}):
        with pytest.raises(ValueError, match="optimizer"):
            optimizers.get(wrong)
    with pytest.raises(ValueError, match="only an optimizer"):
        optimizers.serialize("sgd")  # type: ignore[arg-type]  # what is refused


def test_a_schedule_of_ones_own_needs_custom_objects() -> None:
    class Constant(optimizers.schedules.LearningRateSchedule):
        def __init__(self, rate: float) -> None:
            self.rate = rate

        def __call__(self, step: Any) -> Any:
            return np.float32(self.rate)

        def get_config(self) -> dict[str, Any]:
            return {"rate": self.rate}

    described = optimizers.serialize(optimizers.SGD(Constant(0.5)))
    assert described is not None
    made = optimizers.deserialize(copy.deepcopy(described), custom_objects={"Constant": Constant})
    assert isinstance(made.learning_rate, Constant)
    with pytest.raises(TypeError, match="Constant"):
        optimizers.deserialize(copy.deepcopy(described))


@pytest.mark.parametrize("name", LEGACY)
def test_a_deep_copy_goes_on_alone_from_the_same_state(name: str) -> None:
    target, optimizer = tf.Variable(np.ones(2, np.float32)), getattr(optimizers, name)(0.25)
    steps(optimizer, target, 2)
    twin, start = copy.deepcopy(optimizer), target.numpy()
    after = steps(optimizer, target, 2)
    kept = optimizer.get_weights()
    target.assign(start)
    twin.learning_rate = 0.25
    assert steps(twin, target, 2) == after
    for one, other in zip(kept, twin.get_weights(), strict=True):
        assert one.tobytes() == other.tobytes()
    assert [w.tobytes() for w in optimizer.get_weights()] == [w.tobytes() for w in kept]


def test_lists_of_old_keras_without_a_count_and_with_maxima_are_taken() -> None:
    target = tf.Variable(np.ones(2, np.float32))
    for make in (optimizers.Adagrad, optimizers.Adadelta, optimizers.RMSprop):
        optimizer = make()
        steps(optimizer, target, 3)
        values = [weight + 1 for weight in optimizer.get_weights()[1:]]
        optimizer.set_weights(values)
        assert int(optimizer.iterations.numpy()) == 0
        np.testing.assert_array_equal(optimizer.get_weights()[1], values[0])
    adam = optimizers.Adam()
    steps(adam, target, 1)
    count, m, v = adam.get_weights()
    adam.set_weights([count, m + 1, v + 1, np.zeros(2, np.float32)])
    np.testing.assert_array_equal(adam.get_weights()[1], m + 1)


def test_add_weight_is_state_but_not_among_the_weights() -> None:
    optimizer = optimizers.SGD(0.5)
    weight = optimizer.add_weight("scale", (2,), initializer="ones")
    assert weight.numpy().tolist() == [1.0, 1.0]
    assert weight.trainable
    assert optimizer.weights == []
    assert "scale" in optimizer.state().extras
    on_read = optimizer.add_weight("sum", (), synchronization=tf.VariableSynchronization.ON_READ)
    assert not on_read.trainable
    with pytest.raises(ValueError, match="ON_READ"):
        optimizer.add_weight("sum", (), synchronization=tf.VariableSynchronization.ON_READ, trainable=True)
    with pytest.raises(ValueError, match="no such"):
        optimizer.add_weight("sum", (), initializer="no such")


def test_add_slot_takes_names_functions_and_values() -> None:
    optimizer, target = optimizers.SGD(0.5), tf.Variable(np.zeros(2, np.float32))
    assert optimizer.add_slot(target, "a", "ones").numpy().tolist() == [1, 1]
    assert optimizer.add_slot(target, "b", lambda shape, dtype: np.full(shape, 3, dtype)).numpy().tolist() == [3, 3]
    assert optimizer.add_slot(target, "c", np.float32([5, 7])).numpy().tolist() == [5, 7]
    assert optimizer.add_slot(target, "a", "zeros").numpy().tolist() == [1, 1]
    assert optimizer.get_slot_names() == ["a", "b", "c"]
    with pytest.raises(ValueError, match="no such"):
        optimizer.add_slot(target, "d", "no such")


def test_an_assigned_learning_rate_power_of_ftrl_holds_from_the_next_step() -> None:
    def trained(change_at: int) -> bytes:
        power = -0.5 if change_at else -0.75
        optimizer, target = optimizers.Ftrl(0.5, learning_rate_power=power), tf.Variable(np.ones(2, np.float32))
        for step in range(3):
            if step == change_at:
                optimizer.learning_rate_power = -0.75
            steps(optimizer, target, 1)
        return bytes(target.numpy().tobytes())

    assert trained(3) != trained(1) != trained(0)
