"""Contiguous storage: the variables of a dtype become views of one aligned buffer.

A flat gradient and every element-wise slot use the same layout, so that one fused update, one send or one large read
does for many variables what a Python loop would do for each.

Rules of this file:

- each variable starts at a multiple of ``ALIGNMENT`` bytes; the padding between variables is zero and stays zero;
- a placed variable keeps its place; variables that come later get a segment of their own. A whole segment may move into
  other memory, once, before anything is updated there (:meth:`Segment.move`);
- ``BLOCK`` is the unit of everything that is cut: blocks start at a variable's first element, so neither a norm nor the
  boundary between two owners depends on which variables are neighbours.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from distopt.types import Array

BLOCK = 4096
"""Elements in a norm block; owners' spans begin at a variable's first element or a multiple of this after it."""

ALIGNMENT = 64
"""Bytes; one cache line, and the widest vector register."""

_segment_ids = itertools.count()
_placing = threading.Lock()


def aligned_zeros(size: int, dtype: np.dtype[Any]) -> Array:
    """Return ``size`` zeros of ``dtype`` whose first byte lies at a multiple of ``ALIGNMENT``."""
    raw = np.zeros(size * dtype.itemsize + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size * dtype.itemsize].view(dtype)


def contiguous(array: Array) -> Array:
    """Return an array in C order and aligned, as compiled loops take it; a copy only if it is not so.

    >>> contiguous(np.arange(6)[::2]).flags.c_contiguous
    True
    """
    flags = array.flags
    return array if flags.c_contiguous and flags.aligned else np.require(array, requirements=["C", "A"])


def flattened(array: Array) -> Array:
    """Return an array as one axis, otherwise as :func:`contiguous` does.

    >>> flattened(np.ones((2, 3)).T).shape
    (6,)
    """
    return contiguous(array).reshape(-1)


def padded_size(size: int, dtype: np.dtype[Any]) -> int:
    """Return ``size`` rounded up to whole alignment units, at least one.

    >>> padded_size(3, np.dtype(np.float32)), padded_size(16, np.dtype(np.float32)), padded_size(9, np.dtype(float))
    (16, 16, 16)
    """
    unit = ALIGNMENT // dtype.itemsize
    return max(1, -(-size // unit)) * unit


@dataclass(eq=False)
class Segment:
    """One buffer and the variables that are views of it, in order.

    ``offsets[i]`` is the first element of ``variables[i]``. ``index`` counts the segments of this process and orders
    them. Processes that create the same variables in the same order give their segments the same indices.
    """

    dtype: np.dtype[Any]
    buffer: Array
    variables: tuple[Any, ...]
    offsets: tuple[int, ...]
    index: int = field(default_factory=lambda: next(_segment_ids))
    users: weakref.WeakSet[Any] = field(default_factory=weakref.WeakSet, repr=False)
    """The optimizers that may have bound kernels to the buffer; ``forget_bindings()`` of each makes them bind anew."""

    def move(self, buffer: Array) -> None:
        """Let ``buffer``, of the same length and dtype, be the storage from now on; it holds the values already."""
        self.buffer = buffer
        for variable, offset in zip(self.variables, self.offsets, strict=True):
            storage = variable.storage
            variable.rebind(buffer[offset : offset + storage.size].reshape(storage.shape), copy=False)
        for user in self.users:
            user.forget_bindings()

    def __repr__(self) -> str:
        return f"Segment({self.index}, {self.dtype}, {len(self.buffer)} elements, {len(self.variables)} variables)"


class Span(NamedTuple):
    """The flat range ``start <= i < stop`` of the segment whose ``index`` is ``segment_index``; what an owner owns."""

    segment_index: int
    start: int
    stop: int

    def __str__(self) -> str:
        return f"segment {self.segment_index}[{self.start}:{self.stop}]"


@dataclass(frozen=True, eq=False)
class Run:
    """The flat range ``start <= i < stop`` of ``segment`` that ``variables`` fill, but for padding."""

    segment: Segment
    start: int
    stop: int
    variables: tuple[Any, ...]

    @property
    def size(self) -> int:
        return self.stop - self.start

    @property
    def span(self) -> Span:
        return Span(self.segment.index, self.start, self.stop)

    def view(self) -> Array:
        """Return the live storage of the range."""
        return self.segment.buffer[self.start : self.stop]


def place(variables: Iterable[Any]) -> None:
    """Give each variable that has no place yet one: a new segment for each dtype, in the order given.

    Their values are kept, and their storage becomes a view of the segment's buffer. Variables that have a place are
    left alone, so calling this again does nothing.
    """
    with _placing:
        by_dtype: dict[np.dtype[Any], list[Any]] = {}
        seen: set[int] = set()
        for variable in variables:
            if variable.placement is None and id(variable) not in seen:
                seen.add(id(variable))
                by_dtype.setdefault(variable.storage.dtype, []).append(variable)
        for dtype, members in by_dtype.items():
            _place_together(dtype, members)


def _place_together(dtype: np.dtype[Any], variables: Sequence[Any]) -> None:
    extents = [padded_size(variable.storage.size, dtype) for variable in variables]
    offsets = tuple(itertools.accumulate(extents[:-1], initial=0))
    segment = Segment(dtype, aligned_zeros(sum(extents), dtype), tuple(variables), offsets)
    for variable, offset in zip(variables, offsets, strict=True):
        storage = variable.storage
        variable.rebind(segment.buffer[offset : offset + storage.size].reshape(storage.shape))
        variable.placement = (segment, offset)


def runs(variables: Iterable[Any]) -> tuple[Run, ...]:
    """Return the fewest ranges that cover exactly ``variables``, in order of segment and offset.

    A run ends with the padding of its last variable, so that every run starts and ends aligned.

    Raises: ValueError for a variable without a place, or listed twice.
    """
    places: list[tuple[int, int, Any, Segment]] = []
    for variable in variables:
        if variable.placement is None:
            raise ValueError(f"variable {variable.name!r} has no place in the arena; call place() first")
        segment, offset = variable.placement
        places.append((segment.index, offset, variable, segment))
    places.sort(key=lambda entry: entry[:2])
    found: list[Run] = []
    for _, offset, variable, segment in places:
        stop = offset + padded_size(variable.storage.size, segment.dtype)
        last = found[-1] if found else None
        if last is not None and last.variables[-1] is variable:
            raise ValueError(f"variable {variable.name!r} is listed twice")
        if last is not None and last.segment is segment and last.stop == offset:
            found[-1] = Run(segment, last.start, stop, (*last.variables, variable))
        else:
            found.append(Run(segment, offset, stop, (variable,)))
    return tuple(found)
