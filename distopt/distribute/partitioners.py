"""Into how many parts a variable is cut, along one axis.

A partitioner is a function ``(shape, dtype, axis=0)`` to a list with an entry for each axis: the number of shards along
``axis``, 1 elsewhere. A scalar gives an empty list.

Source: ``tf.distribute.experimental.partitioners``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np


class Partitioner:
    """Base of the partitioners; a subclass overrides ``__call__``."""

    def __call__(self, shape: Sequence[int], dtype: Any, axis: int = 0) -> list[int]:
        """Return the number of shards along each axis."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it partitions")


class FixedShardsPartitioner(Partitioner):
    """As many shards as told, but no more than rows.

    >>> FixedShardsPartitioner(4)([3, 3], np.float32)
    [3, 1]
    """

    def __init__(self, num_shards: int) -> None:
        self._num_shards = _positive("num_shards", num_shards)

    def __call__(self, shape: Sequence[int], dtype: Any, axis: int = 0) -> list[int]:  # noqa: ARG002
        """Return ``min(num_shards, rows)`` along ``axis``."""
        return _along(shape, axis, self._num_shards)


class MinSizePartitioner(Partitioner):
    """At most ``max_shards`` shards, of at least about ``min_shard_bytes`` each.

    Units: bytes; ``bytes_per_string`` stands for the unknown length of a string element.
    """

    def __init__(self, min_shard_bytes: int = 256 << 10, max_shards: int = 1, bytes_per_string: int = 16) -> None:
        self._min_shard_bytes = _positive("min_shard_bytes", min_shard_bytes)
        self._max_shards = _positive("max_shards", max_shards)
        self._bytes_per_string = _positive("bytes_per_string", bytes_per_string)

    def __call__(self, shape: Sequence[int], dtype: Any, axis: int = 0) -> list[int]:
        """Return ``min(rows, max_shards, ceil(bytes / min_shard_bytes))`` along ``axis``, at least 1."""
        total = math.prod(shape) * _element_bytes(dtype, self._bytes_per_string)
        return _along(shape, axis, min(self._max_shards, -(-total // self._min_shard_bytes)))


class MaxSizePartitioner(Partitioner):
    """As many shards as keep each within ``max_shard_bytes``, rows being whole; at most ``max_shards``.

    Units: bytes; ``bytes_per_string`` stands for the unknown length of a string element.
    """

    def __init__(self, max_shard_bytes: int, max_shards: int | None = None, bytes_per_string: int = 16) -> None:
        self._max_shard_bytes = _positive("max_shard_bytes", max_shard_bytes)
        self._max_shards = None if max_shards is None else _positive("max_shards", max_shards)
        self._bytes_per_string = _positive("bytes_per_string", bytes_per_string)

    def __call__(self, shape: Sequence[int], dtype: Any, axis: int = 0) -> list[int]:
        """Return ``ceil(rows / rows in a shard)`` along ``axis``; a shard has at least one row."""
        if not shape:
            return []
        row_bytes = math.prod(shape) // max(shape[axis], 1) * _element_bytes(dtype, self._bytes_per_string)
        shards = -(-shape[axis] // max(1, self._max_shard_bytes // max(row_bytes, 1)))
        return _along(shape, axis, shards if self._max_shards is None else min(shards, self._max_shards))


def _along(shape: Sequence[int], axis: int, shards: int) -> list[int]:
    result = [1] * len(shape)
    if result:
        result[axis] = max(1, min(shape[axis], shards))
    return result


def _element_bytes(dtype: Any, bytes_per_string: int) -> int:
    dtype = np.dtype(dtype)
    return bytes_per_string if dtype.kind in "OSUT" else dtype.itemsize


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"{name} must be positive, not {value}")
    return value
