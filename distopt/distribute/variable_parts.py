"""What the owner of some spans owns of each variable, and how rows go to it and come back.

A push, or an answer, that holds rows has buffers for one part of a variable after the other: a part with a dense
gradient takes one, flat; one with a row-sparse gradient takes three, the indices (int64), the number of rows of each
replica (int64; empty where they are summed), and the rows, flat; an answer takes no numbers.

Spans are cut between norm blocks, so that a row may lie in two of them. Then both owners get it whole and update all of
it, and each answers for its own elements; what an owner holds outside of its spans is read by nobody.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from distopt.arena import Span, flattened
from distopt.errors import RemoteProtocolError
from distopt.types import Array

_INT64 = np.dtype(np.int64)


class VariablePart(NamedTuple):
    """The elements ``start <= i < stop`` of the variable of ``shape`` and ``dtype`` at a position in a layout."""

    variable: int
    start: int
    stop: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        return self.stop - self.start

    @property
    def width(self) -> int:
        """Elements in a row."""
        return math.prod(self.shape[1:])

    @property
    def rows(self) -> slice:
        """The rows that the elements lie in; the first and the last may be cut."""
        return slice(self.start // self.width, -(-self.stop // self.width))

    def densified(self, indices: Array, values: Array) -> Array:
        """Return the flat elements, zero but for ``values`` of distinct rows."""
        rows = self.rows
        table = np.zeros((rows.stop - rows.start, self.width), self.dtype)
        table[indices - rows.start] = values + values.dtype.type(0)  # as a sum with zeros: -0.0 becomes 0.0
        return table.reshape(-1)[self.start - rows.start * self.width :][: self.size]

    def write(self, flat: Array, indices: Array, values: Array) -> None:
        """Write whole rows into the flat variable, as far as they belong to this part."""
        begin = indices * self.width
        is_whole = (begin >= self.start) & (begin + self.width <= self.stop)
        flat.reshape(-1, self.width)[indices[is_whole]] = values[is_whole]
        for first, row in zip(begin[~is_whole].tolist(), values[~is_whole], strict=True):
            start, stop = max(first, self.start), min(first + self.width, self.stop)
            flat[start:stop] = row[start - first : stop - first]


def parts_of(layout: Any, spans: Sequence[Span]) -> tuple[VariablePart, ...]:
    """Return the parts of variables that lie in ``spans``, which are of this process's segments."""
    found = []
    for span in spans:
        for variable, run, start, stop, shape in layout.parts:
            whole = layout.runs[run]
            if whole.segment.index != span.segment_index:
                continue
            first = whole.start + start
            begin, end = max(first, span.start), min(whole.start + stop, span.stop)
            if begin < end:
                found.append(VariablePart(variable, begin - first, end - first, shape, whole.segment.dtype))
    return tuple(found)


class NodeRows(NamedTuple):
    """Rows of one variable that a node of the sum tree contributes: ``indices`` ``[n]``, ``values`` ``[n, width]``.

    ``counts``: how many of them each of the node's replicas stored, in order; empty where the node has summed them.
    """

    indices: Array
    values: Array
    counts: Array

    def within(self, part: VariablePart) -> NodeRows:
        """Return the rows that lie in a part, whole."""
        rows = part.rows
        inside = (self.indices >= rows.start) & (self.indices < rows.stop)
        if inside.all():
            return self
        before = np.concatenate(([0], np.cumsum(inside)))
        bounds = np.concatenate(([0], np.cumsum(self.counts)))
        counts = np.diff(before[bounds]) if len(self.counts) else self.counts
        return NodeRows(self.indices[inside], self.values[inside], counts)


def packed(
    parts: Sequence[VariablePart], rows_of: Mapping[int, NodeRows], dense_of: Mapping[int, Array]
) -> list[Array]:
    """Return the buffers of a push; each variable of ``parts`` has rows or a flat dense gradient."""
    buffers: list[Array] = []
    for part in parts:
        rows = rows_of.get(part.variable)
        if rows is None:
            buffers.append(dense_of[part.variable][part.start : part.stop])
        else:
            indices, values, counts = rows.within(part)
            buffers += [indices, counts, flattened(values)]
    return buffers


def unpacked(
    parts: Sequence[VariablePart], with_rows: Sequence[int], buffers: Sequence[Array], num_counts: int
) -> tuple[list[Array | NodeRows], Sequence[Array]]:
    """Return what a push has for each part, and the buffers after these; ``num_counts``: numbers of rows expected.

    Raises: RemoteProtocolError for buffers that are not such a push.
    """
    taken = iter(buffers)
    found: list[Array | NodeRows] = []
    for part in parts:
        if part.variable not in with_rows:
            found.append(_taken(taken, part.dtype, part.size))
            continue
        indices = _taken(taken, _INT64)
        counts = _taken(taken, _INT64, num_counts)
        values = _taken(taken, part.dtype, len(indices) * part.width).reshape(len(indices), part.width)
        _check_rows(part, indices)
        if num_counts and (counts.min() < 0 or counts.sum() != len(indices)):
            raise RemoteProtocolError(f"{len(indices)} rows came, of replicas that have {counts.tolist()}")
        found.append(NodeRows(indices, values, counts))
    return found, tuple(taken)


def write_answer(
    parts: Sequence[VariablePart], with_rows: Sequence[int], buffers: Sequence[Array], flat_of: Sequence[Array]
) -> None:
    """Write what an owner answered into the flat variables, by position in the layout.

    Raises: RemoteProtocolError for buffers that are not such an answer.
    """
    taken = iter(buffers)
    for part in parts:
        if part.variable not in with_rows:
            flat_of[part.variable][part.start : part.stop] = _taken(taken, part.dtype, part.size)
            continue
        indices = _taken(taken, _INT64)
        _check_rows(part, indices)
        values = _taken(taken, part.dtype, len(indices) * part.width)
        part.write(flat_of[part.variable], indices, values.reshape(len(indices), part.width))
    if left := len(list(taken)):
        raise RemoteProtocolError(f"an owner answered with {left} buffers too many")


def _taken(buffers: Iterator[Array], dtype: np.dtype[Any], size: int | None = None) -> Array:
    array = next(buffers, None)
    if array is None:
        raise RemoteProtocolError(f"a buffer of {dtype}[{'' if size is None else size}] is missing")
    if array.dtype != dtype or array.ndim != 1 or size not in (None, len(array)):
        raise RemoteProtocolError(
            f"a buffer is {array.dtype}{list(array.shape)}, not {dtype}[{'' if size is None else size}]"
        )
    return array


def _check_rows(part: VariablePart, indices: Array) -> None:
    rows = part.rows
    if len(indices) and (indices.min() < rows.start or indices.max() >= rows.stop):
        wrong = indices[(indices < rows.start) | (indices >= rows.stop)][0]
        raise RemoteProtocolError(f"row {wrong} does not lie in rows {rows.start}..{rows.stop - 1} of a part")
