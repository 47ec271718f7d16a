"""Adam, with epsilon outside the uncorrected root ("epsilon hat")."""

from __future__ import annotations

from typing import Any

import numpy as np

from distopt.optimizers.rule import Rows, Rule, SparseUse


def adam_step(
    variable: Any,
    m: Any,
    v: Any,
    gradient: Any,
    alpha: Any,
    beta_1: Any,  # noqa: ARG001 - the sparse form of the rule takes the same scalars
    beta_2: Any,  # noqa: ARG001
    one_minus_beta_1: Any,
    one_minus_beta_2: Any,
    epsilon: Any,
) -> Any:
    """Return ``(variable, m, v)`` after one step of Adam.

        m' = m + (g - m) (1 - beta_1)
        v' = v + (g^2 - v) (1 - beta_2)
        w' = w - alpha * m' / (sqrt(v') + epsilon)

    Shapes: the first four alike. All have the variable's dtype; inputs are not written to.
    Units: ``alpha`` is the learning rate times ``sqrt(1 - beta_2^T) / (1 - beta_1^T)``, with T counted from 1.
    Source: Kingma and Ba 2015, the remark before section 2.1; tf_keras ``legacy.Adam``.
    """
    m = m + (gradient - m) * one_minus_beta_1
    v = v + (gradient * gradient - v) * one_minus_beta_2
    return variable - alpha * m / (np.sqrt(v) + epsilon), m, v


def adam_step_sparse(
    variable: Any,
    m: Any,
    v: Any,
    gradient: Any,
    alpha: Any,
    beta_1: Any,
    beta_2: Any,
    one_minus_beta_1: Any,
    one_minus_beta_2: Any,
    epsilon: Any,
) -> Any:
    """Return ``(variable, m, v)`` after one step of Adam with a row-sparse gradient; not lazy: every row moves.

        m' = beta_1 m + (1 - beta_1) g
        v' = beta_2 v + (1 - beta_2) g^2
        w' = w - alpha * m' / (sqrt(v') + epsilon)

    In exact arithmetic this is :func:`adam_step`; it rounds as the reference's sparse update does, where rows without a
    gradient are multiplied by ``beta`` alone. Shapes, units and source as there.
    """
    m = beta_1 * m + one_minus_beta_1 * gradient
    v = beta_2 * v + one_minus_beta_2 * (gradient * gradient)
    return variable - alpha * m / (np.sqrt(v) + epsilon), m, v


ADAM = Rule(
    name="adam",
    step=adam_step,
    slots=("m", "v"),
    scalars=("alpha", "beta_1", "beta_2", "one_minus_beta_1", "one_minus_beta_2", "epsilon"),
    sparse=SparseUse(variable=Rows.ALL, slots=Rows.ALL, step=adam_step_sparse),
)
