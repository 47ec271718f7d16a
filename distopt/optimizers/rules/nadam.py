"""Nadam: Adam with Nesterov momentum, whose momentum follows a schedule."""

from __future__ import annotations

from typing import Any

import numpy as np

from distopt.optimizers.rule import Rows, Rule, SparseUse


def nadam_step(
    variable: Any,
    m: Any,
    v: Any,
    gradient: Any,
    learning_rate: Any,
    beta_1: Any,
    beta_2: Any,
    one_minus_beta_1: Any,
    one_minus_beta_2: Any,
    one_minus_momentum: Any,
    next_momentum: Any,
    gradient_correction: Any,
    momentum_correction: Any,
    variance_correction: Any,
    epsilon: Any,
) -> Any:
    """Return ``(variable, m, v)`` after one step of Nadam.

        m' = beta_1 m + (1 - beta_1) g
        v' = beta_2 v + (1 - beta_2) g^2
        d  = (1 - mu_T) g / (1 - P_T) + mu_(T+1) m' / (1 - P_(T+1))
        w' = w - lr * d / (sqrt(v' / (1 - beta_2^T)) + epsilon)

    with the momentum ``mu_k`` of step k and ``P_k``, the product of the momenta of the steps 1 to k.

    Shapes: the first four alike. All have the variable's dtype; inputs are not written to.
    Units: ``one_minus_momentum`` is ``1 - mu_T`` and ``next_momentum`` ``mu_(T+1)``; the corrections are the divisors
        ``1 - P_T``, ``1 - P_(T+1)`` and ``1 - beta_2^T``. T counts from 1.
    Source: Dozat 2016, algorithm 2; tf_keras ``legacy.Nadam``.
    """
    m = beta_1 * m + one_minus_beta_1 * gradient
    v = beta_2 * v + one_minus_beta_2 * (gradient * gradient)
    direction = one_minus_momentum * (gradient / gradient_correction) + next_momentum * (m / momentum_correction)
    return variable - learning_rate * direction / (np.sqrt(v / variance_correction) + epsilon), m, v


NADAM = Rule(
    name="nadam",
    step=nadam_step,
    slots=("m", "v"),
    scalars=(
        "learning_rate",
        "beta_1",
        "beta_2",
        "one_minus_beta_1",
        "one_minus_beta_2",
        "one_minus_momentum",
        "next_momentum",
        "gradient_correction",
        "momentum_correction",
        "variance_correction",
        "epsilon",
    ),
    sparse=SparseUse(variable=Rows.TOUCHED, slots=Rows.ALL),
)
