"""Adadelta with the TensorFlow 1 face."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from distopt.optimizers import rules
from distopt.optimizers.rule import Rule
from distopt.optimizers.v1.optimizer import Optimizer

_RULE = dataclasses.replace(rules.ADADELTA, name="adadelta_v1", slots=("accum", "accum_update"))


class AdadeltaOptimizer(Optimizer):
    """Steps as large as past steps were, relative to past gradients; ``learning_rate`` 1 is the paper's form.

    ``epsilon`` is added inside both roots. A row-sparse gradient touches its own rows only.

    Source: Zeiler 2012; v1 ``AdadeltaOptimizer``.
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        rho: Any = 0.95,
        epsilon: Any = 1e-8,
        use_locking: bool = False,
        name: str = "Adadelta",
    ) -> None:
        super().__init__(use_locking, name)
        self._set_hyper("learning_rate", learning_rate)
        self._set_hyper("rho", rho)
        self._set_hyper("epsilon", epsilon)

    @property
    def rule(self) -> Rule:
        """The update rule."""
        return _RULE

    def scalars(self, hypers: Mapping[str, float], dtype: np.dtype[Any]) -> tuple[Any, ...]:
        """Return the rule's scalars."""
        rate, rho, epsilon = (dtype.type(hypers[name]) for name in ("learning_rate", "rho", "epsilon"))
        return rate, rho, dtype.type(1) - rho, epsilon
