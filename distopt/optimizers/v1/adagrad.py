"""Adagrad with the TensorFlow 1 face."""

from __future__ import annotations

from typing import Any

from distopt.optimizers import rules
from distopt.optimizers.rule import Rule
from distopt.optimizers.v1.optimizer import Optimizer


class AdagradOptimizer(Optimizer):
    """Rates that fall with the root of the sum of squared gradients, which starts at ``initial_accumulator_value``.

    There is no epsilon. A row-sparse gradient touches its own rows only.

    Raises: ValueError for an ``initial_accumulator_value`` that is not positive.

    Source: Duchi et al. 2011; v1 ``AdagradOptimizer``.
    """

    def __init__(
        self,
        learning_rate: Any,
        initial_accumulator_value: float = 0.1,
        use_locking: bool = False,
        name: str = "Adagrad",
    ) -> None:
        if initial_accumulator_value <= 0.0:
            raise ValueError(f"initial_accumulator_value must be positive, but is {initial_accumulator_value}")
        super().__init__(use_locking, name)
        self._set_hyper("learning_rate", learning_rate)
        self._initial_accumulator_value = initial_accumulator_value

    @property
    def rule(self) -> Rule:
        """The update rule."""
        return rules.ADAGRAD_V1

    def initial_slot(self, name: str) -> Any:  # noqa: ARG002 - there is one slot
        """Return ``initial_accumulator_value``."""
        return self._initial_accumulator_value
