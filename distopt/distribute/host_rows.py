"""The rows that the processes of a host contribute, in memory that all of them map.

How rows are brought together, in each process (:meth:`HostRows.meet`)::

    write   the rows of the hosted replicas go where the others read them, see distopt.distribute.written_rows
    meet    all tell which gradients are row-sparse on their replicas, and how many rows of each they have

A gradient goes by rows if all replicas of all processes have it so. Which ones these are is taken to be as in the step
before; where it turns out otherwise, all write and meet once more, as they do where a process needs more memory.

Rules of this file:

- Where rows are wanted in order they ascend, each row's occurrences left to right; so whoever is to add up the rows of
  a part finds them by bisection, side by side, and reads them in place. Else they lie as they were stored.
- Rows that nothing looks at before they are summed are summed over the hosted replicas first.
- What was written is read until the caller's next exchange, which must come before the next meeting.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from distopt.canonical_sum import Node
from distopt.comm.communicator import Communicator, Hosting
from distopt.comm.shared_memory.host_group import MAX_PAYLOAD_BYTES
from distopt.distribute.row_memory import (
    HostMemory,
    RowArrays,
    Shape,
    listed_in,
    num_bytes_of,
    num_bytes_placed,
    numbers_in,
)
from distopt.distribute.written_rows import WrittenRows, rows_of_node, stored_rows
from distopt.errors import RemoteProtocolError
from distopt.indexed_slices import IndexedSlices
from distopt.row_lists import PlacedRows, RowBits, Rows
from distopt.row_sums import RowSum
from distopt.types import Array

Column = Sequence[Any]


class Told(NamedTuple):
    """What a process tells of the rows that it contributes."""

    by_rows: tuple[int, ...]
    """Which gradients are row-sparse on all of its replicas: 1, else 0."""
    num_bytes: int
    """How much memory it writes them to."""
    counts: list[tuple[int, ...]]
    """How many, ``[nodes][gradients]``."""
    numbers: list[tuple[int, ...]]
    """Of the arrays that their values lie in, likewise; see :class:`~distopt.distribute.row_memory.RowArrays`."""
    squares: list[tuple[float, ...]]
    """The sums of squares ``[gradients][replicas]``; empty if nobody asked."""


class Wish(NamedTuple):
    """How rows are wanted: ``summed`` over the replicas of a process, or each replica's; ``in_order``, or in any."""

    summed: bool
    in_order: bool


class Met(NamedTuple):
    """What a meeting came to."""

    with_rows: tuple[int, ...]
    """The positions of the gradients that go by rows."""
    shapes: Mapping[int, Shape]
    """Of these."""
    rows: dict[int, dict[Node, Rows]]
    """Of each, what every node of this host contributes."""
    squares: dict[int, Array]
    """Of each, the sums of squares of the rows of every replica, float64, in their order; none if nobody asked."""
    told: Sequence[Told]
    """By rank."""
    wish: Wish
    """How the rows are there."""


