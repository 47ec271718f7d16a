"""Stochastic gradient descent with Nesterov momentum, TensorFlow 1 convention."""

from __future__ import annotations

from typing import Any

from distopt.optimizers.rule import Rows, Rule, SparseUse


def nesterov_step_v1(variable: Any, momentum: Any, gradient: Any, learning_rate: Any, mu: Any) -> Any:
    """Return ``(variable, momentum)`` after one step with Nesterov momentum, TensorFlow 1 convention.

        a' = mu a + g
        w' = w - (lr * g + lr * mu * a')

    Shapes: the first three alike. All five have the variable's dtype; inputs are not written to.
    Units: ``momentum`` (a) is a sum of gradients, without ``learning_rate``.
    Source: Sutskever et al. 2013; v1 ``MomentumOptimizer(use_nesterov=True)``.

    >>> nesterov_step_v1(1.0, 0.0, 1.0, 0.5, 0.5)
    (0.25, 1.0)
    """
    momentum = mu * momentum + gradient
    return variable - (learning_rate * gradient + learning_rate * mu * momentum), momentum


NESTEROV_V1 = Rule(
    name="nesterov_v1",
    step=nesterov_step_v1,
    slots=("momentum",),
    scalars=("learning_rate", "momentum"),
    sparse=SparseUse(variable=Rows.TOUCHED, slots=Rows.TOUCHED),
)
