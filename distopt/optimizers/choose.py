"""Choices between two values that a rule may make: fast on arrays and in a compiled loop, with the same bits.

``np.where`` is no choice for a rule: compiled, on the single elements of a loop, it makes arrays, and is some hundred
times slower than these. ``np.abs``, ``np.sign`` and ``np.sqrt`` are as they should be.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from distopt import kernels


def select(condition: Any, a: Any, b: Any) -> Any:
    """Return ``a`` where ``condition`` holds, else ``b``; both are computed.

    Shapes: alike, or scalars. ``condition`` is a comparison, or several joined by ``&`` and ``|``; ``a`` and ``b`` have
    the variable's dtype.

    >>> select(np.array([1.0, -2.0]) > 0.0, 5.0, 7.0)
    array([5., 7.])
    """
    return np.where(condition, a, b)


def maximum(a: Any, b: Any) -> Any:
    """Return the larger of ``a`` and ``b``; NaN if one is; ``a`` if both are zeros, whatever their signs.

    The sign that ``np.maximum`` gives to a zero depends on the processor.

    >>> maximum(np.array([1.0, np.nan, 3.0, -0.0]), np.array([2.0, 2.0, np.nan, 0.0]))
    array([ 2., nan, nan, -0.])
    """
    return select((a >= b) | (a != a), a, b)


def minimum(a: Any, b: Any) -> Any:
    """Return the smaller of ``a`` and ``b``; NaN if one is; ``a`` if both are zeros, whatever their signs.

    >>> minimum(np.array([1.0, np.nan, 3.0, -0.0]), np.array([2.0, 2.0, np.nan, 0.0]))
    array([ 1., nan, nan, -0.])
    """
    return select((a <= b) | (a != a), a, b)


def _select_scalar(condition: Any, a: Any, b: Any) -> Any:
    return a if condition else b


kernels.compile_as(select, _select_scalar)
