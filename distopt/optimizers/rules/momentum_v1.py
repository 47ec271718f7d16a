"""Stochastic gradient descent with momentum, TensorFlow 1 convention."""

from __future__ import annotations

from typing import Any

from distopt.optimizers.rule import Rows, Rule, SparseUse


def momentum_step_v1(variable: Any, momentum: Any, gradient: Any, learning_rate: Any, mu: Any) -> Any:
    """Return ``(variable, momentum)`` after one step of gradient descent with momentum, TensorFlow 1 convention.

        a' = mu a + g
        w' = w - lr * a'

    Shapes: the first three alike. All five have the variable's dtype; inputs are not written to.
    Units: ``momentum`` (a) is a sum of gradients, without ``learning_rate``: a change of the rate scales all of it.
        ``momentum_step_keras`` keeps a displacement; the two part ways once the rate changes.
    Source: Polyak 1964; v1 ``MomentumOptimizer``.

    >>> momentum_step_v1(1.0, 1.0, 1.0, 0.25, 0.5)
    (0.625, 1.5)
    """
    momentum = mu * momentum + gradient
    return variable - learning_rate * momentum, momentum


MOMENTUM_V1 = Rule(
    name="momentum_v1",
    step=momentum_step_v1,
    slots=("momentum",),
    scalars=("learning_rate", "momentum"),
    sparse=SparseUse(variable=Rows.TOUCHED, slots=Rows.TOUCHED),
)
