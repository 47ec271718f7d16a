"""Follow the regularized leader (FTRL-proximal), with rates that fall as the root of the squared gradients' sum."""

from __future__ import annotations

from typing import Any

import numpy as np

from distopt.optimizers.choose import select
from distopt.optimizers.rule import Rows, Rule, SparseUse


def ftrl_step(
    variable: Any,
    accumulator: Any,
    linear: Any,
    gradient: Any,
    learning_rate: Any,
    l1: Any,
    twice_l2: Any,
    twice_shrinkage: Any,
    zero: Any,
) -> Any:
    """Return ``(variable, accumulator, linear)`` after one step of FTRL with the learning-rate power -1/2.

        a' = a + g^2
        z' = z + g + 2 shrinkage w - (sqrt(a') - sqrt(a)) / lr * w
        w' = (sign(z') l1 - z') / (sqrt(a') / lr + 2 l2)  where |z'| > l1, else 0

    Shapes: the first four alike. All have the variable's dtype; inputs are not written to.
    Units: ``accumulator`` (a) sums squared gradients, without what the shrinkage adds; ``linear`` (z) sums gradients.
    Source: McMahan et al. 2013, algorithm 1; tf_keras ``legacy.Ftrl`` and v1 ``FtrlOptimizer``.

    >>> one, zero, half = np.float32(1), np.float32(0), np.float32(0.5)
    >>> [float(x) for x in ftrl_step(one, zero, zero, one, one, half, zero, one, zero)]
    [-0.5, 1.0, 1.0]
    """
    total = accumulator + gradient * gradient
    root = np.sqrt(total)
    linear = linear + (gradient + twice_shrinkage * variable) - (root - np.sqrt(accumulator)) / learning_rate * variable
    leader = (np.sign(linear) * l1 - linear) / (root / learning_rate + twice_l2)
    return select(np.abs(linear) > l1, leader, zero), total, linear


FTRL = Rule(
    name="ftrl",
    step=ftrl_step,
    slots=("accumulator", "linear"),
    scalars=("learning_rate", "l1", "twice_l2", "twice_shrinkage", "zero"),
    sparse=SparseUse(variable=Rows.TOUCHED, slots=Rows.TOUCHED),
)
