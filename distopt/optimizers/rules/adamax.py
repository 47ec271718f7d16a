"""Adamax: Adam with the infinity norm."""

from __future__ import annotations

from typing import Any

import numpy as np

from distopt.optimizers.choose import maximum
from distopt.optimizers.rule import Rows, Rule, SparseUse


def adamax_step(
    variable: Any, m: Any, v: Any, gradient: Any, alpha: Any, beta_2: Any, one_minus_beta_1: Any, epsilon: Any
) -> Any:
    """Return ``(variable, m, v)`` after one step of Adamax.

        m' = m + (g - m) (1 - beta_1)
        v' = max(beta_2 v, |g|)
        w' = w - alpha * m' / (v' + epsilon)

    Shapes: the first four alike. All have the variable's dtype; inputs are not written to.
    Units: ``alpha`` is the learning rate over ``1 - beta_1^T``, with T counted from 1; ``v`` has the gradient's unit.
    Source: Kingma and Ba 2015, algorithm 2; tf_keras ``legacy.Adamax``, which adds epsilon.

    >>> one, zero, half = np.float32(1), np.float32(0), np.float32(0.5)
    >>> [float(x) for x in adamax_step(one, zero, one, -half, one, half, half, zero)]
    [1.5, -0.25, 0.5]
    """
    m = m + (gradient - m) * one_minus_beta_1
    v = maximum(beta_2 * v, np.abs(gradient))
    return variable - alpha * (m / (v + epsilon)), m, v


ADAMAX = Rule(
    name="adamax",
    step=adamax_step,
    slots=("m", "v"),
    scalars=("alpha", "beta_2", "one_minus_beta_1", "epsilon"),
    sparse=SparseUse(variable=Rows.TOUCHED, slots=Rows.TOUCHED),
)
