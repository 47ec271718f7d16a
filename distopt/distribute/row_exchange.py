"""Row-sparse gradients on their way between the processes of an all-reduce.

Each process tells all others the rows of what it contributes, of all gradients in one payload::

    for each gradient, 1 where all replicas here have it row-sparse, else 0                       uint8
    for each node of the sum tree that it contributes, the number of rows of each gradient        int64
    for each of these nodes and gradients, indices (int64), then values

So a gradient that is dense anywhere is known to be so everywhere, and the bytes are those of the rows, never of the
tables. Every part starts at a multiple of eight bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeAlias

import numpy as np

from distopt.canonical_sum import Node
from distopt.comm.communicator import Communicator, Hosting
from distopt.errors import RemoteProtocolError
from distopt.indexed_slices import IndexedSlices
from distopt.row_sums import RowSum, add_row_sums, sum_occurrences
from distopt.types import Array

Column: TypeAlias = Sequence[Any]
"""The gradients of one variable, of each hosted replica, or of one stand-in where none is hosted."""

RowsByNode: TypeAlias = Mapping[Node, RowSum]
Combine: TypeAlias = Callable[[Sequence[Column], bytes], list[IndexedSlices | None]]
"""Bring together the rows of each column, under a label; None for one that is dense somewhere."""


def sum_rows(
    hosting: Hosting, rank: int, communicator: Communicator | None, columns: Sequence[Column], label: bytes = b""
) -> list[IndexedSlices | None]:
    """Return the canonical sum over all replicas of each row-sparse column; subtrees are added up where they are."""
    own = [_sums(hosting, rank, column) if is_row_sparse(column) else None for column in columns]
    found = own if communicator is None else _all_gather(communicator, rank, hosting.covers, own, columns, label)
    return [
        None if rows is None else IndexedSlices.of_sum(add_row_sums(hosting.tree, rows), column[0].shape)
        for rows, column in zip(found, columns, strict=True)
    ]


def gather_rows(
    hosting: Hosting, rank: int, communicator: Communicator | None, columns: Sequence[Column], label: bytes = b""
) -> list[IndexedSlices | None]:
    """Return the rows of all replicas as they were stored, in replica order, of each row-sparse column."""
    own = [_stored(hosting, rank, column) if is_row_sparse(column) else None for column in columns]
    found = own if communicator is None else _all_gather(communicator, rank, hosting.leaves, own, columns, label)
    return [
        None if rows is None else IndexedSlices.concatenate([_slices(rows[node], column) for node in sorted(rows)])
        for rows, column in zip(found, columns, strict=True)
    ]


def is_row_sparse(column: Column) -> bool:
    """Return whether every hosted replica has the gradient row-sparse."""
    return all(isinstance(gradient, IndexedSlices) for gradient in column)


def _stored(hosting: Hosting, rank: int, column: Column) -> RowsByNode:
    return {
        leaf: RowSum(slices.indices.astype(np.int64, copy=False), slices.values.numpy())
        for leaf, slices in zip(hosting.leaves[rank], column, strict=False)  # a stand-in contributes nothing
    }


def _sums(hosting: Hosting, rank: int, column: Column) -> RowsByNode:
    sums = {leaf: sum_occurrences(*rows) for leaf, rows in _stored(hosting, rank, column).items()}
    return {node: add_row_sums(hosting.tree, sums, node) for node in hosting.covers[rank]}


def _slices(rows: RowSum, column: Column) -> IndexedSlices:
    return IndexedSlices(rows.values, rows.indices, column[0].shape)


# --------------------------------------------------------------------------------------------------- the payload


def _all_gather(
    communicator: Communicator,
    rank: int,
    nodes_of: Sequence[Sequence[Node]],
    own: Sequence[RowsByNode | None],
    columns: Sequence[Column],
    label: bytes,
) -> list[RowsByNode | None]:
    """Return of each column the rows of every node of every rank; None where one rank has it dense."""
    payloads = communicator.all_gather_bytes(_payload(nodes_of[rank], own), label, "the rows of all")
    kinds = [_kind_of_row(column[0]) for column in columns]
    found: list[dict[Node, RowSum] | None] = [{} for _ in columns]
    for sender, (nodes, payload) in enumerate(zip(nodes_of, payloads, strict=True)):
        if not nodes:
            continue
        reader = _Reader(payload, sender)
        is_sparse = reader.take(_UINT8, (len(columns),)).tolist()
        counts = reader.take(_INT64, (len(nodes), len(columns)))
        for node, of_node in zip(nodes, counts.tolist(), strict=True):
            for i, (dtype, row_shape) in enumerate(kinds):
                if not is_sparse[i]:
                    found[i] = None
                    continue
                rows = RowSum(reader.take(_INT64, (of_node[i],)), reader.take(dtype, (of_node[i], *row_shape)))
                of_column = found[i]
                if of_column is not None:
                    of_column[node] = rows
        reader.end()
    return list(found)


def _payload(nodes: Sequence[Node], own: Sequence[RowsByNode | None]) -> bytes:
    counts = [[0 if rows is None else len(rows[node].indices) for rows in own] for node in nodes]
    arrays: list[Array] = [np.array([rows is not None for rows in own], np.uint8), np.array(counts, np.int64)]
    for node in nodes:
        for rows in own:
            if rows is not None:
                arrays += rows[node]
    return b"".join(part for array in arrays for part in (array.tobytes(), bytes(-array.nbytes % 8)))


class _Reader:
    """Takes a payload apart."""

    def __init__(self, payload: bytes, sender: int) -> None:
        self._payload = payload
        self._sender = sender
        self._position = 0

    def take(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
        """Return the next array.

        Raises: RemoteProtocolError if the payload is too short for it.
        """
        size = math.prod(shape)
        start, self._position = self._position, self._position + -(-size * dtype.itemsize // 8) * 8
        if size < 0 or self._position > len(self._payload):
            self._refuse()
        return np.frombuffer(self._payload, dtype, size, start).reshape(shape) if size else np.empty(shape, dtype)

    def end(self) -> None:
        """Refuse a payload that has more.

        Raises: RemoteProtocolError.
        """
        if self._position != len(self._payload):
            self._refuse()

    def _refuse(self) -> NoReturn:
        raise RemoteProtocolError(
            f"rank {self._sender} sent {len(self._payload)} bytes of rows that are not those of the gradients here: "
            "do all ranks apply gradients to the same variables?"
        )


_INT64 = np.dtype(np.int64)
_UINT8 = np.dtype(np.uint8)


def _kind_of_row(gradient: Any) -> tuple[np.dtype[Any], tuple[int, ...]]:
    array = gradient.values.numpy() if isinstance(gradient, IndexedSlices) else np.asarray(gradient)
    return array.dtype, array.shape[1:]
