"""Adam with the maximum of past second moments (AMSGrad)."""

from __future__ import annotations

from typing import Any

import numpy as np

from distopt.optimizers.rule import Rows, Rule, SparseUse


def adam_amsgrad_step(
    variable: Any,
    m: Any,
    v: Any,
    vhat: Any,
    gradient: Any,
    alpha: Any,
    beta_1: Any,  # noqa: ARG001 - the sparse form of the rule takes the same scalars
    beta_2: Any,  # noqa: ARG001
    one_minus_beta_1: Any,
    one_minus_beta_2: Any,
    epsilon: Any,
) -> Any:
    """Return ``(variable, m, v, vhat)`` after one step of Adam with AMSGrad.

        m' = m + (g - m) (1 - beta_1)
        v' = v + (g^2 - v) (1 - beta_2)
        h' = max(h, v')
        w' = w - alpha * m' / (sqrt(h') + epsilon)

    Shapes: the first five alike. All have the variable's dtype; inputs are not written to. The maximum is taken of the
    uncorrected second moment, and ``alpha`` is as in Adam.
    Source: Reddi et al. 2018, with the bias correction of tf_keras ``legacy.Adam(amsgrad=True)``.
    """
    m = m + (gradient - m) * one_minus_beta_1
    v = v + (gradient * gradient - v) * one_minus_beta_2
    vhat = np.maximum(vhat, v)
    return variable - alpha * m / (np.sqrt(vhat) + epsilon), m, v, vhat


def adam_amsgrad_step_sparse(
    variable: Any,
    m: Any,
    v: Any,
    vhat: Any,
    gradient: Any,
    alpha: Any,
    beta_1: Any,
    beta_2: Any,
    one_minus_beta_1: Any,
    one_minus_beta_2: Any,
    epsilon: Any,
) -> Any:
    """Return ``(variable, m, v, vhat)`` after one AMSGrad step with a row-sparse gradient; every row moves.

        m' = beta_1 m + (1 - beta_1) g
        v' = beta_2 v + (1 - beta_2) g^2
        h' = max(h, v')
        w' = w - alpha * m' / (sqrt(h') + epsilon)

    Shapes, units and source as for :func:`adam_amsgrad_step`.
    """
    m = beta_1 * m + one_minus_beta_1 * gradient
    v = beta_2 * v + one_minus_beta_2 * (gradient * gradient)
    vhat = np.maximum(vhat, v)
    return variable - alpha * m / (np.sqrt(vhat) + epsilon), m, v, vhat


ADAM_AMSGRAD = Rule(
    name="adam_amsgrad",
    step=adam_amsgrad_step,
    slots=("m", "v", "vhat"),
    scalars=("alpha", "beta_1", "beta_2", "one_minus_beta_1", "one_minus_beta_2", "epsilon"),
    sparse=SparseUse(variable=Rows.ALL, slots=Rows.ALL, step=adam_amsgrad_step_sparse),
)
