"""Rows of a row-sparse gradient where all of a table's rows are there: the table.

It needs no indices, neither in memory nor between hosts. So that the bits are those of :mod:`distopt.row_sums`, which
leaves out what is absent, also where one replica has all rows and another has not:

- an absent row holds ``-0.0``, the neutral element of addition: ``x + -0.0`` is ``x`` for every x, while ``x + 0.0``
  makes ``0.0`` of ``-0.0``. Source: IEEE 754-2019, section 6.3;
- which rows are there is told beside them, so that a rule is run on these and no others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np

from distopt.canonical_sum import Node, SumTree, add_nodes
from distopt.row_lists import add_lists, halves
from distopt.row_sums import RowSum, add_occurrences, covering
from distopt.types import Array

DENSE_FROM: Final = 1.0
"""The share of a table's rows from which on they are added up as a table; ``benchmarks/sparse_rows.py`` measures it."""


class RowTable(NamedTuple):
    """The rows from ``first`` on: ``values[i]`` is row ``first + i``, which is there if ``present[i]``, else -0.0.

    Shapes: ``present`` ``[n]``, bool; ``values`` ``[n, width]``.
    """

    first: int
    present: Array
    values: Array

    def rows(self) -> RowSum:
        """Return the rows that are there, in ascending order; a view of ``values`` where all are."""
        found = np.flatnonzero(self.present)
        values = self.values if len(found) == len(self.present) else self.values[found]
        return RowSum(found + self.first, values)

    def within(self, start: int, stop: int) -> RowTable:
        """Return the rows ``start <= row < stop``, as views."""
        own = slice(max(start - self.first, 0), max(stop - self.first, 0))
        return RowTable(self.first + own.start, self.present[own], self.values[own])


Rows: TypeAlias = RowSum | RowTable
"""Some rows of a table, in one of two forms."""


def listed(rows: Rows) -> RowSum:
    """Return rows of either form as a list."""
    return rows.rows() if isinstance(rows, RowTable) else rows


def empty_table(first: int, num_rows: int, width: int, dtype: np.dtype[Any]) -> RowTable:
    """Return a table of which no row is there."""
    table = RowTable(first, np.empty(num_rows, bool), np.empty((num_rows, width), dtype))
    clear_table(table)
    return table


def clear_table(table: RowTable) -> None:
    """Take all rows out of a table."""
    table.present[:] = False
    table.values.fill(-0.0)


def scatter_occurrences(table: RowTable, indices: Array, values: Array) -> None:
    """Add occurrences of rows to a table, from left to right.

    >>> table = empty_table(0, 3, 1, np.dtype(np.float32))
    >>> scatter_occurrences(table, np.array([2, 0, 2]), np.float32([[1], [-0.0], [4]]))
    >>> table.rows()
    RowSum(indices=array([0, 2]), values=array([[-0.],
           [ 5.]], dtype=float32))
    """
    place = indices.astype(np.int64, copy=False) - table.first if table.first else indices.astype(np.int64, copy=False)
    table.present[place] = True
    add_occurrences(table.values, place, values)


def add_rows(tree: SumTree, sums: Mapping[Node, Rows], wanted: Node, first: int, num_rows: int) -> Rows:
    """Return the canonical sum of ``wanted`` from sums of nodes that cover it, of ``num_rows`` rows from ``first`` on.

    The bits are those of :func:`~distopt.row_sums.add_row_sums`, whichever form the rows have; they come back as a
    table where one of them is one, or so many are there that this is faster. Lists are in ascending order, as the
    result is then. Inputs are not written to.

    Raises: ValueError if a replica below ``wanted`` is covered by no node.
    """
    given = {node: sums[node] for node in covering(tree, sums, wanted)}
    if len(given) == 1:
        return given[wanted]
    if (lists := _few(given, num_rows)) is not None:
        return add_lists(tree, lists, wanted)
    tables = {node: _table_of(rows, first, num_rows) for node, rows in given.items()}
    present = np.zeros(num_rows, bool)
    for table in tables.values():
        present |= table.present
    values = next(iter(tables.values())).values
    total = np.empty(values.size, values.dtype)
    add_nodes(tree, {node: table.values.reshape(-1) for node, table in tables.items()}, wanted, out=total)
    return RowTable(first, present, total.reshape(values.shape))


def parts_of_sum(tree: SumTree, sums: Mapping[Node, Rows], first: int, num_rows: int) -> list[RowSum]:
    """Return one list, or two whose sum (:func:`~distopt.row_lists.merged`) is the canonical sum over all replicas.

    What is given, and what is raised: as :func:`add_rows`.
    """
    lists = _few(sums, num_rows)
    return [listed(add_rows(tree, sums, tree.root, first, num_rows))] if lists is None else halves(tree, lists)


def _few(sums: Mapping[Node, Rows], num_rows: int) -> dict[Node, RowSum] | None:
    """Return ``sums`` if they are best added up as lists, else None."""
    lists = {node: rows for node, rows in sums.items() if isinstance(rows, RowSum)}
    if len(lists) < len(sums) or is_dense(max((len(rows.indices) for rows in lists.values()), default=0), num_rows):
        return None
    return lists


def is_dense(count: int, num_rows: int) -> bool:
    """Return whether so many of a table's rows are added up as a table."""
    return count > 0 and count >= DENSE_FROM * num_rows


def _table_of(rows: Rows, first: int, num_rows: int) -> RowTable:
    if isinstance(rows, RowTable):
        return rows
    table = empty_table(first, num_rows, rows.values.shape[1], rows.values.dtype)
    place = rows.indices - first
    table.present[place] = True
    table.values[place] = rows.values
    return table
