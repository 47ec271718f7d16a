"""LAMB: Adam's direction, as long as the variable is."""

from __future__ import annotations

from typing import Any

import numpy as np

from distopt.optimizers.choose import select
from distopt.optimizers.rule import ALL_ROWS, AfterNorms, Kind, Rule


def lamb_direction_step(
    variable: Any,  # noqa: ARG001 - the direction does not depend on it; its norm comes in afterwards
    momentum: Any,
    velocity: Any,
    gradient: Any,
    one_minus_beta_1: Any,
    one_minus_beta_2: Any,
    correction_1: Any,
    correction_2: Any,
    epsilon: Any,
) -> Any:
    """Return ``(direction, momentum, velocity)``: the first pass of a step of LAMB.

        m' = m + (g - m) (1 - beta_1)
        v' = v + (g^2 - v) (1 - beta_2)
        u  = (m' / (1 - beta_1^T)) / (sqrt(v' / (1 - beta_2^T)) + epsilon)

    Shapes: the first four alike. All have the variable's dtype; inputs are not written to.
    Units: ``correction_i`` is ``1 - beta_i^T``, with T counted from 1.
    Source: You et al. 2020, algorithm 2; Keras 3 ``Lamb``.
    """
    momentum = momentum + (gradient - momentum) * one_minus_beta_1
    velocity = velocity + (gradient * gradient - velocity) * one_minus_beta_2
    return (momentum / correction_1) / (np.sqrt(velocity / correction_2) + epsilon), momentum, velocity


def lamb_factor(variable_norm: Any, direction_norm: Any, one: Any) -> Any:
    """Return the trust ratio ``norm(w) / norm(u)``; one where either is not above zero.

    Source: You et al. 2020, algorithm 2, with the identity for ``phi``; Keras 3 ``Lamb``.

    >>> one, zero = np.float64(1), np.float64(0)
    >>> with np.errstate(divide="ignore"):
    ...     float(lamb_factor(3 * one, 2 * one, one)), float(lamb_factor(3 * one, zero, one))
    (1.5, 1.0)
    """
    zero = one - one
    return select((variable_norm > zero) & (direction_norm > zero), variable_norm / direction_norm, one)


def lamb_move_step(variable: Any, direction: Any, factor: Any, learning_rate: Any) -> Any:
    """Return the variable after the second pass of a step of LAMB.

        w' = w - r * lr * u

    Shapes: variable and direction alike; ``factor`` is :func:`lamb_factor` of the whole variable.
    Source: You et al. 2020, algorithm 2; Keras 3 ``Lamb``.
    """
    return variable - factor * learning_rate * direction


LAMB_MOVE = Rule("lamb_move", lamb_move_step, (), ("factor", "learning_rate"), ALL_ROWS)
LAMB = Rule(
    name="lamb",
    step=lamb_direction_step,
    slots=("momentum", "velocity"),
    scalars=("one_minus_beta_1", "one_minus_beta_2", "correction_1", "correction_2", "epsilon"),
    sparse=ALL_ROWS,
    kind=Kind.AFTER_NORMS,
    after_norms=AfterNorms(lamb_factor, LAMB_MOVE),
)
