"""RMSprop of centered gradients without momentum, Keras convention: epsilon outside of the root."""

from __future__ import annotations

from typing import Any

import numpy as np

from distopt.optimizers.rule import Rows, Rule, SparseUse


def rmsprop_centered_step_keras(
    variable: Any, rms: Any, mg: Any, gradient: Any, learning_rate: Any, rho: Any, one_minus_rho: Any, epsilon: Any
) -> Any:
    """Return ``(variable, rms, mg)`` after one step of centered RMSprop without momentum, Keras convention.

        s' = rho s + (1 - rho) g^2
        c' = rho c + (1 - rho) g
        w' = w - lr * g / (sqrt(s' - c'^2) + epsilon)

    Shapes: the first four alike. All have the variable's dtype; inputs are not written to.
    Units: ``rms`` (s) is a mean of squares and ``mg`` (c) a mean of gradients, so ``s - c^2`` is their variance.
    Source: Graves 2013, equations 38 to 45; tf_keras ``legacy.RMSprop(centered=True)`` with momentum 0.

    >>> one, zero, half = np.float32(1), np.float32(0), np.float32(0.5)
    >>> [float(x) for x in rmsprop_centered_step_keras(one, one, -one, one, half, half, half, zero)]
    [0.5, 1.0, 0.0]
    """
    rms = rho * rms + one_minus_rho * (gradient * gradient)
    mg = rho * mg + one_minus_rho * gradient
    return variable - learning_rate * gradient / (np.sqrt(rms - mg * mg) + epsilon), rms, mg


RMSPROP_CENTERED_KERAS = Rule(
    name="rmsprop_centered_keras",
    step=rmsprop_centered_step_keras,
    slots=("rms", "mg"),
    scalars=("learning_rate", "rho", "one_minus_rho", "epsilon"),
    sparse=SparseUse(variable=Rows.TOUCHED, slots=Rows.ALL),
)
