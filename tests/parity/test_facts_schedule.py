"""Recorded facts about learning-rate schedules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import distopt as tf
from tests.parity.facts import fact, outcome

schedules = tf.keras.optimizers.schedules


def at(schedule: Any, *steps: int) -> list[float]:
    return [float(schedule(step)) for step in steps]


def close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_exponential_decay_is_smooth_or_in_steps() -> None:
    smooth, stairs = fact("F081")["result"]
    close(at(schedules.ExponentialDecay(0.1, 10, 0.96), 0, 5, 10, 100), smooth)
    close(at(schedules.ExponentialDecay(0.1, 10, 0.96, staircase=True), 9, 10, 19, 20), stairs)


def test_a_boundary_belongs_to_the_value_before_it() -> None:
    close(
        at(schedules.PiecewiseConstantDecay([100, 200], [1, 0.5, 0.1]), 0, 100, 101, 200, 201), fact("F082")["result"]
    )


def test_polynomial_decay_cycles() -> None:
    schedule = schedules.PolynomialDecay(0.1, 10, 0.01, cycle=True)
    close(at(schedule, 0, 1, 10, 11, 15, 20, 21), fact("F083")["result"])


def test_cosine_decay_warms_up() -> None:
    schedule = schedules.CosineDecay(0.0, 10, warmup_target=0.1, warmup_steps=5)
    close(at(schedule, 0, 1, 4, 5, 6, 10, 15, 20), fact("F084")["result"])


def test_cosine_decay_restarts() -> None:
    close(at(schedules.CosineDecayRestarts(0.1, 10), 0, 5, 9, 10, 20, 29, 30, 70), fact("F085")["result"])


def test_inverse_time_decay_is_smooth_or_in_steps() -> None:
    smooth, stairs = fact("F086")["result"]
    close(at(schedules.InverseTimeDecay(0.1, 10, 0.5), 0, 5, 10), smooth)
    close(at(schedules.InverseTimeDecay(0.1, 10, 0.5, staircase=True), 9, 10, 20), stairs)


def test_what_schedules_refuse() -> None:
    base = schedules.LearningRateSchedule()
    actions: list[Callable[[], Any]] = [
        lambda: schedules.PiecewiseConstantDecay([1], [1.0]),
        lambda: schedules.ExponentialDecay(0.1, 0, 0.5),
        lambda: base(0),
        base.get_config,
    ]
    mismatch, zero_steps, zero_steps_in_keras3, no_call, no_config = fact("F087")["result"]
    assert zero_steps_in_keras3 != zero_steps  # the generations differ; the legacy one rules
    assert [outcome(action) for action in actions] == [mismatch, zero_steps, no_call, no_config]


def test_a_schedule_sees_the_count_before_the_step() -> None:
    optimizer = tf.keras.optimizers.SGD(schedules.PiecewiseConstantDecay([0], [1.0, 0.1]))
    variable = tf.Variable(np.zeros(1, np.float32))
    values = []
    for _ in range(2):
        optimizer.apply_gradients([(tf.Tensor(np.ones(1, np.float32)), variable)])
        values.append(variable.numpy())
    close(values, fact("F088")["result"])
