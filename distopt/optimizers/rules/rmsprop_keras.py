"""RMSprop without momentum, Keras convention: epsilon outside of the root."""

from __future__ import annotations

from typing import Any

import numpy as np

from distopt.optimizers.rule import Rows, Rule, SparseUse


def rmsprop_step_keras(
    variable: Any, rms: Any, gradient: Any, learning_rate: Any, rho: Any, one_minus_rho: Any, epsilon: Any
) -> Any:
    """Return ``(variable, rms)`` after one step of RMSprop without momentum, Keras convention.

        s' = rho s + (1 - rho) g^2
        w' = w - lr * g / (sqrt(s') + epsilon)

    Shapes: the first three alike. All have the variable's dtype; inputs are not written to.
    Units: ``rms`` is a square of gradients, before the root is taken. With momentum, Keras adds epsilon inside of the
        root: ``rmsprop_momentum_step``.
    Source: Tieleman and Hinton 2012, lecture 6.5; tf_keras ``legacy.RMSprop`` with momentum 0.

    >>> one, zero, half = np.float32(1), np.float32(0), np.float32(0.5)
    >>> [float(x) for x in rmsprop_step_keras(one, one, one, half, half, half, zero)]
    [0.5, 1.0]
    """
    rms = rho * rms + one_minus_rho * (gradient * gradient)
    return variable - learning_rate * gradient / (np.sqrt(rms) + epsilon), rms


RMSPROP_KERAS = Rule(
    name="rmsprop_keras",
    step=rmsprop_step_keras,
    slots=("rms",),
    scalars=("learning_rate", "rho", "one_minus_rho", "epsilon"),
    sparse=SparseUse(variable=Rows.TOUCHED, slots=Rows.ALL),
)
