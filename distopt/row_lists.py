"""Lists of rows: how they are put in order, divided and added up.

A list is a :class:`~distopt.row_sums.RowSum`, values being tables ``[n, width]``; or a :class:`PlacedRows`, whose
values lie where they were made and are not put in order with the indices. The order of rows decides no bit: the
occurrences of a row stay left to right, and rows are added along the canonical tree, as :mod:`distopt.row_sums` defines
it.

In ascending order, whoever owns a part of a table finds its rows by bisection, any number of lists are added up two at
a time, each in one pass, and indices travel as bits. Two lists alone need none: which rows both have, a bit for each
row of the table tells sooner than sorting (:class:`RowBits`).

Loops are compiled, or the NumPy calls that give the same bits.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from distopt import kernels, prefetch, row_loops
from distopt.canonical_sum import Node, SumTree
from distopt.row_sums import RowSum, add_occurrences, covering
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


class RowBits:
    """A bit for each row of a table, by which rows are found that come twice; all are zero between calls.

    They take a 32nd of the narrowest table of float32 at most, and what is used of them stays in the cache.
    """

    def __init__(self) -> None:
        self._bits = np.zeros(0, np.int64)

    def of(self, num_rows: int) -> Array:
        """Return them for a table of so many rows, 64 a number."""
        if num_rows > 64 * len(self._bits):
            self._bits = np.zeros(-(-num_rows // 64), np.int64)
        return self._bits


def are_distinct(indices: Array, bits: Array) -> bool:
    """Return whether no index, int64, comes twice; ``bits`` are those of :class:`RowBits`.

    >>> bits = RowBits().of(8)
    >>> are_distinct(np.array([7, 3]), bits), are_distinct(np.array([7, 3, 7]), bits)
    (True, False)
    """
    if not kernels.loops_compiled:
        return len(np.unique(indices)) == len(indices)
    return not row_loops.finding_twins()(np.ascontiguousarray(indices), bits)


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
    most, width = len(left.indices) + len(right.indices), left.values.shape[1]
    target = RowSum(np.empty(most, np.int64), np.empty((most, width), left.values.dtype))
    count = write_merged(left, right, target)
    return RowSum(target.indices[:count], target.values[:count])


def write_merged(left: Rows, right: Rows, target: RowSum) -> int:
    """Write :func:`merged` lists, none of them empty, to the first rows of ``target``; return how many these are."""
    loop = row_loops.for_dtype(row_loops.MERGING, left.values.dtype)
    if loop is not None:
        count: int = loop(*placed(left), *placed(right), prefetch.lines_of(left.values[0]), *target)
        return count
    left, right = listed(left), listed(right)
    indices, places = np.unique(np.concatenate((left.indices, right.indices)), return_inverse=True)
    of_left, of_right = places[: len(left.indices)], places[len(left.indices) :]
    target.indices[: len(indices)] = indices
    target.values[of_right] = right.values
    in_both = np.isin(left.indices, right.indices, assume_unique=True)
    with np.errstate(all="ignore"):
        common = left.values[in_both] + target.values[of_left[in_both]]
    target.values[of_left] = left.values
    target.values[of_left[in_both]] = common
    return len(indices)


def write_sum(lists: Sequence[Rows], target: RowSum) -> int:
    """Write the sum of one or two lists of distinct rows to the first rows of ``target``; return how many these are."""
    given = [rows for rows in lists if len(rows.indices)]
    if len(given) == 2:
        return write_merged(given[0], given[1], target)
    count = len(given[0].indices) if given else 0
    if given:
        write_in_order(given[0], RowSum(target.indices[:count], target.values[:count]))
    return count


def disjoint(left: Rows, right: Rows, bits: Array) -> list[Rows]:
    """Return lists without a common row that make up the sum of two lists of distinct rows, which may be in any order.

    Rows that one of the two has alone stay where they lie; those of both are added, ``left + right``. ``bits`` are
    those of :class:`RowBits`.

    >>> left, right = RowSum(np.array([7, 3]), np.float32([[1], [2]])), RowSum(np.array([7]), np.float32([[4]]))
    >>> [(r.indices.tolist(), listed(r).values.tolist()) for r in disjoint(left, right, RowBits().of(8))]
    [([3], [[2.0]]), ([7], [[5.0]])]
    """
    if not len(left.indices) or not len(right.indices):
        return [left if len(left.indices) else right]
    left, right = placed(left), placed(right)
    alone, in_left = _divided(left, right.indices, bits)
    if not len(in_left.indices):
        return [left, right]
    also_alone, in_right = _divided(right, in_left.indices, bits)
    orders = np.argsort(in_left.indices), np.argsort(in_right.indices)
    positions = in_left.positions[orders[0]], in_right.positions[orders[1]]
    sums = RowSum(in_left.indices[orders[0]], _sums(left.values, positions[0], right.values, positions[1]))
    return [rows for rows in (alone, also_alone, sums) if len(rows.indices)]


def _divided(rows: PlacedRows, others: Array, bits: Array) -> tuple[PlacedRows, PlacedRows]:
    """Return those of the rows that are not among ``others``, and those that are."""
    indices, positions, values = rows
    if kernels.loops_compiled:
        found = np.empty((2, 2, len(indices)), np.int64)
        given = (np.ascontiguousarray(array) for array in (indices, positions, others))
        count = row_loops.dividing()(*given, bits, *found)
        (rest, of_rest), (common, of_common) = found[0, :, : len(indices) - count], found[1, :, :count]
        return PlacedRows(rest, of_rest, values), PlacedRows(common, of_common, values)
    is_common = np.isin(indices, others, assume_unique=True)
    rest, common = indices[~is_common], indices[is_common]
    return PlacedRows(rest, positions[~is_common], values), PlacedRows(common, positions[is_common], values)


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
    return functools.reduce(merged, halves(tree, sums, wanted))


def disjoint_sums(tree: SumTree, sums: Mapping[Node, Rows], bits: Array) -> Sequence[Rows]:
    """Return lists without a common row that make up what :func:`add_lists` returns of all replicas.

    At most two lists need no order; see :func:`add_lists` else. ``bits`` are those of :class:`RowBits`.
    """
    first, *others = halves(tree, sums)
    return disjoint(first, others[0], bits) if others else [first]


def halves(tree: SumTree, sums: Mapping[Node, Rows], wanted: Node | None = None) -> list[Rows]:
    """Return one list, or two whose sum (:func:`merged`) is what :func:`add_lists` returns.

    Raises: ValueError if a replica below ``wanted`` is covered by no node.
    """
    node = tree.root if wanted is None else wanted
    if covering(tree, sums, node) == [node]:
        return [sums[node]]
    return [add_lists(tree, sums, child) for child in tree.children(node)]
