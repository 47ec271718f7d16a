"""RMSprop of centered gradients with momentum: epsilon inside of the root."""

from __future__ import annotations

from typing import Any

import numpy as np

from distopt.optimizers.rule import Rows, Rule, SparseUse


def rmsprop_momentum_centered_step(
    variable: Any,
    rms: Any,
    momentum: Any,
    mg: Any,
    gradient: Any,
    learning_rate: Any,
    one_minus_rho: Any,
    mu: Any,
    epsilon: Any,
) -> Any:
    """Return ``(variable, rms, momentum, mg)`` after one step of centered RMSprop with momentum.

        s' = s + (g^2 - s) (1 - rho)
        c' = c + (g - c) (1 - rho)
        b' = mu b + lr * g / sqrt(s' - c'^2 + epsilon)
        w' = w - b'

    Shapes: the first five alike. All have the variable's dtype; inputs are not written to.
    Units: ``momentum`` contains ``learning_rate``: it is a displacement of ``w``, with the other sign.
    Source: Graves 2013, equations 38 to 45; tf_keras ``legacy.RMSprop(centered=True)``, v1 ``RMSPropOptimizer``.

    >>> one, zero, half = np.float32(1), np.float32(0), np.float32(0.5)
    >>> [float(x) for x in rmsprop_momentum_centered_step(one, one, half, -one, one, half, half, half, zero)]
    [0.25, 1.0, 0.75, 0.0]
    """
    rms = rms + (gradient * gradient - rms) * one_minus_rho
    mg = mg + (gradient - mg) * one_minus_rho
    momentum = mu * momentum + learning_rate * gradient / np.sqrt(rms - mg * mg + epsilon)
    return variable - momentum, rms, momentum, mg


RMSPROP_MOMENTUM_CENTERED = Rule(
    name="rmsprop_momentum_centered",
    step=rmsprop_momentum_centered_step,
    slots=("rms", "momentum", "mg"),
    scalars=("learning_rate", "one_minus_rho", "momentum", "epsilon"),
    sparse=SparseUse(variable=Rows.TOUCHED, slots=Rows.TOUCHED),
)
