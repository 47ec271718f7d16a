"""Adagrad, Keras convention: epsilon outside of the root."""

from __future__ import annotations

from typing import Any

import numpy as np

from distopt.optimizers.rule import Rows, Rule, SparseUse


def adagrad_step_keras(variable: Any, accumulator: Any, gradient: Any, learning_rate: Any, epsilon: Any) -> Any:
    """Return ``(variable, accumulator)`` after one step of Adagrad, Keras convention.

        a' = a + g^2
        w' = w - lr * g / (sqrt(a') + epsilon)

    Shapes: the first three alike. All five have the variable's dtype; inputs are not written to.
    Source: Duchi, Hazan and Singer 2011; tf_keras ``legacy.Adagrad``.

    >>> one, zero = np.float32(1), np.float32(0)
    >>> [float(x) for x in adagrad_step_keras(one, zero, np.float32(2), one, zero)]
    [0.0, 4.0]
    """
    accumulator = accumulator + gradient * gradient
    return variable - learning_rate * gradient / (np.sqrt(accumulator) + epsilon), accumulator


ADAGRAD_KERAS = Rule(
    name="adagrad_keras",
    step=adagrad_step_keras,
    slots=("accumulator",),
    scalars=("learning_rate", "epsilon"),
    sparse=SparseUse(variable=Rows.TOUCHED, slots=Rows.TOUCHED),
)
