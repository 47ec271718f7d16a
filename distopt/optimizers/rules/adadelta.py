"""Adadelta: a step as large as past steps were, relative to past gradients."""

from __future__ import annotations

from typing import Any

import numpy as np

from distopt.optimizers.rule import Rows, Rule, SparseUse


def adadelta_step(
    variable: Any,
    accum_grad: Any,
    accum_var: Any,
    gradient: Any,
    learning_rate: Any,
    rho: Any,
    one_minus_rho: Any,
    epsilon: Any,
) -> Any:
    """Return ``(variable, accum_grad, accum_var)`` after one step of Adadelta.

        A' = rho A + (1 - rho) g^2
        u  = sqrt(U + epsilon) / sqrt(A' + epsilon) * g
        U' = rho U + (1 - rho) u^2
        w' = w - lr * u

    Shapes: the first four alike. All have the variable's dtype; inputs are not written to.
    Units: ``accum_grad`` (A) is a square of gradients, ``accum_var`` (U) one of updates before ``learning_rate``.
    Source: Zeiler 2012, algorithm 1, where ``lr`` is 1; tf_keras ``legacy.Adadelta`` and v1 ``AdadeltaOptimizer``.

    >>> one, zero, half = np.float32(1), np.float32(0), np.float32(0.5)
    >>> [float(x) for x in adadelta_step(one, one, one, one, half, half, half, zero)]
    [0.5, 1.0, 1.0]
    """
    accum_grad = rho * accum_grad + one_minus_rho * (gradient * gradient)
    update = np.sqrt(accum_var + epsilon) / np.sqrt(accum_grad + epsilon) * gradient
    accum_var = rho * accum_var + one_minus_rho * (update * update)
    return variable - learning_rate * update, accum_grad, accum_var


ADADELTA = Rule(
    name="adadelta",
    step=adadelta_step,
    slots=("accum_grad", "accum_var"),
    scalars=("learning_rate", "rho", "one_minus_rho", "epsilon"),
    sparse=SparseUse(variable=Rows.TOUCHED, slots=Rows.TOUCHED),
)
