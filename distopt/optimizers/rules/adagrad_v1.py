"""Adagrad, TensorFlow 1 convention: no epsilon."""

from __future__ import annotations

from typing import Any

import numpy as np

from distopt.optimizers.rule import Rows, Rule, SparseUse


def adagrad_step_v1(variable: Any, accumulator: Any, gradient: Any, learning_rate: Any) -> Any:
    """Return ``(variable, accumulator)`` after one step of Adagrad, TensorFlow 1 convention.

        a' = a + g^2
        w' = w - lr * g / sqrt(a')

    Shapes: the first three alike. All have the variable's dtype; inputs are not written to.
    Units: ``accumulator`` is a sum of squared gradients. It starts above zero, which is what keeps the root from zero.
    Source: Duchi et al. 2011; v1 ``AdagradOptimizer``.

    >>> one, half = np.float32(1), np.float32(0.5)
    >>> [float(x) for x in adagrad_step_v1(one, 3 * one, one, half)]
    [0.75, 4.0]
    """
    accumulator = accumulator + gradient * gradient
    return variable - learning_rate * gradient / np.sqrt(accumulator), accumulator


ADAGRAD_V1 = Rule(
    name="adagrad_v1",
    step=adagrad_step_v1,
    slots=("accumulator",),
    scalars=("learning_rate",),
    sparse=SparseUse(variable=Rows.TOUCHED, slots=Rows.TOUCHED),
)
