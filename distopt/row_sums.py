"""Sums of rows: the canonical sum of row-sparse gradients, of which each replica holds some rows.

The order of additions is defined in :mod:`distopt.canonical_sum`. Everything here goes row by row, so it can be done
for a part of the rows, or of the columns, by whoever holds that part.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from distopt import kernels
from distopt.arena import contiguous
from distopt.canonical_sum import Node, SumTree
from distopt.types import Array


class RowSum(NamedTuple):
    """The sum of some rows of a table: ``values[i]`` is that of row ``indices[i]``. No index comes twice.

    Shapes: ``indices`` ``[n]``, int64; ``values`` ``[n, ...]``. In order of first occurrence, replica by replica.
    """

    indices: Array
    values: Array


def sum_occurrences(indices: Array, values: Array) -> RowSum:
    """Return the sum of the occurrences of each row, added left to right; rows in order of first occurrence.

    Shapes: ``indices`` ``[n]``, integers; ``values`` ``[n, ...]``. The dtype of the values is kept. Inputs are not
    written to, and come back where no row occurs twice.

    >>> sum_occurrences(np.array([2, 0, 2]), np.float32([1, 2, 4]))
    RowSum(indices=array([2, 0]), values=array([5., 2.], dtype=float32))
    """
    first, position = _first_and_position(indices)
    if len(first) == len(indices):
        return RowSum(indices.astype(np.int64, copy=False), values)
    sums = values[first]
    is_later = np.ones(len(indices), bool)
    is_later[first] = False
    later = np.flatnonzero(is_later)
    _add_rows(sums, position[later], values, later)
    return RowSum(indices[first].astype(np.int64, copy=False), sums)


def add_row_sums(tree: SumTree, sums: Mapping[Node, RowSum], wanted: Node | None = None) -> RowSum:
    """Return the canonical sum of ``wanted`` (default: all replicas) from sums of nodes that cover it.

    Where one of two subtrees lacks a row, the other's passes unchanged. Inputs are not written to; the very one that
    is given for ``wanted`` comes back.

    Raises: ValueError if a replica below ``wanted`` is covered by no node.

    >>> left, right = RowSum(np.array([4, 7]), np.float32([1, 2])), RowSum(np.array([7, 5]), np.float32([4, 8]))
    >>> add_row_sums(SumTree(2), {Node(0, 1): left, Node(1, 2): right})
    RowSum(indices=array([4, 7, 5]), values=array([1., 6., 8.], dtype=float32))
    """
    node = tree.root if wanted is None else wanted
    nodes = covering(tree, sums, node)
    if len(nodes) == 1:
        return sums[nodes[0]]
    first, position = _first_and_position(np.concatenate([sums[n].indices for n in nodes]))
    positions = {}
    start = 0
    for n in nodes:
        stop = start + len(sums[n].indices)
        positions[n] = RowSum(position[start:stop], sums[n].values)
        start = stop
    total = _Adder(tree, positions, len(first)).total(node)
    row_at = np.empty(len(first), np.int64)
    for n in nodes:
        row_at[positions[n].indices] = sums[n].indices
    return RowSum(row_at[total.indices], total.values)


def sum_of_replicas(indices: Array, values: Array, counts: Sequence[int]) -> RowSum:
    """Return the canonical sum of occurrences of which ``counts[r]`` in a row are those of replica r.

    >>> sum_of_replicas(np.array([1, 1, 1]), np.float32([2**24, 1, 1]), (1, 2)).values.tolist()
    [16777218.0]
    """
    bounds = np.concatenate(([0], np.cumsum(counts)))
    sums = {
        Node(r, r + 1): sum_occurrences(indices[bounds[r] : bounds[r + 1]], values[bounds[r] : bounds[r + 1]])
        for r in range(len(counts))
    }
    return add_row_sums(_tree(len(counts)), sums)


def add_occurrences(table: Array, place: Array, values: Array) -> None:
    """Add ``values[i]`` to row ``place[i]`` of ``table``, for one i after another.

    Shapes: ``table`` ``[rows, width]``, contiguous; ``values`` ``[n, width]``.
    """
    _add_rows(table, place, values, np.arange(len(place)))


class _Adder:
    """Adds sums whose ``indices`` are positions among ``size`` rows."""

    def __init__(self, tree: SumTree, sums: Mapping[Node, RowSum], size: int) -> None:
        self._tree = tree
        self._sums = sums
        self._place = np.full(size, -1)
        """Where the left operand has each row; -1: it has not."""

    def total(self, node: Node) -> RowSum:
        present = self._sums.get(node)
        if present is not None:
            return present
        left, right = map(self.total, self._tree.children(node))
        self._place[left.indices] = np.arange(len(left.indices))
        place = self._place[right.indices]
        self._place[left.indices] = -1
        is_new = place < 0
        values = np.concatenate((left.values, right.values[is_new]))
        common = np.flatnonzero(~is_new)
        _add_rows(values, place[common], right.values, common)
        return RowSum(np.concatenate((left.indices, right.indices[is_new])), values)


def covering(tree: SumTree, sums: Mapping[Node, Any], node: Node) -> list[Node]:
    """Return the nodes of ``sums`` that make up ``node``, in order.

    Raises: ValueError if a replica below ``node`` is covered by none.
    """
    if node in sums:
        return [node]
    if node.stop - node.start < 2:
        raise ValueError(f"no contribution covers {node}")
    return [n for child in tree.children(node) for n in covering(tree, sums, child)]


_tree = functools.lru_cache(maxsize=64)(SumTree)


def _first_and_position(indices: Array) -> tuple[Array, Array]:
    """Return where each distinct index occurs first, in that order, and for each index which of these it is."""
    if kernels.loops_compiled and len(indices):
        size = 1 << int(2 * len(indices) - 1).bit_length()  # at most half full, so that there is always a free place
        table = np.full(size, -1)
        first, position = np.empty(len(indices), np.int64), np.empty(len(indices), np.int64)
        count = _find_distinct()(indices.astype(np.int64), table, _HASH, size - 1, first, position)
        return first[:count], position
    _, first, inverse = np.unique(indices, return_index=True, return_inverse=True)
    order = np.argsort(first)
    position = np.empty_like(order)
    position[order] = np.arange(len(order))
    return first[order], position[inverse]


def _add_rows(sums: Array, place: Array, values: Array, chosen: Array) -> None:
    """Add row ``chosen[i]`` of ``values`` to row ``place[i]`` of ``sums``, one after another."""
    if not len(chosen):
        return
    loop = _compiled_addition(values.dtype) if kernels.loops_compiled else None
    if loop is not None:
        width = values.size // len(values)
        given = contiguous(values).reshape(len(values), width)
        loop(sums.reshape(len(sums), width), place, given, chosen)
        return
    with np.errstate(all="ignore"):
        np.add.at(sums, place, values[chosen])


_HASH = 0x9E3779B97F4A7C15 - 2**64
"""2**64 divided by the golden ratio, as an int64. Source: Knuth, The Art of Computer Programming, section 6.4."""


def _find_distinct_loop(indices, table, factor, mask, first, position):  # type: ignore[no-untyped-def]
    count = 0
    for k in range(indices.size):
        product = indices[k] * factor
        place = (product ^ (product >> 32)) & mask
        while table[place] >= 0 and indices[first[table[place]]] != indices[k]:
            place = (place + 1) & mask
        if table[place] < 0:
            table[place] = count
            first[count] = k
            count += 1
        position[k] = table[place]
    return count


def _add_rows_loop(sums, place, values, chosen):  # type: ignore[no-untyped-def]
    for k in range(place.size):
        target, row = place[k], chosen[k]
        for i in range(values.shape[1]):
            sums[target, i] += values[row, i]


_TEMPLATE = '''"""Generated by distopt for sums of rows; do not edit."""

from distopt.kernels import compiled
from numba import njit, types

{functions}

_numbers = types.int64[::1]
{types}
kernel = compiled({signature}, cache={cache})({name}.py_func)
'''

_ROWS = """_rows = types.{dtype}[:, ::1]
_given = types.Array(types.{dtype}, 2, "C", readonly=True)
"""


@functools.cache
def _find_distinct() -> Callable[..., int]:
    signature = "types.int64(_numbers, _numbers, types.int64, types.int64, _numbers, _numbers)"
    return _loaded(_find_distinct_loop, "", signature)


@functools.cache
def _compiled_addition(dtype: np.dtype[Any]) -> Callable[..., Any] | None:
    if dtype not in (np.float32, np.float64):
        return None
    types = _ROWS.format(dtype=dtype.name)
    return _loaded(_add_rows_loop, types, "types.void(_rows, _numbers, _given, _numbers)")


def _loaded(loop: Callable[..., Any], types: str, signature: str) -> Callable[..., Any]:
    functions = kernels.functions_source(loop)
    return kernels.load(
        lambda cache: _TEMPLATE.format(
            functions=functions, types=types, signature=signature, cache=cache, name=loop.__name__
        )
    )
