"""Gradient clipping by value, by norm and by global norm.

All arithmetic is in the gradient's dtype, the norms are canonical (:mod:`distopt.norms`). What comes back is of the
kind that went in: an array, a Tensor or IndexedSlices. A row-sparse gradient is clipped as it is, row by row: duplicate
indices are not summed first. Its sum of squares is that of the rows of each replica, added along the canonical tree
over replicas.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from distopt import norms
from distopt.indexed_slices import IndexedSlices
from distopt.marks import inherit
from distopt.tensor import Tensor
from distopt.types import Array

SumOfSquares = Callable[[Array], Any]
"""``norms.sum_of_squares``, or a faster function with the same bits."""


def values_of(gradient: Any) -> Array:
    """Return the numbers of a gradient as an array: for IndexedSlices those of its rows."""
    return np.asarray(gradient.values if isinstance(gradient, IndexedSlices) else gradient)


def with_values(gradient: Any, values: Array) -> Any:
    """Return a gradient of the kind of ``gradient`` that holds ``values`` instead."""
    if isinstance(gradient, IndexedSlices):
        return gradient.with_values(values)
    clipped = Tensor(values) if isinstance(gradient, Tensor) else values
    inherit(values_of(gradient), values_of(clipped))
    return clipped


def squares_of(gradient: Any, sum_of_squares: SumOfSquares = norms.sum_of_squares) -> Any:
    """Return the canonical sum of squares of a gradient, for IndexedSlices of its rows as they are stored.

    >>> squares_of(IndexedSlices(np.array([[3.0], [4.0]]), [0, 0]))
    np.float64(25.0)
    """
    values = values_of(gradient)
    counts = gradient.row_counts if isinstance(gradient, IndexedSlices) else None
    if counts is None:
        return sum_of_squares(values)
    return norms.add_sums(np.array([sum_of_squares(rows) for rows in np.split(values, np.cumsum(counts)[:-1])]))


def clip_by_value(gradient: Any, clip_value_min: float, clip_value_max: float) -> Any:
    """Return ``min(max(g, clip_value_min), clip_value_max)``; NaN stays NaN.

    >>> clip_by_value(np.array([-3.0, 0.5, 4.0]), -1.0, 2.0)
    array([-1. ,  0.5,  2. ])
    """
    values = values_of(gradient)
    low, high = values.dtype.type(clip_value_min), values.dtype.type(clip_value_max)
    return with_values(gradient, np.minimum(np.maximum(values, low), high))


def clip_by_norm(gradient: Any, clip_norm: float, sum_of_squares: SumOfSquares = norms.sum_of_squares) -> Any:
    """Return ``g * c / max(norm(g), c)`` with the norm over all elements; a negative ``c`` counts as zero.

    So zero stays zero, unless ``c`` is zero, too: then it is NaN, as in the reference.

    >>> clip_by_norm(np.array([3.0, 4.0]), 1.0)
    array([0.6, 0.8])
    """
    values = values_of(gradient)
    limit, divisor = norm_limit(squares_of(gradient, sum_of_squares), clip_norm, values.dtype)
    with np.errstate(all="ignore"):
        return with_values(gradient, values * limit / divisor)


def clip_by_global_norm(
    gradients: Sequence[Any], clip_norm: float, sum_of_squares: SumOfSquares = norms.sum_of_squares
) -> tuple[list[Any], Any]:
    """Return the gradients times ``c * min(1 / N, 1 / c)``, and N, the norm over all of them; None entries stay None.

    If N is not finite, everything becomes NaN.

    >>> clip_by_global_norm([np.array([3.0]), None, np.array([4.0])], 1.0)
    ([array([0.6]), None, array([0.8])], np.float64(5.0))
    """
    total = add_totals([squares_of(gradient, sum_of_squares) for gradient in gradients if gradient is not None])
    clipped: list[Any] = []
    with np.errstate(all="ignore"):
        for gradient in gradients:
            if gradient is None:
                clipped.append(None)
                continue
            values = values_of(gradient)
            clipped.append(with_values(gradient, values * global_scale(total, clip_norm, values.dtype)))
    return clipped, np.sqrt(total)


def global_norm(gradients: Sequence[Any]) -> Any:
    """Return the L2 norm over all elements of all gradients; None entries are skipped."""
    return np.sqrt(add_totals([squares_of(gradient) for gradient in gradients if gradient is not None]))


def norm_limit(sum_of_squares: Any, clip_norm: float, dtype: np.dtype[Any]) -> tuple[Any, Any]:
    """Return ``(c, max(norm, c))`` in ``dtype``: what a gradient is multiplied by and then divided by."""
    limit = dtype.type(max(clip_norm, 0.0))
    with np.errstate(all="ignore"):
        return limit, np.maximum(np.sqrt(sum_of_squares).astype(dtype), limit)


def global_scale(sum_of_squares: Any, clip_norm: float, dtype: np.dtype[Any]) -> Any:
    """Return ``c * min(1 / N, 1 / c)`` in ``dtype``; NaN if N is not finite."""
    one, limit = dtype.type(1), dtype.type(clip_norm)
    with np.errstate(all="ignore"):
        length = np.sqrt(sum_of_squares).astype(dtype)
        if not math.isfinite(length):
            return dtype.type(np.nan)
        of_norm, of_limit = one / length, one / limit  # only the second may be NaN
        return limit * (of_norm if of_norm < of_limit else of_limit)


def add_totals(totals: Sequence[Any]) -> Any:
    """Return the canonical sum of the variables' sums of squares, in the widest of their dtypes.

    Zero, as float32, if there are none.
    """
    dtypes = {total.dtype for total in totals} or {np.dtype(np.float32)}
    return norms.add_sums(np.array(totals, np.result_type(*dtypes) if len(dtypes) > 1 else dtypes.pop()))
