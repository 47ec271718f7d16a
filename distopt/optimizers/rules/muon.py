"""Muon: a momentum of matrices, made orthogonal."""

from __future__ import annotations

from typing import Any

import numpy as np

from distopt import norms
from distopt.optimizers.rule import ALL_ROWS, Kind, Rule
from distopt.types import Array


def orthogonalized(matrix: Array, iterations: Any, a: Any, b: Any, c: Any, epsilon: Any) -> Array:
    """Return ``matrix`` with singular values near one, by a quintic Newton-Schulz iteration.

        x = matrix / (norm(matrix) + epsilon)
        iterations times:  A = x x^T,  x = a x + (b A + c A A) x

    Shapes: ``[n, m]``, worked on as its transpose where ``n > m``, so that ``A`` is the smaller square. ``iterations``
    is a whole number in any dtype; the others have that of the matrix.
    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers"; Keras 3 ``Muon``.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = np.ascontiguousarray(matrix.T) if tall else matrix
    x = x / (norms.norm(x).astype(x.dtype) + epsilon)
    for _ in range(int(iterations)):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return np.ascontiguousarray(x.T) if tall else x


def muon_step(
    variable: Array,
    momentum: Array,
    gradient: Array,
    learning_rate: Any,
    mu: Any,  # noqa: ARG001 - the form with Nesterov momentum takes the same scalars
    mu_minus_one: Any,
    iterations: Any,
    a: Any,
    b: Any,
    c: Any,
    epsilon: Any,
) -> Any:
    """Return ``(variable, momentum)`` after one step of Muon without Nesterov momentum.

        m' = m + (g + m (mu - 1))
        w' = w - lr * orthogonalized(m')

    Shapes: the first three alike, ``[n, m]``. All have the variable's dtype.
    Source: Jordan et al. 2024; Keras 3 ``Muon(nesterov=False, rms_rate=None)``.
    """
    momentum = momentum + (gradient + momentum * mu_minus_one)
    return variable - learning_rate * orthogonalized(momentum, iterations, a, b, c, epsilon), momentum


def muon_nesterov_step(
    variable: Array,
    momentum: Array,
    gradient: Array,
    learning_rate: Any,
    mu: Any,
    mu_minus_one: Any,
    iterations: Any,
    a: Any,
    b: Any,
    c: Any,
    epsilon: Any,
) -> Any:
    """Return ``(variable, momentum)`` after one step of Muon.

        m' = m + (g + m (mu - 1))
        w' = w - lr * orthogonalized(g + mu m')

    Shapes: the first three alike, ``[n, m]``. All have the variable's dtype.
    Source: Jordan et al. 2024; Keras 3 ``Muon(rms_rate=None)``.
    """
    momentum = momentum + (gradient + momentum * mu_minus_one)
    return variable - learning_rate * orthogonalized(gradient + mu * momentum, iterations, a, b, c, epsilon), momentum


def muon_rms_step(
    variable: Array,
    momentum: Array,
    gradient: Array,
    learning_rate: Any,
    mu: Any,  # noqa: ARG001 - the form with Nesterov momentum takes the same scalars
    mu_minus_one: Any,
    iterations: Any,
    a: Any,
    b: Any,
    c: Any,
    epsilon: Any,
    rms_rate: Any,
) -> Any:
    """Return ``(variable, momentum)`` after one step of Muon without Nesterov momentum, as long as a step of Adam.

        m' = m + (g + m (mu - 1))
        w' = w - lr * orthogonalized(m') * sqrt(max(n, m)) * rms_rate

    Shapes: the first three alike, ``[n, m]``. All have the variable's dtype.
    Units: ``rms_rate`` is the root mean square of the step, in units of the learning rate.
    Source: Jordan et al. 2024; Liu et al. 2025, "Muon is scalable for LLM training", section 2.2; Keras 3
        ``Muon(nesterov=False)``.
    """
    momentum = momentum + (gradient + momentum * mu_minus_one)
    step = learning_rate * orthogonalized(momentum, iterations, a, b, c, epsilon)
    return variable - step * root_of_longer_side(variable) * rms_rate, momentum


def muon_nesterov_rms_step(
    variable: Array,
    momentum: Array,
    gradient: Array,
    learning_rate: Any,
    mu: Any,
    mu_minus_one: Any,
    iterations: Any,
    a: Any,
    b: Any,
    c: Any,
    epsilon: Any,
    rms_rate: Any,
) -> Any:
    """Return ``(variable, momentum)`` after one step of Muon, as long as a step of Adam.

        m' = m + (g + m (mu - 1))
        w' = w - lr * orthogonalized(g + mu m') * sqrt(max(n, m)) * rms_rate

    Shapes, units and source as for :func:`muon_rms_step`.
    """
    momentum = momentum + (gradient + momentum * mu_minus_one)
    step = learning_rate * orthogonalized(gradient + mu * momentum, iterations, a, b, c, epsilon)
    return variable - step * root_of_longer_side(variable) * rms_rate, momentum


def root_of_longer_side(matrix: Array) -> Any:
    """Return ``sqrt(max(n, m))`` of a matrix ``[n, m]``, in its dtype.

    >>> float(root_of_longer_side(np.zeros((2, 16))))
    4.0
    """
    return np.sqrt(matrix.dtype.type(max(matrix.shape)))


_SCALARS = ("learning_rate", "mu", "mu_minus_one", "iterations", "a", "b", "c", "epsilon")
_RMS_SCALARS = (*_SCALARS, "rms_rate")

MUON = Rule("muon", muon_step, ("momentum",), _SCALARS, ALL_ROWS, Kind.WHOLE_VARIABLE)
MUON_NESTEROV = Rule("muon_nesterov", muon_nesterov_step, ("momentum",), _SCALARS, ALL_ROWS, Kind.WHOLE_VARIABLE)
MUON_RMS = Rule("muon_rms", muon_rms_step, ("momentum",), _RMS_SCALARS, ALL_ROWS, Kind.WHOLE_VARIABLE)
MUON_NESTEROV_RMS = Rule(
    "muon_nesterov_rms", muon_nesterov_rms_step, ("momentum",), _RMS_SCALARS, ALL_ROWS, Kind.WHOLE_VARIABLE
)
