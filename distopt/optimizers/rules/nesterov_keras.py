"""Stochastic gradient descent with Nesterov momentum, Keras convention."""

from __future__ import annotations

from typing import Any

from distopt.optimizers.rule import Rows, Rule, SparseUse


def nesterov_step_keras(variable: Any, momentum: Any, gradient: Any, learning_rate: Any, mu: Any) -> Any:
    """Return ``(variable, momentum)`` after one step of SGD with Nesterov momentum, Keras convention.

        m' = mu * m - lr * g
        w' = w + mu * m' - lr * g

    Shapes: the first three alike. All five have the variable's dtype; inputs are not written to.
    Units: ``momentum`` already contains ``learning_rate``, so it is a displacement of ``w``.
    Source: Sutskever et al. 2013; tf_keras ``legacy.SGD``.

    >>> nesterov_step_keras(1.0, 0.0, 1.0, 0.5, 0.5)
    (0.25, -0.5)
    """
    displacement = learning_rate * gradient
    momentum = mu * momentum - displacement
    return variable + (mu * momentum - displacement), momentum


NESTEROV_KERAS = Rule(
    name="nesterov_keras",
    step=nesterov_step_keras,
    slots=("momentum",),
    scalars=("learning_rate", "momentum"),
    sparse=SparseUse(variable=Rows.TOUCHED, slots=Rows.TOUCHED),
)