class HostRows:
    """Of the processes of the host of ``communicator``; making it is a collective."""

    def __init__(self, hosting: Hosting, communicator: Communicator) -> None:
        self.group = communicator.host_group
        self.arrays = RowArrays(self.group)
        """Where values lie that are not copied."""
        self.bits = RowBits()
        self._nothing = RowArrays(self.group)
        self._hosting = hosting
        self._communicator = communicator
        self._leaves = hosting.leaves[communicator.rank]
        self._memory = HostMemory(self.group)
        self._expected: dict[Any, tuple[int, ...]] = {}
        self.own_bytes = 0
        """Of the rows that this process has written for the latest meeting."""

    def nodes_of(self, rank: int, wish: Wish) -> Sequence[Node]:
        """Return what a process contributes."""
        return self._hosting.contributed(summed=wish.summed)[rank]

    def own_nodes(self, wish: Wish) -> Sequence[Node]:
        """Return what this process contributes."""
        return self.nodes_of(self._communicator.rank, wish)

    @property
    def own_memory(self) -> Array:
        """What this process has written for the latest meeting."""
        return self._memory.own[: self.own_bytes]

    def meet(
        self,
        columns: Sequence[Column],
        may_be_rows: Sequence[bool],
        wish: Wish,
        label: bytes,
        *,
        sum_of_squares: Callable[[Array], Any] | None = None,
        write_dense: Callable[[tuple[int, ...]], None] = lambda _: None,
        own_part: Callable[[int], tuple[int, int]] = lambda _: (0, 0),
        copies_all: bool = False,
    ) -> Met:
        """Write the rows of the hosted replicas, and return those of all processes of this host.

        ``columns``: by gradient, those of each hosted replica, or of one stand-in. ``may_be_rows``: which of them may
        go by rows; the same on all processes. ``write_dense`` is called before the meeting with the positions of those
        that do, and is to write the others. ``own_part``: which of so many rows, ``start <= row < stop``, no other
        process reads. ``copies_all``: have all values lie in :attr:`own_memory`, as what is sent.

        Raises: what an exchange under ``label`` raises; SharedMemoryError if there is not enough memory.
        """
        mine = tuple(
            i for i, column in enumerate(columns) if may_be_rows[i] and (not self._leaves or _is_row_sparse(column))
        )
        squares = (
            []
            if sum_of_squares is None
            else [self._squares(sum_of_squares, i in mine, columns[i]) for i in range(len(columns))]
        )
        shapes = {i: _shape_of(columns[i][0]) for i, may in enumerate(may_be_rows) if may}
        key = tuple(shapes.items()), len(columns)
        expected = self._expected.get(key)
        nodes = self.own_nodes(wish)
        arrays = self._nothing if copies_all else self.arrays
        while True:
            written: dict[tuple[int, int], WrittenRows] = {}
            if expected is not None:
                write_dense(expected)
                if set(expected) <= set(mine):
                    stored = {i: stored_rows(self._leaves, columns[i], shapes[i]) for i in expected}
                    for place, node in enumerate(nodes):
                        for i in expected:
                            written[place, i] = WrittenRows(
                                shapes[i],
                                rows_of_node(self._hosting.tree, node, stored[i]),
                                arrays,
                                self.bits,
                                own_part(shapes[i].num_rows),
                                summed=wish.summed,
                                ordered=wish.in_order,
                            )
            self.own_bytes = sum(each.num_bytes for each in written.values())
            has_written = self.own_bytes <= len(self._memory.own)
            if has_written:
                _write(written.values(), self._memory.own)
            head = _head(mine, len(columns), len(nodes), self.own_bytes, written, squares)
            heads = self._tell(head, len(columns), label)
            told = [self._told(head, rank, len(columns), wish) for rank, head in enumerate(heads)]
            with_rows = _positions_of_all(told)
            if with_rows == expected:
                break
            expected = self._expected[key] = with_rows
        met = Met(with_rows, shapes, {i: {} for i in with_rows}, {}, told, wish)
        if self._memory.grow([told[rank].num_bytes for rank in self.group.ranks], "row-sparse gradients"):
            if not has_written:
                _write(written.values(), self._memory.own)
            self.group.exchange("the rows of all are in more memory")
        for (place, i), each in written.items():
            met.rows[i][nodes[place]] = each.own
        for place, rank in enumerate(self.group.ranks):
            if rank != self._communicator.rank:
                self.read(self._memory.of[place], rank, met, met.rows)
        if sum_of_squares is not None:
            met.squares.update(self._squares_of_all(met))
        return met

    def read(self, memory: Array, rank: int, met: Met, into: Mapping[int, dict[Node, Rows]]) -> None:
        """Add what a process wrote to ``into``, by gradient and node, as views of its memory."""
        at = 0
        told = met.told[rank]
        for node, counts, numbers in zip(self.nodes_of(rank, met.wish), told.counts, told.numbers, strict=True):
            for i in met.with_rows:
                shape, count, number = met.shapes[i], counts[i], numbers[i]
                if number:
                    values = self.arrays.table(number, self.group.ranks.index(rank), shape)
                    indices, positions = numbers_in(memory, at, count)
                    if met.wish.in_order:
                        into[i][node] = PlacedRows(indices, positions, values)
                    else:
                        into[i][node] = RowSum(indices, values[positions[0] : positions[0] + count])
                else:
                    into[i][node] = listed_in(memory, at, shape, count)
                at += _size(shape, count, number)

    # ------------------------------------------------------------------------------------------------ what is told

    def _tell(self, head: bytes, num_columns: int, label: bytes) -> list[bytes]:
        """Return the heads of all processes, by rank."""
        most_replicas = max(map(len, self._hosting.leaves))
        longest = 8 * (num_columns * (1 + 3 * most_replicas) + 1)
        if self.group.holds_all and longest <= MAX_PAYLOAD_BYTES:
            return self.group.exchange("the rows of all are ready", label, head)
        return self._communicator.all_gather_bytes(head, label, "the rows of all are ready")

    def _told(self, head: bytes, rank: int, num_columns: int, wish: Wish) -> Told:
        num_nodes, num_leaves = len(self.nodes_of(rank, wish)), len(self._hosting.leaves[rank])
        num_numbers = num_columns * (1 + 2 * num_nodes) + 1
        num_squares = len(head) // 8 - num_numbers
        if num_squares not in (0, num_columns * num_leaves):
            raise RemoteProtocolError(
                f"rank {rank} told of rows in {len(head)} bytes, not {8 * num_numbers}: do all ranks apply gradients "
                "to the same variables?"
            )
        told = struct.unpack(f"={num_numbers}q{num_squares}d", head)
        of_nodes = [told[at : at + num_columns] for at in range(num_columns + 1, num_numbers, num_columns)]
        squares = [told[at : at + num_leaves] for at in range(num_numbers, len(told), max(num_leaves, 1))]
        return Told(told[:num_columns], told[num_columns], of_nodes[:num_nodes], of_nodes[num_nodes:], squares)

    def _squares(self, sum_of_squares: Callable[[Array], Any], is_sparse: bool, column: Column) -> list[float]:
        """Return the sums of squares of the rows of each hosted replica."""
        if not is_sparse:
            return [0.0] * len(self._leaves)
        return [float(sum_of_squares(slices.values.numpy())) for slices in column[: len(self._leaves)]]

    def _squares_of_all(self, met: Met) -> dict[int, Array]:
        found = {i: np.zeros(self._hosting.num_replicas) for i in met.with_rows}
        for rank, told in enumerate(met.told):
            for i in met.with_rows:
                for place, leaf in enumerate(self._hosting.leaves[rank]):
                    found[i][leaf.start] = told.squares[i][place]
        return found


