"""Lion: the sign of an interpolated momentum."""

from __future__ import annotations

from typing import Any

import numpy as np

from distopt.optimizers.rule import ALL_ROWS, Rule


def lion_step(
    variable: Any,
    momentum: Any,
    gradient: Any,
    learning_rate: Any,
    beta_1: Any,
    one_minus_beta_1: Any,
    beta_2: Any,
    one_minus_beta_2: Any,
) -> Any:
    """Return ``(variable, momentum)`` after one step of Lion.

        w' = w - lr * sign(beta_1 m + (1 - beta_1) g)
        m' = beta_2 m + (1 - beta_2) g

    Shapes: the first three alike. All have the variable's dtype; inputs are not written to. The sign of zero is zero.
    Source: Chen et al. 2023, algorithm 2; Keras 3 ``Lion``.

    >>> lion_step(1.0, 0.0, 4.0, 0.25, 0.5, 0.5, 0.75, 0.25)
    (np.float64(0.75), 1.0)
    """
    direction = np.sign(momentum * beta_1 + gradient * one_minus_beta_1)
    return variable - learning_rate * direction, momentum * beta_2 + gradient * one_minus_beta_2


def lion_step_decayed(
    variable: Any,
    momentum: Any,
    gradient: Any,
    learning_rate: Any,
    beta_1: Any,
    one_minus_beta_1: Any,
    beta_2: Any,
    one_minus_beta_2: Any,
    weight_decay: Any,
    decay_rate: Any,
) -> Any:
    """Return ``(variable, momentum)`` after decoupled weight decay and one step of Lion.

        w~ = w - w * weight_decay * lr
        w' = w~ - lr * sign(beta_1 m + (1 - beta_1) g)        m' as in lion_step

    Shapes: the first three alike. All have the variable's dtype; inputs are not written to.
    Units: ``decay_rate`` is the learning rate again, as the weight decay takes it.
    Source: Chen et al. 2023, algorithm 2; Keras 3 ``Lion``, where the decay comes before the step.
    """
    variable = variable - variable * weight_decay * decay_rate
    direction = np.sign(momentum * beta_1 + gradient * one_minus_beta_1)
    return variable - learning_rate * direction, momentum * beta_2 + gradient * one_minus_beta_2


_SCALARS = ("learning_rate", "beta_1", "one_minus_beta_1", "beta_2", "one_minus_beta_2")

LION_DECAYED = Rule(
    "lion_decayed", lion_step_decayed, ("momentum",), (*_SCALARS, "weight_decay", "decay_rate"), ALL_ROWS
)
LION = Rule("lion", lion_step, ("momentum",), _SCALARS, ALL_ROWS, decayed=LION_DECAYED)
