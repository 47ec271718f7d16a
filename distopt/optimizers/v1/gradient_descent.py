"""Gradient descent with the TensorFlow 1 face."""

from __future__ import annotations

from typing import Any

from distopt.optimizers import rules
from distopt.optimizers.rule import Rule
from distopt.optimizers.v1.optimizer import Optimizer


class GradientDescentOptimizer(Optimizer):
    """Gradient descent: ``w - learning_rate * g``. A row-sparse gradient moves its own rows.

    Source: v1 ``GradientDescentOptimizer``.
    """

    def __init__(self, learning_rate: Any, use_locking: bool = False, name: str = "GradientDescent") -> None:
        super().__init__(use_locking, name)
        self._set_hyper("learning_rate", learning_rate)

    @property
    def rule(self) -> Rule:
        """The update rule."""
        return rules.SGD
