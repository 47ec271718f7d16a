"""Adafactor: second moments of matrices kept as a row and a column."""

from __future__ import annotations

from typing import Any

import numpy as np

from distopt import norms
from distopt.optimizers.choose import maximum
from distopt.optimizers.rule import ALL_ROWS, Kind, Rule
from distopt.types import Array, Shape


def root_mean_square(x: Array, size: Any) -> Any:
    """Return ``sqrt(sum(x^2) / size)`` in the dtype of ``x``; the sum is the canonical one.

    >>> root_mean_square(np.array([3.0, 4.0]), np.float64(2.0)).round(3)
    np.float64(3.536)
    """
    return np.sqrt(norms.sum_of_squares(x).astype(x.dtype) / size)


def adafactor_step(
    variable: Array,
    r: Array,
    c: Array,
    v: Array,
    gradient: Array,
    rho: Any,
    beta: Any,
    one_minus_beta: Any,
    epsilon_1: Any,
    epsilon_2: Any,
    clip_threshold: Any,
    one: Any,
) -> Any:
    """Return ``(variable, r, c, v)`` after one step of Adafactor on a vector or scalar; ``r`` and ``c`` stay unused.

        v' = beta v + (1 - beta) (g^2 + epsilon_1)
        u  = g / sqrt(v')
        w' = w - max(epsilon_2, rms(w)) rho u / max(1, rms(u) / clip_threshold)

    Shapes: variable, ``v`` and gradient alike, ``r`` and ``c`` scalars. All have the variable's dtype.
    Units: ``rho`` is the step relative to the size of the variable; ``beta`` is ``1 - T^beta_2_decay``.
    Source: Shazeer and Stern 2018, algorithm 5; Keras 3 ``Adafactor``.
    """
    v = beta * v + one_minus_beta * (gradient * gradient + epsilon_1)
    return _moved(variable, gradient / np.sqrt(v), rho, epsilon_2, clip_threshold, one), r, c, v


def adafactor_factored_step(
    variable: Array,
    r: Array,
    c: Array,
    v: Array,
    gradient: Array,
    rho: Any,
    beta: Any,
    one_minus_beta: Any,
    epsilon_1: Any,
    epsilon_2: Any,
    clip_threshold: Any,
    one: Any,
) -> Any:
    """Return ``(variable, r, c, v)`` after one step of Adafactor on a variable of two or more dimensions.

        s  = g^2 + epsilon_1
        r' = beta r + (1 - beta) mean(s, last axis)
        c' = beta c + (1 - beta) mean(s, last but one axis)
        v' = (r' / mean(r', last axis)) (outer product) c'
        u  = g / sqrt(v')
        w' = w - max(epsilon_2, rms(w)) rho u / max(1, rms(u) / clip_threshold)

    Shapes: variable, ``v`` and gradient ``[..., n, m]``, ``r`` ``[..., n]``, ``c`` ``[..., m]``. All have the
    variable's dtype.
    Units: as in :func:`adafactor_step`.
    Source: Shazeer and Stern 2018, algorithm 4; Keras 3 ``Adafactor``.
    """
    squares = gradient * gradient + epsilon_1
    r = beta * r + one_minus_beta * np.mean(squares, axis=-1)
    c = beta * c + one_minus_beta * np.mean(squares, axis=-2)
    v = (r / np.mean(r, axis=-1, keepdims=True))[..., np.newaxis] * c[..., np.newaxis, :]
    return _moved(variable, gradient / np.sqrt(v), rho, epsilon_2, clip_threshold, one), r, c, v


def _moved(variable: Array, update: Array, rho: Any, epsilon_2: Any, clip_threshold: Any, one: Any) -> Any:
    size = variable.dtype.type(variable.size)
    alpha = maximum(epsilon_2, root_mean_square(variable, size)) * rho
    return variable - alpha * (update / maximum(one, root_mean_square(update, size) / clip_threshold))


def unfactored_shapes(shape: Shape) -> tuple[Shape, ...]:
    """Return the shapes of ``r``, ``c`` and ``v`` of a vector or scalar."""
    return (), (), shape


def factored_shapes(shape: Shape) -> tuple[Shape, ...]:
    """Return the shapes of ``r``, ``c`` and ``v`` of a variable of two or more dimensions.

    >>> factored_shapes((4, 3))
    ((4,), (3,), (4, 3))
    """
    return shape[:-1], (*shape[:-2], shape[-1]), shape


_SLOTS = ("r", "c", "v")
_SCALARS = ("rho", "beta", "one_minus_beta", "epsilon_1", "epsilon_2", "clip_threshold", "one")

ADAFACTOR = Rule(
    "adafactor", adafactor_step, _SLOTS, _SCALARS, ALL_ROWS, Kind.WHOLE_VARIABLE, slot_shapes=unfactored_shapes
)
ADAFACTOR_FACTORED = Rule(
    "adafactor_factored",
    adafactor_factored_step,
    _SLOTS,
    _SCALARS,
    ALL_ROWS,
    Kind.WHOLE_VARIABLE,
    slot_shapes=factored_shapes,
)
