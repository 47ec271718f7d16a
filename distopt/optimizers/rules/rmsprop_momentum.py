"""RMSprop with momentum: epsilon inside of the root."""

from __future__ import annotations

from typing import Any

import numpy as np

from distopt.optimizers.rule import Rows, Rule, SparseUse


def rmsprop_momentum_step(
    variable: Any,
    rms: Any,
    momentum: Any,
    gradient: Any,
    learning_rate: Any,
    one_minus_rho: Any,
    mu: Any,
    epsilon: Any,
) -> Any:
    """Return ``(variable, rms, momentum)`` after one step of RMSprop with momentum.

        s' = s + (g^2 - s) (1 - rho)
        b' = mu b + lr * g / sqrt(s' + epsilon)
        w' = w - b'

    Shapes: the first four alike. All have the variable's dtype; inputs are not written to.
    Units: ``momentum`` contains ``learning_rate``: it is a displacement of ``w``, with the other sign.
    Source: Tieleman and Hinton 2012, lecture 6.5; tf_keras ``legacy.RMSprop`` with momentum, v1 ``RMSPropOptimizer``.

    >>> one, zero, half = np.float32(1), np.float32(0), np.float32(0.5)
    >>> [float(x) for x in rmsprop_momentum_step(one, one, half, one, half, half, half, zero)]
    [0.25, 1.0, 0.75]
    """
    rms = rms + (gradient * gradient - rms) * one_minus_rho
    momentum = mu * momentum + learning_rate * gradient / np.sqrt(rms + epsilon)
    return variable - momentum, rms, momentum


RMSPROP_MOMENTUM = Rule(
    name="rmsprop_momentum",
    step=rmsprop_momentum_step,
    slots=("rms", "momentum"),
    scalars=("learning_rate", "one_minus_rho", "momentum", "epsilon"),
    sparse=SparseUse(variable=Rows.TOUCHED, slots=Rows.TOUCHED),
)
