"""The rows that the processes of a host contribute, in memory that all of them map.

How rows are brought together, in each process (:meth:`HostRows.meet`)::

    write   the rows of the hosted replicas go into this process's memory, as a list or as a table
    meet    all tell which gradients are row-sparse on their replicas, and how many rows of each they have written

A gradient goes by rows if all replicas of all processes have it so. Which ones these are is taken to be as in the step
before; where it turns out otherwise, all write and meet once more, as they do where a process needs more memory.

Rules of this file:

- Listed rows lie in ascending order, each row's occurrences left to right; so whoever is to add up the rows of a part
  finds them by bisection, side by side, and reads them in place. (Not where occurrences are wanted as they were
  stored.)
- Rows that nothing looks at before they are summed are summed over the hosted replicas first; where so many of a
  table's rows are there that this is faster, as a table (:mod:`distopt.row_tables`).
- What was written is read until the caller's next exchange, which must come before the next meeting.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from distopt.arena import contiguous
from distopt.canonical_sum import Node, add_nodes
from distopt.comm.communicator import Communicator, Hosting
from distopt.comm.shared_memory import HostGroup
from distopt.comm.shared_memory.host_group import MAX_PAYLOAD_BYTES
from distopt.distribute.shared_gradients import padded
from distopt.errors import RemoteProtocolError
from distopt.indexed_slices import IndexedSlices
from distopt.row_lists import Order, add_lists, find_order, in_order, write_in_order
from distopt.row_sums import RowSum
from distopt.row_tables import Rows, RowTable, clear_table, empty_table, is_dense, scatter_occurrences
from distopt.types import Array

_AS_TABLE = -1
"""The number of rows of what is written as a table."""

Column = Sequence[Any]


class Shape(NamedTuple):
    """Of the gradient of a variable, as a table: ``num_rows`` rows of ``width`` elements."""

    num_rows: int
    width: int
    dtype: np.dtype[Any]


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
    counts_of: Sequence[Array]
    """By rank, the numbers ``[nodes, gradients]`` of rows, as far as this process was told."""


class Wish(NamedTuple):
    """How rows are wanted: ``summed`` over the replicas of a process, or each replica's; ``in_order``, or as stored.

    What is summed is in order.
    """

    summed: bool
    in_order: bool


class HostMemory:
    """A segment of each process of ``group``, which grows; ``of`` has them by their place in the group."""

    def __init__(self, group: HostGroup) -> None:
        self.group = group
        self.of: list[Array] = [np.empty(0, np.uint8)] * group.size

    @property
    def own(self) -> Array:
        """That of this process."""
        return self.of[self.group.index]

    def grow(self, sizes: Sequence[int], what: str) -> bool:
        """Have at least so many bytes in each segment; return whether one is new, and empty. A collective.

        Raises: SharedMemoryError if there is not enough memory.
        """
        wanted = [size * 5 // 4 if size > len(memory) else 0 for size, memory in zip(sizes, self.of, strict=True)]
        if not any(wanted):
            return False
        found = self.group.share(wanted[self.group.index], what)
        self.of = [new if asked else old for new, asked, old in zip(found, wanted, self.of, strict=True)]
        return True


class HostRows:
    """Of the processes of the host of ``communicator``; making it is a collective."""

    def __init__(self, hosting: Hosting, communicator: Communicator) -> None:
        self.group = communicator.host_group
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
    ) -> Met:
        """Write the rows of the hosted replicas, and return those of all processes of this host.

        ``columns``: by gradient, those of each hosted replica, or of one stand-in. ``may_be_rows``: which of them may
        go by rows; the same on all processes. ``write_dense`` is called before the meeting with the positions of those
        that do, and is to write the others.

        Raises: what an exchange under ``label`` raises; SharedMemoryError if there is not enough memory.
        """
        mine = tuple(
            i for i, column in enumerate(columns) if may_be_rows[i] and (not self._leaves or _is_row_sparse(column))
        )
        squares = [_squares(sum_of_squares, i in mine, c, len(self._leaves)) for i, c in enumerate(columns)]
        shapes = {i: _shape_of(columns[i][0]) for i, may in enumerate(may_be_rows) if may}
        key = tuple(shapes.items()), len(columns)
        expected = self._expected.get(key)
        while True:
            written: list[_Written] = []
            if expected is not None:
                write_dense(expected)
                if set(expected) <= set(mine):
                    written = self._written(columns, expected, shapes, wish)
            self.own_bytes = sum(each.num_bytes for each in written)
            has_written = self.own_bytes <= len(self._memory.own)
            if has_written:
                _write(written, self._memory.own)
            nodes = self.own_nodes(wish)
            heads = self._tell(_head(mine, len(columns), written, nodes, squares), len(columns), label)
            with_rows = self._common(heads, len(columns))
            if with_rows == expected:
                break
            expected = self._expected[key] = with_rows
        counts_of = [self._counts(heads, rank, len(columns), wish) for rank in range(self._communicator.size)]
        met = Met(with_rows, shapes, {i: {} for i in with_rows}, {}, counts_of)
        if self._memory.grow([self.size_of(met, rank) for rank in self.group.ranks], "row-sparse gradients"):
            if not has_written:
                _write(written, self._memory.own)
            self.group.exchange("the rows of all are in more memory")
        for place, rank in enumerate(self.group.ranks):
            self.read(self._memory.of[place], rank, counts_of[rank], shapes, wish, met.rows)
        if sum_of_squares is not None:
            met.squares.update(self._squares_of_all(heads, with_rows, len(columns), wish))
        return met

    def size_of(self, met: Met, rank: int) -> int:
        """Return how many bytes a process has written."""
        counts = met.counts_of[rank].tolist()
        return sum(num_bytes_of(met.shapes[i], row[i]) for row in counts for i in met.with_rows)

    def read(
        self,
        memory: Array,
        rank: int,
        counts: Array,
        shapes: Mapping[int, Shape],
        wish: Wish,
        into: Mapping[int, dict[Node, Rows]],
    ) -> None:
        """Add what a process wrote to ``into``, by gradient and node, as views of its memory."""
        at = 0
        for node, of_node in zip(self.nodes_of(rank, wish), counts.tolist(), strict=True):
            for i in into:
                into[i][node] = _rows_in(memory, at, shapes[i], of_node[i])
                at += num_bytes_of(shapes[i], of_node[i])

    # ------------------------------------------------------------------------------------------------ what is told

    def _tell(self, head: Array, num_columns: int, label: bytes) -> list[Array]:
        """Return the heads of all processes, by rank."""
        most_replicas = max(map(len, self._hosting.leaves))
        longest = head.itemsize * num_columns * (1 + 2 * most_replicas)
        if self.group.holds_all and longest <= MAX_PAYLOAD_BYTES:
            told = self.group.exchange("the rows of all are ready", label, head.tobytes())
        else:
            told = self._communicator.all_gather_bytes(head.tobytes(), label)
        return [np.frombuffer(payload, np.int64) for payload in told]

    def _common(self, heads: Sequence[Array], num_columns: int) -> tuple[int, ...]:
        """Return the positions of the gradients that every replica has row-sparse."""
        common = np.ones(num_columns, bool)
        for rank, head in enumerate(heads):
            if len(head) < num_columns:
                raise RemoteProtocolError(f"rank {rank} told of {len(head)} gradients or less, not {num_columns}")
            common &= head[:num_columns].astype(bool)
        return tuple(np.flatnonzero(common).tolist())

    def _counts(self, heads: Sequence[Array], rank: int, num_columns: int, wish: Wish) -> Array:
        num_nodes = len(self.nodes_of(rank, wish))
        counts = heads[rank][num_columns : num_columns * (1 + num_nodes)]
        if len(counts) != num_columns * num_nodes:
            raise RemoteProtocolError(
                f"rank {rank} told of {len(counts)} numbers of rows, not {num_columns * num_nodes}: do all ranks apply "
                "gradients to the same variables?"
            )
        return counts.reshape(num_nodes, num_columns)

    def _squares_of_all(
        self, heads: Sequence[Array], with_rows: Sequence[int], num_columns: int, wish: Wish
    ) -> dict[int, Array]:
        found = {i: np.zeros(self._hosting.num_replicas) for i in with_rows}
        for rank, head in enumerate(heads):
            start = num_columns * (1 + len(self.nodes_of(rank, wish)))
            told = head[start:].view(np.float64).reshape(num_columns, len(self._hosting.leaves[rank]))
            for i in with_rows:
                for leaf, square in zip(self._hosting.leaves[rank], told[i], strict=True):
                    found[i][leaf.start] = square
        return found

    # --------------------------------------------------------------------------------------------- what is written

    def _written(
        self, columns: Sequence[Column], with_rows: Sequence[int], shapes: Mapping[int, Shape], wish: Wish
    ) -> list[_Written]:
        """Return what this process is to write, node by node."""
        stored = {
            i: {
                leaf: RowSum(slices.indices.astype(np.int64, copy=False), _table(slices, shapes[i]))
                for leaf, slices in zip(self._leaves, columns[i], strict=False)  # a stand-in contributes nothing
            }
            for i in with_rows
        }
        nodes = self.own_nodes(wish)
        return [self._written_of(node, i, stored[i], shapes[i], wish) for node in nodes for i in with_rows]

    def _written_of(
        self, node: Node, position: int, stored: Mapping[Node, RowSum], shape: Shape, wish: Wish
    ) -> _Written:
        below = {leaf: rows for leaf, rows in stored.items() if node.start <= leaf.start < node.stop}
        if wish.summed and any(_fills(rows.indices, shape.num_rows) for rows in below.values()):
            return _Table(position, shape, self._hosting.tree, node, below)
        if len(below) == 1:
            (rows,) = below.values()
        else:
            sums = {leaf: in_order(rows, summed=True) for leaf, rows in below.items()}
            rows = add_lists(self._hosting.tree, sums, node)
        return _Listed(position, shape, rows, wish)


class _Listed:
    """Rows that are written as a list."""

    def __init__(self, position: int, shape: Shape, rows: RowSum, wish: Wish) -> None:
        self.position = position
        self._shape = shape
        self._rows = rows
        self._summed = wish.summed
        self._order = find_order(rows.indices) if wish.in_order else Order(None, len(rows.indices))
        self.count = self._order.num_rows if wish.summed else len(rows.indices)
        self.num_bytes = num_bytes_of(shape, self.count)

    def write(self, memory: Array, at: int) -> None:
        target = listed_in(memory, at, self._shape, self.count)
        write_in_order(self._rows, self._order, target, summed=self._summed)


class _Table:
    """Rows that are written as a table: the sum of ``node`` of the occurrences that the replicas below it have."""

    def __init__(self, position: int, shape: Shape, tree: Any, node: Node, below: Mapping[Node, RowSum]) -> None:
        self.position = position
        self._shape = shape
        self._tree = tree
        self._node = node
        self._below = below
        self.count = _AS_TABLE
        self.num_bytes = num_bytes_of(shape, _AS_TABLE)

    def write(self, memory: Array, at: int) -> None:
        target = _table_in(memory, at, self._shape)
        clear_table(target)
        if len(self._below) == 1:
            scatter_occurrences(target, *self._below[self._node])
            return
        terms = {}
        for leaf, rows in self._below.items():
            table = empty_table(0, *self._shape)
            scatter_occurrences(table, *rows)
            target.present[...] |= table.present
            terms[leaf] = table.values.reshape(-1)
        add_nodes(self._tree, terms, self._node, out=target.values.reshape(-1))


_Written = _Listed | _Table


def _write(written: Sequence[_Written], memory: Array) -> None:
    at = 0
    for each in written:
        each.write(memory, at)
        at += each.num_bytes


def _head(
    mine: Sequence[int], num_columns: int, written: Sequence[_Written], nodes: Sequence[Node], squares: Sequence[Array]
) -> Array:
    """Return what a process tells: which gradients are row-sparse; by node, numbers of rows; sums of squares."""
    flags = np.zeros(num_columns, np.int64)
    flags[list(mine)] = 1
    counts = np.zeros((len(nodes), num_columns), np.int64)
    per_node = len(written) // len(nodes) if nodes else 0
    for k, each in enumerate(written):
        counts[k // per_node, each.position] = each.count
    return np.concatenate([flags, counts.reshape(-1), *(array.view(np.int64) for array in squares)])


def _squares(sum_of_squares: Callable[[Array], Any] | None, is_sparse: bool, column: Column, num_leaves: int) -> Array:
    if sum_of_squares is None:
        return np.empty(0)
    if not is_sparse or not num_leaves:
        return np.zeros(num_leaves)
    return np.array([sum_of_squares(slices.values.numpy()) for slices in column], np.float64)


def _is_row_sparse(column: Column) -> bool:
    return all(isinstance(gradient, IndexedSlices) for gradient in column)


def _shape_of(gradient: Any) -> Shape:
    values = gradient.values.numpy() if isinstance(gradient, IndexedSlices) else np.asarray(gradient)
    shape = gradient.shape or (0,)  # of no use where nothing is summed, and it need not be known
    return Shape(shape[0], math.prod(values.shape[1:]), values.dtype)


def _table(slices: IndexedSlices, shape: Shape) -> Array:
    values = slices.values.numpy()
    return contiguous(values).reshape(len(values), shape.width)


def _fills(indices: Array, num_rows: int) -> bool:
    """Return whether so many rows occur that they are added up as a table."""
    if not is_dense(len(indices), num_rows):
        return False
    present = np.zeros(num_rows, bool)
    present[indices] = True
    return is_dense(int(np.count_nonzero(present)), num_rows)


def num_bytes_of(shape: Shape, count: int) -> int:
    """Return how much memory so many rows take, all parts aligned."""
    row_bytes = shape.width * shape.dtype.itemsize
    if count == _AS_TABLE:
        return padded(shape.num_rows) + padded(shape.num_rows * row_bytes)
    return padded(count * 8) + padded(count * row_bytes)


def listed_in(memory: Array, at: int, shape: Shape, count: int) -> RowSum:
    """Return where a list of so many rows lies in memory, from ``at`` on."""
    return RowSum(*_arrays_in(memory, at, np.dtype(np.int64), count, shape))


def _table_in(memory: Array, at: int, shape: Shape) -> RowTable:
    return RowTable(0, *_arrays_in(memory, at, np.dtype(bool), shape.num_rows, shape))


def _rows_in(memory: Array, at: int, shape: Shape, count: int) -> Rows:
    return _table_in(memory, at, shape) if count == _AS_TABLE else listed_in(memory, at, shape, count)


def _arrays_in(memory: Array, at: int, dtype: np.dtype[Any], length: int, shape: Shape) -> tuple[Array, Array]:
    head_bytes, num_bytes = length * dtype.itemsize, length * shape.width * shape.dtype.itemsize
    start = at + padded(head_bytes)
    values = memory[start : start + num_bytes].view(shape.dtype).reshape(length, shape.width)
    return memory[at : at + head_bytes].view(dtype), values
