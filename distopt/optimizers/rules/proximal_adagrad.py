"""Proximal Adagrad: a step of Adagrad, then the exact step for l1 and l2 penalties at the same rates."""

from __future__ import annotations

from typing import Any

import numpy as np

from distopt.optimizers.choose import maximum, select
from distopt.optimizers.rule import Rows, Rule, SparseUse


def proximal_adagrad_step(
    variable: Any,
    accumulator: Any,
    gradient: Any,
    learning_rate: Any,
    l1: Any,
    l2: Any,
    one: Any,
    zero: Any,
) -> Any:
    """Return ``(variable, accumulator)`` after one step of Adagrad and the proximal step for l1 and l2 penalties.

        a' = a + g^2
        e  = lr / sqrt(a')
        y  = w - e g
        w' = y / (1 + e l2)                               where l1 = 0, else
        w' = sign(y) max(|y| - e l1, 0) / (1 + e l2)

    Shapes: the first three alike. All have the variable's dtype; inputs are not written to.
    Units: ``accumulator`` is a sum of squared gradients.
    Source: Duchi and Singer 2009 with the rates of Duchi et al. 2011; v1 ``ProximalAdagradOptimizer``.

    >>> one, zero, half = np.float32(1), np.float32(0), np.float32(0.5)
    >>> [float(x) for x in proximal_adagrad_step(2 * one, 3 * one, one, one, one, 2 * one, one, zero)]
    [0.5, 4.0]
    """
    accumulator = accumulator + gradient * gradient
    rate = learning_rate / np.sqrt(accumulator)
    moved = variable - rate * gradient
    shrunk = np.sign(moved) * maximum(np.abs(moved) - rate * l1, zero)
    return select(l1 > zero, shrunk, moved) / (one + rate * l2), accumulator


PROXIMAL_ADAGRAD = Rule(
    name="proximal_adagrad",
    step=proximal_adagrad_step,
    slots=("accumulator",),
    scalars=("learning_rate", "l1", "l2", "one", "zero"),
    sparse=SparseUse(variable=Rows.TOUCHED, slots=Rows.TOUCHED),
)
