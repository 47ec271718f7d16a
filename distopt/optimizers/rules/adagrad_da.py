"""Adagrad with dual averaging: the variable follows from sums over all steps, not from its last value."""

from __future__ import annotations

from typing import Any

import numpy as np

from distopt.optimizers.choose import maximum, select
from distopt.optimizers.rule import Rows, Rule, SparseUse


def adagrad_da_step(
    variable: Any,
    gradient_accumulator: Any,
    gradient_squared_accumulator: Any,
    gradient: Any,
    learning_rate: Any,
    l1_times_step: Any,
    rate_times_l2_times_step: Any,
    zero: Any,
) -> Any:
    """Return ``(variable, gradient_accumulator, gradient_squared_accumulator)`` after one step of dual averaging.

        G' = G + g
        H' = H + g^2
        s  = G'                                 where l1 = 0, else sign(G') max(|G'| - l1 t, 0)
        w' = -lr * s / (lr l2 t + sqrt(H'))

    ``t`` is the number of the step, from 1. The value that ``variable`` had enters in no way.

    Shapes: the first four alike. All have the variable's dtype; inputs are not written to.
    Units: ``gradient_accumulator`` (G) sums gradients and ``gradient_squared_accumulator`` (H) their squares;
        ``l1_times_step`` has the unit of G.
    Source: Duchi et al. 2011, section 3, the primal-dual form; v1 ``AdagradDAOptimizer``.

    >>> one, zero, half = np.float32(1), np.float32(0), np.float32(0.5)
    >>> [float(x) for x in adagrad_da_step(9 * one, one, 3 * one, one, half, one, zero, zero)]
    [-0.25, 2.0, 4.0]
    """
    gradient_accumulator = gradient_accumulator + gradient
    gradient_squared_accumulator = gradient_squared_accumulator + gradient * gradient
    shrunk = np.sign(gradient_accumulator) * maximum(np.abs(gradient_accumulator) - l1_times_step, zero)
    kept = select(l1_times_step > zero, shrunk, gradient_accumulator)
    variable = -learning_rate * kept / (rate_times_l2_times_step + np.sqrt(gradient_squared_accumulator))
    return variable, gradient_accumulator, gradient_squared_accumulator


ADAGRAD_DA = Rule(
    name="adagrad_da",
    step=adagrad_da_step,
    slots=("gradient_accumulator", "gradient_squared_accumulator"),
    scalars=("learning_rate", "l1_times_step", "rate_times_l2_times_step", "zero"),
    sparse=SparseUse(variable=Rows.TOUCHED, slots=Rows.TOUCHED),
)
