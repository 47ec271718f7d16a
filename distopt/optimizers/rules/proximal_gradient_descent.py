"""Proximal gradient descent: a step down the gradient, then the exact step for l1 and l2 penalties."""

from __future__ import annotations

from typing import Any

import numpy as np

from distopt.optimizers.choose import maximum, select
from distopt.optimizers.rule import Rows, Rule, SparseUse


def proximal_gradient_descent_step(
    variable: Any,
    gradient: Any,
    learning_rate: Any,
    rate_times_l1: Any,
    one_plus_rate_times_l2: Any,
    zero: Any,
) -> Any:
    """Return ``variable`` after one step of gradient descent and the proximal step for l1 and l2 penalties.

        y  = w - lr * g
        w' = y / (1 + lr l2)                                where l1 = 0, else
        w' = sign(y) max(|y| - lr l1, 0) / (1 + lr l2)

    Shapes: variable and gradient alike. All have the variable's dtype; inputs are not written to.
    Source: Duchi and Singer 2009, FOBOS; v1 ``ProximalGradientDescentOptimizer``.

    >>> one, zero, half = np.float32(1), np.float32(0), np.float32(0.5)
    >>> float(proximal_gradient_descent_step(3 * one, one, one, half, 2 * one, zero))
    0.75
    """
    moved = variable - learning_rate * gradient
    shrunk = np.sign(moved) * maximum(np.abs(moved) - rate_times_l1, zero)
    return select(rate_times_l1 > zero, shrunk, moved) / one_plus_rate_times_l2


PROXIMAL_GRADIENT_DESCENT = Rule(
    name="proximal_gradient_descent",
    step=proximal_gradient_descent_step,
    slots=(),
    scalars=("learning_rate", "rate_times_l1", "one_plus_rate_times_l2", "zero"),
    sparse=SparseUse(variable=Rows.TOUCHED, slots=Rows.TOUCHED),
)
