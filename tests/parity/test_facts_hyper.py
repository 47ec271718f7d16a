"""Recorded facts about hypers and configurations of the legacy optimizers."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

import distopt as tf
from tests.parity.facts import fact, outcome

optimizers = tf.keras.optimizers
schedules = optimizers.schedules


def trace(optimizer: Any, start: float, steps: int, dtype: Any = np.float32) -> list[list[float]]:
    """Return the value after each of some steps with gradient 1."""
    variable = tf.Variable(np.array([start], dtype))
    values = []
    for _ in range(steps):
        optimizer.apply_gradients([(tf.Tensor(np.ones(1, dtype)), variable)])
        values.append(variable.numpy().tolist())
    return values


def test_python_numbers_reach_float64_variables_through_float32() -> None:
    rates = [0.1, lambda: 0.1, schedules.ExponentialDecay(0.1, 1, 0.5), lambda: tf.Tensor(np.float64(0.1))]
    *expected, v1 = fact("F067")["result"]
    assert [trace(optimizers.SGD(rate), 1.0, 1, np.float64)[0][0] for rate in rates] == expected
    assert v1 == expected[0]


def test_an_assigned_decay_changes_no_later_step() -> None:
    optimizer, variable = optimizers.SGD(1.0, decay=1.0), tf.Variable(np.ones(1, np.float32))
    values = []
    for step in range(4):
        if step == 3:
            optimizer.decay = 0.0
        optimizer.apply_gradients([(tf.Tensor(np.ones(1, np.float32)), variable)])
        values.append(variable.numpy())
    three, fourth = fact("F068")["result"]
    np.testing.assert_allclose(values, three + fourth, rtol=1e-6, atol=1e-7)


def test_decay_is_rounded_to_float32_for_a_float64_variable() -> None:
    found = trace(optimizers.SGD(1.0, decay=0.1), 1.0, 2, np.float64)
    np.testing.assert_allclose(found, fact("F069")["result"], rtol=1e-14)


def test_a_schedule_and_decay_multiply() -> None:
    found = trace(optimizers.SGD(schedules.ExponentialDecay(1.0, 1, 0.5), decay=1.0), 0.0, 3)
    np.testing.assert_allclose(found, fact("F070")["result"], rtol=1e-6)


def test_reading_a_rate_gives_its_variable_its_value_or_its_schedule() -> None:
    optimizer = optimizers.SGD(0.1)
    rate = optimizer.lr
    schedule = schedules.ExponentialDecay(0.1, 1, 0.5)
    found = [
        isinstance(rate, tf.Variable),
        rate.dtype.name,
        optimizers.SGD(lambda: 0.3).lr,
        type(optimizers.SGD(schedule).lr).__name__,
        "lr" in dir(optimizer),
    ]
    assert found == fact("F071")["result"]


def test_assigning_to_a_hyper_that_is_a_variable() -> None:
    optimizer = optimizers.SGD(0.1)
    _ = optimizer.lr
    found = [
        outcome(lambda: setattr(optimizer, "learning_rate", lambda: 0.2)),
        outcome(lambda: setattr(optimizer, "learning_rate", schedules.ExponentialDecay(0.1, 1, 0.5))),
        outcome(lambda: optimizer.no_such_hyper),
    ]
    assert found == fact("F072")["result"]


def test_a_configuration_holds_a_float_until_the_hyper_is_a_variable() -> None:
    optimizer = optimizers.SGD(0.1)
    before = optimizer.get_config()["learning_rate"]
    _ = optimizer.lr
    after = optimizer.get_config()["learning_rate"]
    expected = fact("F073")["result"]
    assert [before, type(before).__name__, type(after).__name__] == [expected[0], expected[1], expected[3]]
    assert float(after) == pytest.approx(expected[2])


def test_an_epsilon_of_zero_or_none_is_the_default() -> None:
    made = [
        optimizers.Adam(epsilon=0),
        optimizers.Adam(epsilon=None),
        optimizers.Adagrad(epsilon=0),
        optimizers.RMSprop(epsilon=0),
    ]
    assert [optimizer.epsilon for optimizer in made] == fact("F074")["result"]


def test_default_configurations_are_the_references() -> None:
    expected = fact("F075")["result"]
    assert {name: getattr(optimizers, name)().get_config() for name in expected} == expected


def test_a_schedule_decay_of_nadam_is_lost_on_the_way_through_a_configuration() -> None:
    config = optimizers.Nadam(schedule_decay=0.1).get_config()
    decay = config["decay"]
    assert [decay, optimizers.Nadam.from_config(config).get_config()["decay"]] == fact("F076")["result"]


@pytest.mark.filterwarnings("ignore:the argument `lr`:DeprecationWarning")
def test_lr_wins_over_learning_rate_but_for_ftrl() -> None:
    found = [optimizers.Ftrl(lr=0.5), optimizers.SGD(0.3, lr=0.5)]
    np.testing.assert_allclose([float(each.lr.numpy()) for each in found], fact("F077")["result"])


def test_configurations_with_lr_and_with_schedules_come_back() -> None:
    expected = fact("F078")["result"]
    plain = optimizers.SGD.from_config({"lr": 0.3, "momentum": 0.5})
    config = optimizers.SGD(schedules.ExponentialDecay(0.1, 10, 0.5)).get_config()
    schedule = optimizers.SGD.from_config(copy.deepcopy(config)).learning_rate
    kept = optimizers.Adagrad.from_config({"learning_rate": config["learning_rate"]})._hypers.raw("learning_rate")
    assert [plain.get_config(), type(schedule).__name__, type(kept).__name__] == expected


def test_a_schedule_is_serialized_as_the_references() -> None:
    optimizer = optimizers.SGD(schedules.ExponentialDecay(0.1, 10, 0.5))
    assert optimizer.get_config()["learning_rate"] == fact("F079")["result"]


def test_arguments_of_wrong_size_or_kind_are_refused() -> None:
    schedule = schedules.ExponentialDecay(0.1, 1, 0.5)
    found = [
        outcome(lambda: optimizers.SGD(momentum=1.5)),
        outcome(lambda: optimizers.SGD(momentum=-0.1)),
        outcome(lambda: optimizers.SGD(momentum=1.0)),
        outcome(lambda: optimizers.Nadam(schedule)),
        outcome(lambda: optimizers.Adagrad(initial_accumulator_value=-1)),
        outcome(lambda: optimizers.Adagrad(initial_accumulator_value=0)),
    ]
    assert found == fact("F080")["result"]
