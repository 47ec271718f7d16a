"""Adagrad with dual averaging, with the TensorFlow 1 face."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from distopt.optimizers import rules
from distopt.optimizers.rule import Rule
from distopt.optimizers.v1.optimizer import Optimizer


class AdagradDAOptimizer(Optimizer):
    """Adagrad with dual averaging: each value follows from sums over all steps, so what it was before has no effect.

    Penalties grow with the number of the step, ``global_step + 1``; give the same ``global_step`` to
    ``apply_gradients``, or it stays where it is. A row-sparse gradient touches its own rows only.

    Raises: ValueError for an ``initial_gradient_squared_accumulator_value`` that is not positive.

    Source: Duchi et al. 2011; v1 ``AdagradDAOptimizer``.
    """

    def __init__(
        self,
        learning_rate: Any,
        global_step: Any,
        initial_gradient_squared_accumulator_value: float = 0.1,
        l1_regularization_strength: Any = 0.0,
        l2_regularization_strength: Any = 0.0,
        use_locking: bool = False,
        name: str = "AdagradDA",
    ) -> None:
        if initial_gradient_squared_accumulator_value <= 0.0:
            raise ValueError(
                "initial_gradient_squared_accumulator_value must be positive, but is "
                f"{initial_gradient_squared_accumulator_value}"
            )
        super().__init__(use_locking, name)
        self._set_hyper("learning_rate", learning_rate)
        self._set_hyper("global_step", global_step)
        self._set_hyper("l1", l1_regularization_strength)
        self._set_hyper("l2", l2_regularization_strength)
        self._initial_value = initial_gradient_squared_accumulator_value

    @property
    def rule(self) -> Rule:
        """The update rule."""
        return rules.ADAGRAD_DA

    def initial_slot(self, name: str) -> Any:
        """Return the initial sum of squares, or zeros for the sum of gradients."""
        return self._initial_value if name == "gradient_squared_accumulator" else "zeros"

    def scalars(self, hypers: Mapping[str, float], dtype: np.dtype[Any]) -> tuple[Any, ...]:
        """Return the rule's scalars; the step is the one that is being made, counted from 1."""
        step = dtype.type(hypers["global_step"] + 1)
        rate, l1, l2 = (dtype.type(hypers[name]) for name in ("learning_rate", "l1", "l2"))
        return rate, l1 * step, rate * l2 * step, dtype.type(0)
