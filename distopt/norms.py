"""The canonical norm: one order of additions, whoever holds which part of a variable.

Theory of operation. The squares of a variable are added in three levels. *Blocks* of ``BLOCK`` elements start at the
variable's first element. Inside a block, lane ``j`` of ``LANES`` adds elements ``j``, ``j + 8``, ``j + 16``, ... left
to right, and a binary tree adds the lanes. The canonical tree (:mod:`distopt.canonical_sum`) adds the blocks. A short
last block is as if it were filled with zeros, because adding zero to a sum of squares changes no bit. So owners of
different blocks compute their parts alone, and the total depends on nothing but the values.

float16 and bfloat16 add up in float32; the others in their own dtype.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from distopt.arena import BLOCK
from distopt.types import Array

LANES = 8

_FEW = 24
"""Numbers up to which Python's loop is faster than NumPy's calls."""


def accumulation_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype in which squares of ``dtype`` are added up: float32, or float64 for float64."""
    return np.dtype(np.float64) if dtype == np.float64 else np.dtype(np.float32)


def number_of_blocks(size: int) -> int:
    """Return how many blocks ``size`` elements fill."""
    return -(-size // BLOCK)


def block_sums(values: Array) -> Array:
    """Return the sum of squares of each block of the flat ``values``; shape ``[number_of_blocks(size)]``.

    The dtype is :func:`accumulation_dtype`. This is the NumPy form; :mod:`distopt.optimizers.kernels` compiles another.

    >>> block_sums(np.full(4100, 0.5, np.float32)).tolist()
    [1024.0, 1.0]
    """
    dtype = accumulation_dtype(values.dtype)
    blocks = number_of_blocks(values.size)
    padded = np.zeros(blocks * BLOCK, dtype)
    padded[: values.size] = values
    with np.errstate(all="ignore"):
        np.multiply(padded, padded, out=padded)
        return _added_by_block(padded)


def _added_by_block(padded: Array) -> Array:
    # Reduced over the middle axis, rows are added one after another: this is the left-to-right order of the lanes.
    lanes = np.add.reduce(padded.reshape(-1, BLOCK // LANES, LANES), axis=1)
    pairs = lanes[:, 0::2] + lanes[:, 1::2]
    fours = pairs[:, 0::2] + pairs[:, 1::2]
    sums: Array = fours[:, 0] + fours[:, 1]
    return sums


def add_sums(sums: Array) -> Any:
    """Return the canonical sum of the flat ``sums``, a scalar of their dtype; zero if there are none.

    Adding neighbours, level by level, and carrying an odd last one up unchanged, is the tree of ``canonical_sum``.

    >>> float(add_sums(np.arange(5.0)))
    10.0
    """
    if sums.size == 0:
        return sums.dtype.type(0)
    with np.errstate(all="ignore"):
        if sums.size <= _FEW:
            return _add_few(list(sums))
        while sums.size > 1:
            even = sums.size // 2 * 2
            added = sums[0:even:2] + sums[1:even:2]
            sums = np.concatenate((added, sums[even:])) if even < sums.size else added
    return sums[0]


def _add_few(sums: list[Any]) -> Any:
    while len(sums) > 1:
        even = len(sums) // 2 * 2
        sums = [left + right for left, right in zip(sums[0:even:2], sums[1:even:2], strict=True)] + sums[even:]
    return sums[0]


def sum_of_squares(values: Array) -> Any:
    """Return the canonical sum of squares of ``values``, of any shape; a scalar of :func:`accumulation_dtype`."""
    return add_sums(block_sums(values.reshape(-1)))


def dot(a: Array, b: Array) -> float:
    """Return the inner product of two arrays of equal shape, in float64 and in the order of additions of a norm.

    >>> dot(np.array([1.0, 2.0], np.float32), np.array([3.0, 4.0], np.float32))
    11.0
    """
    products = np.zeros(number_of_blocks(a.size) * BLOCK)
    with np.errstate(all="ignore"):
        np.multiply(a.reshape(-1), b.reshape(-1), out=products[: a.size], dtype=np.float64)
        return float(add_sums(_added_by_block(products)))


def norm(values: Array) -> Any:
    """Return the canonical L2 norm of ``values``, of any shape; a scalar of :func:`accumulation_dtype`.

    >>> float(norm(np.array([[3.0], [4.0]])))
    5.0
    """
    return np.sqrt(sum_of_squares(values))
