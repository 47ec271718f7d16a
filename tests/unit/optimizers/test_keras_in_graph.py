"""The Keras optimizers in a graph; what they return and compute is what TensorFlow 2.21 does (``OptimizerV2``)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import distopt as tf
from distopt import deferral
from distopt.distribute import MirroredStrategy
from distopt.errors import UninitializedVariableError
from distopt.optimizers import loss_scale
from distopt.optimizers.keras_legacy import Optimizer

v1 = tf.compat.v1
optimizers = tf.keras.optimizers
CLASSES = ["SGD", "Adam", "Adamax", "Nadam", "Adagrad", "Adadelta", "RMSprop", "Ftrl"]
CLASSES += ["AdamW", "Lion", "Lamb", "Adafactor", "Muon"]


@pytest.fixture
def session() -> Iterator[Any]:
    with v1.Graph().as_default(), v1.Session() as session:
        yield session


def start(session: Any) -> None:
    session.run(v1.global_variables_initializer())


def ones() -> Any:
    return tf.constant([1.0, 1.0])


def eagerly(make: Any, num_steps: int) -> list[Any]:
    """Return weights and variables after steps down the sum of squares of a matrix."""
    w = tf.Variable(np.float32([[1, 2], [3, 4]]))
    optimizer = make()
    for _ in range(num_steps):
        optimizer.minimize(lambda: tf.reduce_sum(w * w), [w])
    return [*optimizer.get_weights(), w.numpy()]


@pytest.mark.parametrize(
    "options",
    [{}, {"weight_decay": 0.01, "use_ema": True, "ema_overwrite_frequency": 2}, {"gradient_accumulation_steps": 2}],
)
@pytest.mark.parametrize("name", CLASSES)
def test_steps_in_a_graph_have_the_bits_of_eager_steps(session: Any, name: str, options: dict[str, Any]) -> None:
    def make() -> Any:
        return getattr(optimizers, name)(learning_rate=0.1, clipnorm=3.0, **options)

    w = v1.Variable(np.float32([[1, 2], [3, 4]]))
    optimizer = make()
    step = optimizer.minimize(lambda: tf.reduce_sum(w * w), [w])
    start(session)
    for _ in range(4):
        assert session.run(step) is None
    found = [*session.run(optimizer.weights), session.run(w)]
    with deferral.build(None):
        expected = eagerly(make, 4)
    assert len(found) == len(expected)
    for own, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(own, other)


def test_get_updates_returns_one_operation_which_makes_a_step_and_counts_it(session: Any) -> None:
    w, x = v1.Variable([1.0, 2.0]), v1.placeholder(tf.float32, [2])
    optimizer = optimizers.SGD(0.1, momentum=0.9)
    loss = tf.reduce_sum(w * w * x)
    (update,) = optimizer.get_updates(loss, [w])
    assert update.type == "AssignAddVariableOp"
    named = optimizer.apply_gradients([(ones(), w)], name="mine")
    assert named.name == "mine"
    assert [v.name for v in optimizer.weights] == ["SGD/iter:0", "SGD/Variable/momentum:0"]
    assert [v.name for v in v1.global_variables()] == [
        *("Variable:0", "SGD/iter:0", "SGD/decay:0", "SGD/learning_rate:0", "SGD/momentum:0"),
        "SGD/Variable/momentum:0",
    ]
    assert [v.name for v in v1.trainable_variables()] == ["Variable:0"]
    start(session)
    assert session.run(update, {x: [1.0, 1.0]}) is None
    np.testing.assert_allclose(session.run(w), [0.8, 1.6])
    named.run()
    np.testing.assert_allclose(session.run(w), [0.52, 1.14], rtol=1e-6)
    assert session.run(optimizer.iterations) == 2


def test_gradients_in_a_graph_are_deferred_and_refused_where_there_is_none(session: Any) -> None:
    w, unused = v1.Variable([3.0]), v1.Variable([1.0])
    loss = tf.reduce_sum(w * w)
    (gradient,) = optimizers.SGD(0.1, clipvalue=1.0).get_gradients(loss, [w])
    start(session)
    assert session.run(gradient).tolist() == [6.0]
    with pytest.raises(ValueError, match="has no gradient"):
        optimizers.SGD(0.1).get_gradients(loss, [w, unused])
    with pytest.raises(ValueError, match="no variable has a gradient"):
        optimizers.SGD(0.1).apply_gradients([(None, w)])
    assert optimizers.SGD(0.1).apply_gradients([]).type == "NoOp"
    with pytest.raises(ValueError, match="tape"):
        optimizers.SGD(0.1).minimize(loss, [w])


@pytest.mark.parametrize("method", ["get_gradients", "get_updates"])
def test_methods_of_graphs_are_refused_where_things_run_eagerly(method: str) -> None:
    w = tf.Variable([1.0])
    call = getattr(optimizers.SGD(0.1), method)
    with pytest.raises(TypeError, match="in a graph"):
        call(lambda: tf.reduce_sum(w * w), [w])
    with pytest.raises(ValueError, match="use GradientTape and apply_gradients, or minimize"):
        call(tf.reduce_sum(w * w), [w])


def test_learning_rates_are_looked_at_in_each_run(session: Any) -> None:
    w, rate = v1.Variable([0.0, 0.0]), v1.placeholder(tf.float32, [])
    fed, called = optimizers.SGD(rate), optimizers.SGD(lambda: 0.25)
    decaying = optimizers.SGD(optimizers.schedules.ExponentialDecay(1.0, 1, 0.5))
    slowing, number = optimizers.SGD(0.1, decay=1.0), optimizers.SGD(0.5)
    steps = {o: o.apply_gradients([(ones(), w)]) for o in (fed, called, decaying, slowing, number)}

    def moved(optimizer: Any, feed: Any = None) -> float:
        before = session.run(w)[0]
        session.run(steps[optimizer], feed)
        return round(float(before - session.run(w)[0]), 4)

    start(session)
    assert [moved(fed, {rate: r}) for r in (0.5, 2.0)] == [0.5, 2.0]
    assert [moved(decaying) for _ in range(3)] == [1.0, 0.5, 0.25]
    assert [moved(slowing) for _ in range(2)] == [0.1, 0.05]
    assert moved(called) == 0.25
    assert moved(number) == 0.5
    number.learning_rate = 2.0
    assert session.run(number.lr) == 2.0
    assert moved(number) == 2.0


def test_weights_and_configuration_are_those_of_the_session(session: Any) -> None:
    w = v1.Variable([1.0, 2.0])
    optimizer = optimizers.Adam(0.1, clipnorm=1.0)
    step = optimizer.apply_gradients([(ones(), w)])
    with pytest.raises(UninitializedVariableError, match="iter"):
        session.run(step)
    start(session)
    session.run(step)
    count, m, v = optimizer.get_weights()
    assert count == 1
    np.testing.assert_allclose(m, [0.1 / np.sqrt(2)] * 2, rtol=1e-5)
    optimizer.set_weights([10, m, v])
    session.run(step)
    assert session.run(optimizer.iterations) == 11
    assert optimizer.get_config()["learning_rate"] == np.float32(0.1)
    assert optimizers.Adam.from_config(optimizer.get_config()).clipnorm == 1.0


def test_row_sparse_gradients_of_a_graph_touch_their_rows(session: Any) -> None:
    table = v1.Variable(np.ones((3, 2), np.float32))
    (step,) = optimizers.SGD(0.1).get_updates(tf.reduce_sum(tf.gather(table, [0, 0, 2])), [table])
    start(session)
    session.run(step)
    np.testing.assert_allclose(session.run(table), [[0.8, 0.8], [1, 1], [0.9, 0.9]])


class Halving(Optimizer):
    """Subtracts half the gradient, and keeps the last one."""

    def _create_slots(self, var_list: Any) -> None:
        for variable in var_list:
            self.add_slot(variable, "last")

    def _resource_apply_dense(self, grad: Any, var: Any, apply_state: Any = None) -> None:
        self.get_slot(var, "last").assign(grad)
        var.assign_sub(grad * 0.5)


@pytest.mark.parametrize("num_replicas", [1, 2, 5])
@pytest.mark.parametrize("make", [lambda: optimizers.SGD(0.5), Halving])
def test_replicas_that_run_a_session_sum_their_gradients(session: Any, make: Any, num_replicas: int) -> None:
    strategy = MirroredStrategy(num_replicas)
    with strategy.scope():
        w, x = v1.Variable([0.0, 0.0]), v1.placeholder(tf.float32, [2])
        optimizer = make()
    (step,) = optimizer.get_updates(tf.reduce_sum(w * x), [w])
    start(session)
    with strategy.scope(), pytest.raises(RuntimeError, match="cross-replica"):
        session.run(step, {x: [1.0, 1.0]})

    def replica() -> None:
        context = tf.distribute.get_replica_context()
        assert context is not None
        session.run(step, {x: [1.0, 1.0 + context.replica_id_in_sync_group]})

    for _ in range(2):
        strategy.run(replica)
    total = sum(range(1, num_replicas + 1))
    np.testing.assert_allclose(session.run(w), [-num_replicas, -total])
    assert session.run(optimizer.iterations) == 2


def test_optimizer_of_one_graph_is_refused_in_another(session: Any) -> None:
    optimizer = optimizers.SGD(0.1)
    optimizer.apply_gradients([(ones(), v1.Variable([1.0, 2.0]))])
    with v1.Graph().as_default(), pytest.raises(ValueError, match="an optimizer for each graph"):
        optimizer.apply_gradients([(ones(), v1.Variable([1.0, 2.0]))])


@pytest.mark.parametrize("name", ["LossScaleOptimizer", "LossScaleOptimizerV3"])
def test_dynamic_loss_scales_are_refused_in_a_graph(session: Any, name: str) -> None:
    w = v1.Variable([1.0, 2.0])
    optimizer = getattr(loss_scale, name)(optimizers.SGD(0.1))
    with pytest.raises(NotImplementedError, match="constant loss_scale_factor"):
        optimizer.minimize(lambda: tf.reduce_sum(w), [w])
    with pytest.raises(NotImplementedError, match="constant loss_scale_factor"):
        optimizer.apply_gradients([(ones(), w)])
    scaled = optimizers.SGD(0.1, loss_scale_factor=8.0)
    step = scaled.minimize(lambda: tf.reduce_sum(w * w), [w])
    start(session)
    step.run()
    np.testing.assert_allclose(session.run(w), [0.8, 1.6])
