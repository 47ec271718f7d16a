"""What processes compare of an optimizer before its first step, and what need not be comparable."""

from __future__ import annotations

from typing import Any

import numpy as np

import distopt as tf
from distopt.keras.optimizers.schedules import LearningRateSchedule
from distopt.testing import run_strategy


class NoConfiguration(LearningRateSchedule):
    """A schedule that cannot be serialized."""

    def __call__(self, step: Any) -> float:
        return 0.5


class Unfinished(tf.keras.optimizers.SGD):
    """An optimizer whose configuration asks for an attribute that it has not."""

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "warmth": self.warmth}


def test_optimizers_that_cannot_be_serialized_are_trained_by_several_processes() -> None:
    def trained(strategy: Any) -> list[float]:
        found = []
        for optimizer in (tf.keras.optimizers.SGD(NoConfiguration()), Unfinished(0.5)):
            with strategy.scope():
                variable = tf.Variable(np.zeros(1, np.float32))
            strategy.run(lambda o=optimizer, v=variable: o.apply_gradients([(np.ones(1, np.float32), v)]))
            found.append(float(variable.numpy()[0]))
        return found

    assert run_strategy(trained, 3, 2) == [[-1.5, -1.5]] * 2
