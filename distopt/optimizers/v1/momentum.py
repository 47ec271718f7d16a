"""Momentum with the TensorFlow 1 face."""

from __future__ import annotations

from typing import Any

from distopt.optimizers import rules
from distopt.optimizers.rule import Rule
from distopt.optimizers.v1.optimizer import Optimizer


class MomentumOptimizer(Optimizer):
    """Gradient descent with ``momentum``, of Nesterov's kind if ``use_nesterov``.

    The slot ``momentum`` sums gradients, without the rate. A row-sparse gradient touches its own rows only.

    Source: Polyak 1964; Sutskever et al. 2013; v1 ``MomentumOptimizer``.
    """

    def __init__(
        self,
        learning_rate: Any,
        momentum: Any,
        use_locking: bool = False,
        name: str = "Momentum",
        use_nesterov: bool = False,
    ) -> None:
        super().__init__(use_locking, name)
        self._set_hyper("learning_rate", learning_rate)
        self._set_hyper("momentum", momentum)
        self._use_nesterov = use_nesterov

    @property
    def rule(self) -> Rule:
        """The update rule."""
        return rules.NESTEROV_V1 if self._use_nesterov else rules.MOMENTUM_V1