def _size(shape: Shape, count: int, number: int) -> int:
    return num_bytes_placed(count) if number else num_bytes_of(shape, count)


def _write(written: Iterable[WrittenRows], memory: Array) -> None:
    at = 0
    for each in written:
        each.write(memory, at)
        at += each.num_bytes


def _head(
    mine: Sequence[int],
    num_columns: int,
    num_nodes: int,
    num_bytes: int,
    written: Mapping[tuple[int, int], WrittenRows],
    squares: Sequence[Sequence[float]],
) -> bytes:
    """Return what a process tells: what :class:`Told` has, one after another.

    ``written``: by place of the node and position of the gradient.
    """
    told = [0] * (num_columns * (1 + 2 * num_nodes) + 1)
    told[num_columns] = num_bytes
    for i in mine:
        told[i] = 1
    for (place, i), each in written.items():
        at = num_columns * (1 + place) + 1 + i
        told[at], told[at + num_columns * num_nodes] = each.count, each.number
    sums = [square for of_column in squares for square in of_column]
    return struct.pack(f"={len(told)}q{len(sums)}d", *told, *sums)


def _positions_of_all(told: Sequence[Told]) -> tuple[int, ...]:
    """Return the positions of the gradients that every process has row-sparse."""
    flags = {each.by_rows for each in told}
    return tuple([i for i, of_processes in enumerate(zip(*flags, strict=True)) if all(of_processes)])


def _is_row_sparse(column: Column) -> bool:
    return all(isinstance(gradient, IndexedSlices) for gradient in column)


def _shape_of(gradient: Any) -> Shape:
    values = gradient.values.numpy() if isinstance(gradient, IndexedSlices) else np.asarray(gradient)
    shape = gradient.shape or (0,)  # of no use where nothing is summed, and it need not be known
    return Shape(shape[0], math.prod(values.shape[1:]), values.dtype)
