"""Lists of rows: how they are put in order, divided and added up.

A list is a :class:`~distopt.row_sums.RowSum`, values being tables ``[n, width]``; or a :class:`PlacedRows`, whose
values lie where they were made and are not put in order with the indices. The order of rows decides no bit: the
occurrences of a row stay left to right, and rows are added along the canonical tree, as :mod:`distopt.row_sums` defines
it.

In ascending order, whoever owns a part of a table finds its rows by bisection, any number of lists are added up two at
a time, each in one pass, and indices travel as bits. Two lists alone need none: which rows both have, a hash table
tells sooner than sorting (:func:`disjoint`).

Loops are compiled, or the NumPy calls that give the same bits.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from distopt import kernels, prefetch, row_loops
from distopt.canonical_sum import Node, SumTree
from distopt.row_sums import HASH, RowSum, add_occurrences, covering, hash_table
from distopt.types import Array


class PlacedRows(NamedTuple):
    """A list of rows whose values stay where they are: ``values[positions[k]]`` is that of row ``indices[k]``.

    Shapes: ``indices`` and ``positions`` ``[n]``, int64; ``values`` ``[m, width]``. The indices ascend, unless it
    is said that rows are as they were stored.
    """

    indices: Array
    positions: Array
    values: Array


Rows: TypeAlias = RowSum | PlacedRows


def listed(rows: Rows) -> RowSum:
    """Return rows with their values in order, too: copied, where they lie elsewhere.

    >>> listed(PlacedRows(np.array([3, 7]), np.array([1, 0]), np.float32([[2], [1]]))).values.tolist()
    [[1.0], [2.0]]
    """
    return RowSum(rows.indices, rows.values[rows.positions]) if isinstance(rows, PlacedRows) else rows


def placed(rows: Rows) -> PlacedRows:
    """Return rows as those whose values lie where they are."""
    return rows if isinstance(rows, PlacedRows) else PlacedRows(rows.indices, count_up(len(rows.indices)), rows.values)


def count_up(count: int) -> Array:
    """Return 0, 1, 2 and so on; not to be written to."""
    if count > len(_counted[0]):
        _counted[0] = np.arange(2 * count)
        _counted[0].flags.writeable = False
    return _counted[0][:count]


_counted = [np.arange(0)]


class Order(NamedTuple):
    """Occurrences of rows, put in order."""

    rows: Rows
    """In ascending order, those of one row as they were; what was given, where it is so already."""
    num_rows: int
    """How many different rows there are."""


def find_order(rows: RowSum) -> Order:
    """Return occurrences of rows, ``indices`` int64 of which none is negative, in order.

    >>> find_order(RowSum(np.array([7, 3, 7]), np.float32([[1], [2], [4]]))).rows.positions
    array([1, 0, 2])
    """
    indices, values = rows
    count = len(indices)
    if kernels.loops_compiled and count:
        scratch = np.empty((4, count), np.int64)
        found = row_loops.sorting()(np.ascontiguousarray(indices), *scratch)
        return Order(rows, -found) if found < 0 else Order(PlacedRows(scratch[0], scratch[1], values), found)
    ascends = bool((indices[1:] >= indices[:-1]).all())
    positions = None if ascends else np.argsort(indices, kind="stable")
    ascending = indices if positions is None else indices[positions]
    num_rows = int(np.count_nonzero(ascending[1:] != ascending[:-1])) + (count > 0)
    return Order(rows if positions is None else PlacedRows(ascending, positions, values), num_rows)


def write_in_order(rows: Rows, target: RowSum) -> None:
    """Write a list to ``target``: where that has fewer rows, the sum of each row's occurrences.

    Shapes: ``target`` as many as ``rows``, or as many as there are different ones. Values are contiguous.
    """
    is_summed = len(target.indices) < len(rows.indices)
    if isinstance(rows, RowSum) and not is_summed:
        target.indices[...], target.values[...] = rows
        return
    indices, positions, values = placed(rows)
    loop = row_loops.for_dtype(row_loops.WRITING, values.dtype)
    if loop is not None:
        loop(np.ascontiguousarray(indices), positions, values, is_summed, prefetch.lines_of(values[0]), *target)
    elif not is_summed:
        target.indices[...] = indices
        np.take(values, positions, axis=0, out=target.values, mode="clip")  # "raise" would copy everything once more
    else:
        is_first = np.concatenate(([True], indices[1:] != indices[:-1]))
        target.indices[...] = indices[is_first]
        target.values[...] = values[positions[is_first]]
        add_occurrences(target.values, np.cumsum(is_first)[~is_first] - 1, values[positions[~is_first]])


def in_order(rows: RowSum, *, summed: bool) -> RowSum:
    """Return occurrences of rows as a list, if ``summed`` one of distinct rows; ``rows`` itself if it is one.

    >>> in_order(RowSum(np.array([7, 3, 7]), np.float32([[1], [2], [4]])), summed=True).values.tolist()
    [[2.0], [5.0]]
    """
    order = find_order(rows)
    count = order.num_rows if summed else len(rows.indices)
    if order.rows is rows and count == len(rows.indices):
        return rows
    target = RowSum(np.empty(count, np.int64), np.empty((count, rows.values.shape[1]), rows.values.dtype))
    write_in_order(order.rows, target)
    return target


def joined(lists: Sequence[Rows]) -> RowSum:
    """Return the rows of all lists, of which there is one or more, one list after another."""
    if len(lists) == 1:
        return listed(lists[0])
    indices, values = (np.concatenate(arrays) for arrays in zip(*map(listed, lists), strict=True))
    return RowSum(indices, values)


def are_distinct(indices: Array) -> bool:
    """Return whether no index, int64, comes twice.

    >>> are_distinct(np.array([7, 3])), are_distinct(np.array([7, 3, 7]))
    (True, False)
    """
    if not kernels.loops_compiled:
        return len(np.unique(indices)) == len(indices)
    indices = np.ascontiguousarray(indices)
    table = hash_table(len(indices))
    return bool(row_loops.finding_twins()(indices, table, HASH, len(table) - 1) < 0)


def selected(rows: Rows, start: int, stop: int) -> PlacedRows:
    """Return the rows ``start <= row < stop``, in the order that they have, whichever it is.

    >>> selected(RowSum(np.array([7, 3, 7]), np.float32([[1], [2], [4]])), 5, 9).positions
    array([0, 2])
    """
    indices = np.ascontiguousarray(rows.indices)
    if kernels.loops_compiled:
        found, positions = np.empty((2, len(indices)), np.int64)
        count = row_loops.selecting()(indices, start, stop, found, positions)
        found, positions = found[:count], positions[:count]
    else:
        positions = np.flatnonzero((indices >= start) & (indices < stop))
        found = indices[positions]
    return PlacedRows(found, rows.positions[positions] if isinstance(rows, PlacedRows) else positions, rows.values)


def write_others(rows: RowSum, start: int, stop: int, target: RowSum) -> None:
    """Write rows to ``target`` where they are in ``rows``, without the values of the rows ``start <= row < stop``."""
    target.indices[...] = rows.indices
    if not len(rows.indices):
        return
    loop = row_loops.for_dtype(row_loops.COPYING, rows.values.dtype)
    if loop is not None:
        loop(np.ascontiguousarray(rows.indices), rows.values, start, stop, target.values)
    else:
        others = (rows.indices < start) | (rows.indices >= stop)
        target.values[others] = rows.values[others]


def merged(left: Rows, right: Rows) -> Rows:
    """Return the sum of two lists of distinct rows: ``left + right`` where both have a row, else the one that has it.

    >>> both = merged(RowSum(np.array([3, 7]), np.float32([[1], [2]])), RowSum(np.array([7]), np.float32([[4]])))
    >>> both.indices.tolist(), both.values.tolist()
    ([3, 7], [[1.0], [6.0]])
    """
    if not len(left.indices) or not len(right.indices):
        return left if len(left.indices) else right
    loop = row_loops.for_dtype(row_loops.MERGING, left.values.dtype)
    if loop is not None:
        most, width = len(left.indices) + len(right.indices), left.values.shape[1]
        indices, values = np.empty(most, np.int64), np.empty((most, width), left.values.dtype)
        lines = prefetch.lines_of(values[0])
        count = loop(*placed(left), *placed(right), lines, indices, values)
        return RowSum(indices[:count], values[:count])
    left, right = listed(left), listed(right)
    indices, places = np.unique(np.concatenate((left.indices, right.indices)), return_inverse=True)
    of_left, of_right = places[: len(left.indices)], places[len(left.indices) :]
    values = np.empty((len(indices), left.values.shape[1]), left.values.dtype)
    values[of_right] = right.values
    in_both = np.isin(left.indices, right.indices, assume_unique=True)
    with np.errstate(all="ignore"):
        common = left.values[in_both] + values[of_left[in_both]]
    values[of_left] = left.values
    values[of_left[in_both]] = common
    return RowSum(indices, values)


def disjoint(left: Rows, right: Rows) -> list[Rows]:
    """Return lists without a common row that make up the sum of two lists of distinct rows, which may be in any order.

    Rows that one of the two has alone stay where they lie; those of both are added, ``left + right``.

    >>> both = disjoint(RowSum(np.array([7, 3]), np.float32([[1], [2]])), RowSum(np.array([7]), np.float32([[4]])))
    >>> [(rows.indices.tolist(), listed(rows).values.tolist()) for rows in both]
    [([3], [[2.0]]), ([7], [[5.0]])]
    """
    if not len(left.indices) or not len(right.indices):
        return [left if len(left.indices) else right]
    left, right = placed(left), placed(right)
    of_left, of_right, of_both = _paired(left, right)
    if not len(of_both[0]):
        return [left, right]
    found: list[Rows] = [
        PlacedRows(of_left[0], of_left[1], left.values),
        PlacedRows(of_right[0], of_right[1], right.values),
        RowSum(of_both[0], _sums(left.values, of_both[1], right.values, of_both[2])),
    ]
    return [rows for rows in found if len(rows.indices)]


def _paired(left: PlacedRows, right: PlacedRows) -> tuple[Array, Array, Array]:
    """Return indices and positions of the rows of ``left`` alone, of ``right`` alone, and of both (two positions)."""
    count, more = len(left.indices), len(right.indices)
    if kernels.loops_compiled:
        table = hash_table(count)
        of_left, of_right = np.empty((2, count), np.int64), np.empty((2, more), np.int64)
        of_both, is_common = np.empty((3, min(count, more)), np.int64), np.zeros(count, np.bool_)
        lists = (np.ascontiguousarray(array) for array in (*left[:2], *right[:2]))
        common = row_loops.pairing()(*lists, table, HASH, len(table) - 1, is_common, of_left, of_right, of_both)
        return of_left[:, : count - common], of_right[:, : more - common], of_both[:, :common]
    rows, in_left, in_right = np.intersect1d(left.indices, right.indices, assume_unique=True, return_indices=True)
    of_left, of_right = (np.stack(given[:2]) for given in (left, right))
    of_both = np.stack([rows, left.positions[in_left], right.positions[in_right]])
    return np.delete(of_left, in_left, axis=1), np.delete(of_right, in_right, axis=1), of_both


def _sums(left: Array, of_left: Array, right: Array, of_right: Array) -> Array:
    """Return the sums of rows of two tables."""
    loop = row_loops.for_dtype(row_loops.ADDING, left.dtype)
    if loop is not None:
        sums = np.empty((len(of_left), left.shape[1]), left.dtype)
        loop(left, of_left, right, of_right, sums)
        return sums
    with np.errstate(all="ignore"):
        total: Array = left[of_left] + right[of_right]
    return total


def add_lists(tree: SumTree, sums: Mapping[Node, Rows], wanted: Node | None = None) -> Rows:
    """Return the canonical sum of ``wanted`` (default: all replicas) from lists of nodes that cover it.

    The bits are those of :func:`~distopt.row_sums.add_row_sums`. Inputs are not written to, and may come back.

    Raises: ValueError if a replica below ``wanted`` is covered by no node.
    """
    return functools.reduce(merged, _halves(tree, sums, wanted))


def disjoint_sums(tree: SumTree, sums: Mapping[Node, Rows]) -> Sequence[Rows]:
    """Return lists without a common row that make up what :func:`add_lists` returns of all replicas.

    At most two lists need no order; see :func:`add_lists` else.
    """
    lists = _halves(tree, sums)
    return lists if len(lists) == 1 else disjoint(*lists)


def _halves(tree: SumTree, sums: Mapping[Node, Rows], wanted: Node | None = None) -> list[Rows]:
    """Return one list, or two whose sum (:func:`merged`) is what :func:`add_lists` returns."""
    node = tree.root if wanted is None else wanted
    if covering(tree, sums, node) == [node]:
        return [sums[node]]
    return [add_lists(tree, sums, child) for child in tree.children(node)]
