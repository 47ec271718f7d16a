"""Follow the regularized leader (FTRL-proximal), with any learning-rate power."""

from __future__ import annotations

from typing import Any

import numpy as np

from distopt.optimizers.choose import select
from distopt.optimizers.rule import Rows, Rule, SparseUse


def ftrl_power_step(
    variable: Any,
    accumulator: Any,
    linear: Any,
    gradient: Any,
    learning_rate: Any,
    power: Any,
    l1: Any,
    twice_l2: Any,
    twice_shrinkage: Any,
    zero: Any,
) -> Any:
    """Return ``(variable, accumulator, linear)`` after one step of FTRL with the learning-rate power ``-power``.

        a' = a + g^2
        z' = z + g + 2 shrinkage w - (a'^power - a^power) / lr * w
        w' = (sign(z') l1 - z') / (a'^power / lr + 2 l2)  where |z'| > l1, else 0

    Shapes, units and source as for ``ftrl_step``, which takes the root for ``power`` 1/2.

    >>> one, zero, half = np.float32(1), np.float32(0), np.float32(0.5)
    >>> [float(x) for x in ftrl_power_step(one, zero, zero, one, one, half, half, zero, one, zero)]
    [-0.5, 1.0, 1.0]
    """
    total = accumulator + gradient * gradient
    raised = np.power(total, power)
    growth = (raised - np.power(accumulator, power)) / learning_rate
    linear = linear + (gradient + twice_shrinkage * variable) - growth * variable
    leader = (np.sign(linear) * l1 - linear) / (raised / learning_rate + twice_l2)
    return select(np.abs(linear) > l1, leader, zero), total, linear


FTRL_POWER = Rule(
    name="ftrl_power",
    step=ftrl_power_step,
    slots=("accumulator", "linear"),
    scalars=("learning_rate", "power", "l1", "twice_l2", "twice_shrinkage", "zero"),
    sparse=SparseUse(variable=Rows.TOUCHED, slots=Rows.TOUCHED),
    numpy_only=True,
)
