"""Proximal gradient descent with the TensorFlow 1 face."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from distopt.optimizers import rules
from distopt.optimizers.rule import Rule
from distopt.optimizers.v1.optimizer import Optimizer


class ProximalGradientDescentOptimizer(Optimizer):
    """Gradient descent, each step followed by the exact step for L1 and L2 penalties, which makes exact zeros.

    A row-sparse gradient moves its own rows, and only they are shrunk.

    Source: Duchi and Singer 2009; v1 ``ProximalGradientDescentOptimizer``.
    """

    def __init__(
        self,
        learning_rate: Any,
        l1_regularization_strength: Any = 0.0,
        l2_regularization_strength: Any = 0.0,
        use_locking: bool = False,
        name: str = "ProximalGradientDescent",
    ) -> None:
        super().__init__(use_locking, name)
        self._set_hyper("learning_rate", learning_rate)
        self._set_hyper("l1", l1_regularization_strength)
        self._set_hyper("l2", l2_regularization_strength)

    @property
    def rule(self) -> Rule:
        """The update rule."""
        return rules.PROXIMAL_GRADIENT_DESCENT

    def scalars(self, hypers: Mapping[str, float], dtype: np.dtype[Any]) -> tuple[Any, ...]:
        """Return the rule's scalars."""
        rate, l1, l2 = (dtype.type(hypers[name]) for name in ("learning_rate", "l1", "l2"))
        return rate, rate * l1, dtype.type(1) + rate * l2, dtype.type(0)
