"""Adam as Keras 3 has it, with and without decoupled weight decay and the maximum of past second moments."""

from __future__ import annotations

from typing import Any

import numpy as np

from distopt.optimizers.choose import maximum
from distopt.optimizers.rule import ALL_ROWS, Rule


def adam_keras3_step(
    variable: Any,
    momentum: Any,
    velocity: Any,
    gradient: Any,
    alpha: Any,
    one_minus_beta_1: Any,
    one_minus_beta_2: Any,
    epsilon: Any,
) -> Any:
    """Return ``(variable, momentum, velocity)`` after one step of Adam.

        m' = m + (g - m) (1 - beta_1)
        v' = v + (g^2 - v) (1 - beta_2)
        w' = w - m' * alpha / (sqrt(v') + epsilon)

    Shapes: the first four alike. All have the variable's dtype; inputs are not written to.
    Units: ``alpha`` is the learning rate times ``sqrt(1 - beta_2^T) / (1 - beta_1^T)``, with T counted from 1.
    Source: Kingma and Ba 2015, the remark before section 2.1; Keras 3 ``Adam``.
    """
    momentum = momentum + (gradient - momentum) * one_minus_beta_1
    velocity = velocity + (gradient * gradient - velocity) * one_minus_beta_2
    return variable - momentum * alpha / (np.sqrt(velocity) + epsilon), momentum, velocity


def adam_keras3_amsgrad_step(
    variable: Any,
    momentum: Any,
    velocity: Any,
    velocity_hat: Any,
    gradient: Any,
    alpha: Any,
    one_minus_beta_1: Any,
    one_minus_beta_2: Any,
    epsilon: Any,
) -> Any:
    """Return ``(variable, momentum, velocity, velocity_hat)`` after one step of Adam with AMSGrad.

        m' = m + (g - m) (1 - beta_1)
        v' = v + (g^2 - v) (1 - beta_2)
        h' = max(h, v')
        w' = w - m' * alpha / (sqrt(h') + epsilon)

    Shapes: the first five alike. All have the variable's dtype; inputs are not written to. Units as in
    :func:`adam_keras3_step`.
    Source: Reddi et al. 2018, with the bias correction of Keras 3 ``Adam(amsgrad=True)``.
    """
    momentum = momentum + (gradient - momentum) * one_minus_beta_1
    velocity = velocity + (gradient * gradient - velocity) * one_minus_beta_2
    velocity_hat = maximum(velocity_hat, velocity)
    return variable - momentum * alpha / (np.sqrt(velocity_hat) + epsilon), momentum, velocity, velocity_hat


def adamw_step(
    variable: Any,
    momentum: Any,
    velocity: Any,
    gradient: Any,
    alpha: Any,
    one_minus_beta_1: Any,
    one_minus_beta_2: Any,
    epsilon: Any,
    weight_decay: Any,
    learning_rate: Any,
) -> Any:
    """Return ``(variable, momentum, velocity)`` after decoupled weight decay and one step of Adam.

        w~ = w - w * weight_decay * lr
        w' = w~ - m' * alpha / (sqrt(v') + epsilon)        m', v', alpha as in adam_keras3_step

    Shapes: the first four alike. All have the variable's dtype; inputs are not written to.
    Units: ``weight_decay`` is a rate per unit of the learning rate.
    Source: Loshchilov and Hutter 2019, algorithm 2, with the decay before the step as in Keras 3 ``AdamW``.
    """
    variable = variable - variable * weight_decay * learning_rate
    momentum = momentum + (gradient - momentum) * one_minus_beta_1
    velocity = velocity + (gradient * gradient - velocity) * one_minus_beta_2
    return variable - momentum * alpha / (np.sqrt(velocity) + epsilon), momentum, velocity


def adamw_amsgrad_step(
    variable: Any,
    momentum: Any,
    velocity: Any,
    velocity_hat: Any,
    gradient: Any,
    alpha: Any,
    one_minus_beta_1: Any,
    one_minus_beta_2: Any,
    epsilon: Any,
    weight_decay: Any,
    learning_rate: Any,
) -> Any:
    """Return ``(variable, momentum, velocity, velocity_hat)`` after weight decay and one step of Adam with AMSGrad.

        w~ = w - w * weight_decay * lr
        w' = w~ - m' * alpha / (sqrt(h') + epsilon)        m', v', h', alpha as in adam_keras3_amsgrad_step

    Shapes: the first five alike. All have the variable's dtype; inputs are not written to. Units as in
    :func:`adamw_step`.
    Source: Loshchilov and Hutter 2019; Reddi et al. 2018; Keras 3 ``AdamW(amsgrad=True)``.
    """
    variable = variable - variable * weight_decay * learning_rate
    momentum = momentum + (gradient - momentum) * one_minus_beta_1
    velocity = velocity + (gradient * gradient - velocity) * one_minus_beta_2
    velocity_hat = maximum(velocity_hat, velocity)
    return variable - momentum * alpha / (np.sqrt(velocity_hat) + epsilon), momentum, velocity, velocity_hat


_SLOTS = ("momentum", "velocity")
_SCALARS = ("alpha", "one_minus_beta_1", "one_minus_beta_2", "epsilon")
_DECAY = ("weight_decay", "learning_rate")

ADAMW = Rule("adamw", adamw_step, _SLOTS, (*_SCALARS, *_DECAY), ALL_ROWS)
ADAMW_AMSGRAD = Rule("adamw_amsgrad", adamw_amsgrad_step, (*_SLOTS, "velocity_hat"), (*_SCALARS, *_DECAY), ALL_ROWS)
ADAM_KERAS3 = Rule("adam_keras3", adam_keras3_step, _SLOTS, _SCALARS, ALL_ROWS, decayed=ADAMW)
ADAM_KERAS3_AMSGRAD = Rule(
    "adam_keras3_amsgrad",
    adam_keras3_amsgrad_step,
    (*_SLOTS, "velocity_hat"),
    _SCALARS,
    ALL_ROWS,
    decayed=ADAMW_AMSGRAD,
)
