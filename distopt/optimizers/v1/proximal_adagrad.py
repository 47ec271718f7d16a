"""Proximal Adagrad with the TensorFlow 1 face."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from distopt.optimizers import rules
from distopt.optimizers.rule import Rule
from distopt.optimizers.v1.optimizer import Optimizer


class ProximalAdagradOptimizer(Optimizer):
    """Adagrad, each step followed by the exact step for L1 and L2 penalties at the same rates.

    A row-sparse gradient touches its own rows only.

    Raises: ValueError for an ``initial_accumulator_value`` that is not positive.

    Source: Duchi and Singer 2009; v1 ``ProximalAdagradOptimizer``.
    """

    def __init__(
        self,
        learning_rate: Any,
        initial_accumulator_value: float = 0.1,
        l1_regularization_strength: Any = 0.0,
        l2_regularization_strength: Any = 0.0,
        use_locking: bool = False,
        name: str = "ProximalAdagrad",
    ) -> None:
        if initial_accumulator_value <= 0.0:
            raise ValueError(f"initial_accumulator_value must be positive, but is {initial_accumulator_value}")
        super().__init__(use_locking, name)
        self._set_hyper("learning_rate", learning_rate)
        self._set_hyper("l1", l1_regularization_strength)
        self._set_hyper("l2", l2_regularization_strength)
        self._initial_accumulator_value = initial_accumulator_value

    @property
    def rule(self) -> Rule:
        """The update rule."""
        return rules.PROXIMAL_ADAGRAD

    def initial_slot(self, name: str) -> Any:  # noqa: ARG002 - there is one slot
        """Return ``initial_accumulator_value``."""
        return self._initial_accumulator_value

    def scalars(self, hypers: Mapping[str, float], dtype: np.dtype[Any]) -> tuple[Any, ...]:
        """Return the rule's scalars."""
        own = tuple(dtype.type(hypers[name]) for name in ("learning_rate", "l1", "l2"))
        return (*own, dtype.type(1), dtype.type(0))
