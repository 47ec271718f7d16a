"""Comparing bits where a NaN is like any other.

Which sign and payload an operation with a NaN gives is left open by IEEE 754 (section 6.2.3). x86 gives the first of
two NaN operands, and who is first is decided where a loop is compiled: NumPy's additions and multiplications take the
left one or the right one by the number of elements (vectors or what is left over of them), by whether one is a
scalar, and by whether the result is written over an operand. So how a sum is divided among owners decides these bits,
and no others: what is NaN is so everywhere, and nothing that is a number depends on them.
"""

from __future__ import annotations

import numpy as np

from distopt.types import Array


def with_one_nan(array: Array) -> Array:
    """Return ``array``, or, if it holds a NaN, a copy in which every NaN has the bits of ``np.nan`` in its dtype.

    >>> with_one_nan(np.array([-np.nan, -0.0], np.float16)).view(np.uint16).tolist()
    [32256, 32768]
    """
    if array.dtype.kind in "biu":
        return array
    is_nan = np.not_equal(array, array)
    if not is_nan.any():
        return array
    copy = array.copy()
    copy[is_nan] = np.nan
    return copy


def same_bits(first: Array, second: Array) -> bool:
    """Return whether two arrays of one dtype have the same shape and the same bits, a NaN being like any other.

    >>> same_bits(np.array([np.nan]), np.array([-np.nan])), same_bits(np.array([0.0]), np.array([-0.0]))
    (True, False)
    """
    if first.shape != second.shape:
        return False
    if first.tobytes() == second.tobytes():
        return True
    one, other = with_one_nan(first), with_one_nan(second)
    return one is not first and other is not second and one.tobytes() == other.tobytes()
