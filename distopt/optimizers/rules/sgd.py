"""Stochastic gradient descent."""

from __future__ import annotations

from typing import Any

from distopt.optimizers.rule import Rows, Rule, SparseUse


def sgd_step(variable: Any, gradient: Any, learning_rate: Any) -> Any:
    """Return ``variable`` after one step of gradient descent.

        w' = w - lr * g

    Shapes: variable and gradient alike. All have the variable's dtype; inputs are not written to.
    Source: Robbins and Monro 1951; tf_keras ``legacy.SGD`` with momentum 0.

    >>> sgd_step(1.0, 2.0, 0.25)
    0.5
    """
    return variable - learning_rate * gradient


SGD = Rule(
    name="sgd",
    step=sgd_step,
    slots=(),
    scalars=("learning_rate",),
    sparse=SparseUse(variable=Rows.OCCURRENCES, slots=Rows.OCCURRENCES),
)
