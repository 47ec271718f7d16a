"""``IndexedSlices``: a gradient given by some rows of a larger tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from distopt.row_sums import RowSum, sum_occurrences, sum_of_replicas
from distopt.tensor import Operand, Tensor
from distopt.types import Array, Shape


class IndexedSlices:
    """Row ``i`` of ``values`` adds to row ``indices[i]`` of a tensor of ``dense_shape``; duplicates mean their sum.

    Shapes: ``values`` is ``[n, ...]``, ``indices`` is ``[n]`` of integers.

    ``row_counts``: how many rows each replica gave, in the order of replicas, where they come from several (see
    :meth:`concatenate`); else None. It decides the order in which duplicates are summed.

    ``is_merged``: whether no duplicates are left, as whoever has summed them can tell; a merge then looks for none.

    Raises: ValueError if the lengths differ; TypeError if ``indices`` are not integers.

    >>> IndexedSlices(np.float32([[1], [2], [4]]), [1, 0, 1], (3, 1)).to_dense()
    array([[2.],
           [5.],
           [0.]], dtype=float32)
    """

    __slots__ = ("dense_shape", "indices", "is_merged", "row_counts", "values")

    def __init__(self, values: Any, indices: Any, dense_shape: Sequence[int] | None = None) -> None:
        self.values = values if isinstance(values, Tensor) else Tensor(values)
        array = indices.numpy() if isinstance(indices, Operand) else np.asarray(indices)
        if array.size == 0:
            array = array.astype(np.int64)
        if array.dtype.kind not in "iu":
            raise TypeError(f"the indices of IndexedSlices must be integers, not {array.dtype}")
        shape = self.values.shape
        if array.ndim != 1 or not shape or shape[0] != len(array):
            raise ValueError(f"IndexedSlices with values of shape {shape} needs as many indices, not {array.shape}")
        self.indices: Array = array
        self.dense_shape: Shape | None = None if dense_shape is None else tuple(int(n) for n in dense_shape)
        self.row_counts: tuple[int, ...] | None = None
        self.is_merged = False

    @classmethod
    def concatenate(cls, of_replicas: Sequence[IndexedSlices]) -> IndexedSlices:
        """Return the rows of all replicas, in the order of replicas, duplicates kept; indices become int64."""
        values = np.concatenate([slices.values.numpy() for slices in of_replicas])
        indices = np.concatenate([slices.indices.astype(np.int64, copy=False) for slices in of_replicas])
        whole = cls(values, indices, of_replicas[0].dense_shape)
        whole.row_counts = tuple(len(slices.indices) for slices in of_replicas)
        return whole

    @classmethod
    def of_sum(cls, rows: RowSum, dense_shape: Sequence[int] | None = None) -> IndexedSlices:
        """Return rows of which none comes twice."""
        slices = cls(rows.values, rows.indices, dense_shape)
        slices.is_merged = True
        return slices

    def with_values(self, values: Any) -> IndexedSlices:
        """Return the same rows of the same replicas with other ``values``."""
        return self._like(IndexedSlices(values, self.indices, self.dense_shape))

    def with_shape(self, dense_shape: Sequence[int]) -> IndexedSlices:
        """Return the same rows of a tensor of ``dense_shape``."""
        return self._like(IndexedSlices(self.values, self.indices, dense_shape))

    def _like(self, other: IndexedSlices) -> IndexedSlices:
        """Return ``other``, which has the same rows of the same replicas."""
        other.row_counts, other.is_merged = self.row_counts, self.is_merged
        return other

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the values."""
        return self.values.dtype

    @property
    def shape(self) -> Shape | None:
        """The shape of the dense tensor, if known."""
        return self.dense_shape

    def to_dense(self) -> Array:
        """Return the dense array; duplicates are summed as in :meth:`merged`.

        Raises: ValueError if ``dense_shape`` is not known; IndexError for a row outside of it.
        """
        if self.dense_shape is None:
            raise ValueError("IndexedSlices without dense_shape cannot be made dense")
        slices = self if self.row_counts is None else self.merged()
        return scatter_rows(slices.values.numpy(), slices.indices, self.dense_shape)

    def merged(self) -> IndexedSlices:
        """Return slices without duplicate indices, in order of first occurrence.

        Duplicates are summed in the canonical order: left to right within a replica, then by the tree over the replicas
        that have the row; see :mod:`distopt.canonical_sum`.
        """
        if self.is_merged:
            return self
        values = self.values.numpy()
        if self.row_counts is not None:
            total = sum_of_replicas(self.indices, values, self.row_counts)
        else:
            total = sum_occurrences(self.indices, values)
            if total.values is values:
                return self
        return IndexedSlices.of_sum(total, self.dense_shape)

    def numpy(self) -> Array:
        """Return :meth:`to_dense`."""
        return self.to_dense()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.array(self.to_dense(), dtype=dtype)

    def __neg__(self) -> IndexedSlices:
        return self.with_values(-self.values)

    def __mul__(self, factor: Any) -> IndexedSlices:
        """Scale all rows by a number."""
        return self.with_values(self.values * factor)

    __rmul__ = __mul__

    def __truediv__(self, divisor: Any) -> IndexedSlices:
        return self.with_values(self.values / divisor)

    def __repr__(self) -> str:
        return f"IndexedSlices(indices={self.indices}, values={self.values!r}, dense_shape={self.dense_shape})"


def scatter_rows(values: Array, indices: Array, shape: Shape) -> Array:
    """Return zeros of ``shape`` to which row ``i`` of ``values`` was added at row ``indices[i]``, from left to right.

    Raises: IndexError for a row outside of ``shape``.
    """
    if indices.size and (indices.min() < 0 or indices.max() >= shape[0]):
        wrong = indices[(indices < 0) | (indices >= shape[0])][0]
        raise IndexError(f"row {wrong} does not exist in a tensor of shape {shape}")
    dense = np.zeros(shape, values.dtype)
    np.add.at(dense, indices, values)
    return dense
