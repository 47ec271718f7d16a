"""What one process writes of its rows for the others of its host: no more than they read.

Rows that may be read as they were stored, because no row occurs twice or nothing adds them up before the owner does,
stay where they are for this process itself (:attr:`WrittenRows.own`), without a copy.
For the others their values are copied into this process's segment, but for those of a part that nobody else reads; or
nothing is copied, where the values lie in memory that all map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from distopt.arena import contiguous
from distopt.canonical_sum import Node, SumTree
from distopt.distribute.row_memory import RowArrays, Shape, listed_in, num_bytes_of, num_bytes_placed, numbers_in
from distopt.indexed_slices import IndexedSlices
from distopt.row_lists import (
    Order,
    PlacedRows,
    RowBits,
    Rows,
    add_lists,
    are_distinct,
    count_up,
    find_order,
    in_order,
    listed,
    write_in_order,
    write_others,
)
from distopt.row_sums import RowSum
from distopt.types import Array


class WrittenRows:
    """The rows of one table that a process contributes as one node of the sum tree.

    ``part``: which rows, ``start <= row < stop``, no other process reads; ``summed``: as one sum of each row;
    ``ordered``: in ascending order, else in any.
    """

    def __init__(
        self,
        shape: Shape,
        stored: RowSum,
        arrays: RowArrays,
        bits: RowBits,
        part: tuple[int, int] = (0, 0),
        *,
        summed: bool = False,
        ordered: bool = True,
    ) -> None:
        self._shape = shape
        self._part = part
        self._is_ordered = ordered
        needs_order = ordered or (summed and not are_distinct(stored.indices, bits.of(shape.num_rows)))
        order = find_order(stored) if needs_order else Order(stored, len(stored.indices))
        self._rows = order.rows
        self.count = order.num_rows if summed else len(stored.indices)
        """How many rows others see."""
        self._is_as_stored = self.count == len(stored.indices)
        self.number, self._first = arrays.find(stored.values) if self._is_as_stored else (0, 0)
        """Of the array that the values lie in, where all read them; 0: they are written."""
        self.num_bytes = num_bytes_placed(self.count) if self.number else num_bytes_of(shape, self.count)
        self.own = self._rows
        """The rows as this process itself is to read them; where it has summed them, once they are written."""

    def write(self, memory: Array, at: int) -> None:
        """Write the rows for the other processes into ``memory`` from ``at`` on."""
        if self.number:
            indices, positions = numbers_in(memory, at, self.count)
            indices[...] = self._rows.indices
            if self._is_ordered:
                own = self._rows.positions if isinstance(self._rows, PlacedRows) else count_up(self.count)
                np.add(own, self._first, out=positions)
            else:
                positions[0] = self._first
            return
        target = listed_in(memory, at, self._shape, self.count)
        if not self._is_as_stored:
            self.own = target
        start, stop = self._part if self._is_as_stored else (0, 0)
        if start == stop or not self.count:
            write_in_order(self._rows, target)
        elif not self._is_ordered:
            assert isinstance(self._rows, RowSum), "nothing has moved them"
            write_others(self._rows, start, stop, target)
        else:
            target.indices[...] = indices = self._rows.indices
            before, after = np.searchsorted(indices, (start, stop)).tolist()
            for some in (slice(0, before), slice(after, None)):
                _write_values(self._rows, some, target)


def _write_values(rows: Rows, some: slice, target: RowSum) -> None:
    """Write some of the rows of a list to where they belong in ``target``."""
    into = RowSum(target.indices[some], target.values[some])
    if not len(into.indices):
        return
    if isinstance(rows, PlacedRows):
        write_in_order(PlacedRows(rows.indices[some], rows.positions[some], rows.values), into)
    else:
        into.values[...] = rows.values[some]


def rows_of_node(tree: SumTree, node: Node, stored: Mapping[Node, RowSum]) -> RowSum:
    """Return what a process contributes as ``node``, from what its replicas below have ``stored``."""
    below = {leaf: rows for leaf, rows in stored.items() if node.start <= leaf.start < node.stop}
    if len(below) == 1:
        (rows,) = below.values()
        return rows
    return listed(add_lists(tree, {leaf: in_order(rows, summed=True) for leaf, rows in below.items()}, node))


def stored_rows(leaves: Sequence[Node], column: Sequence[Any], shape: Shape) -> dict[Node, RowSum]:
    """Return the rows of a gradient as the hosted replicas stored them; a stand-in contributes none."""
    found = {}
    for leaf, slices in zip(leaves, column, strict=False):
        assert isinstance(slices, IndexedSlices), "asked by the caller"
        values = contiguous(slices.values.numpy()).reshape(len(slices.indices), shape.width)
        found[leaf] = RowSum(slices.indices.astype(np.int64, copy=False), values)
    return found
