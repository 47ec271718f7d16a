"""Stochastic gradient descent with momentum, Keras convention."""

from __future__ import annotations

from typing import Any

from distopt.optimizers.rule import Rows, Rule, SparseUse


def momentum_step_keras(variable: Any, momentum: Any, gradient: Any, learning_rate: Any, mu: Any) -> Any:
    """Return ``(variable, momentum)`` after one step of SGD with momentum, Keras convention.

        m' = mu * m - lr * g
        w' = w + m'

    Shapes: the first three alike. All five have the variable's dtype; inputs are not written to.
    Units: ``momentum`` already contains ``learning_rate``, so it is a displacement of ``w``: a later change of the rate
        does not rescale what has accumulated.
    Source: Polyak 1964; tf_keras ``legacy.SGD``.

    >>> momentum_step_keras(1.0, 0.5, 1.0, 0.25, 0.5)
    (1.0, 0.0)
    """
    momentum = mu * momentum - learning_rate * gradient
    return variable + momentum, momentum


MOMENTUM_KERAS = Rule(
    name="momentum_keras",
    step=momentum_step_keras,
    slots=("momentum",),
    scalars=("learning_rate", "momentum"),
    sparse=SparseUse(variable=Rows.TOUCHED, slots=Rows.TOUCHED),
)
