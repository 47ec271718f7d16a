"""Who owns which spans: a plain function of the layout and the number of servers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import msgspec


class Span(NamedTuple):
    """The elements ``start <= i < stop`` of one segment of the arena."""

    segment_index: int
    start: int
    stop: int

    def __str__(self) -> str:
        return f"segment {self.segment_index}[{self.start}:{self.stop}]"


class Extent(msgspec.Struct, frozen=True):
    """A contiguous range of a segment that the servers share, and where it may be cut.

    ``cuts``: element indices within the segment, in ascending order, each between ``start`` and ``stop``.
    """

    segment_index: int
    start: int
    stop: int
    itemsize: int
    cuts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop or self.itemsize < 1:
            raise ValueError(f"an extent needs elements: [{self.start}, {self.stop}) of {self.itemsize} bytes")
        inner = (self.start, *self.cuts, self.stop)
        if any(a > b for a, b in pairwise(inner)):
            raise ValueError(f"the cuts {self.cuts} do not ascend within [{self.start}, {self.stop})")


def assign_spans(extents: Sequence[Extent], num_servers: int) -> tuple[tuple[Span, ...], ...]:
    """Return what each server owns: consecutive parts of ``extents``, as equal in bytes as the cuts allow.

    Servers beyond the number of pieces own nothing. The order of extents, and of elements in each, is kept: reading
    the servers' spans in rank order reads all extents in order.

    Raises: ValueError if ``num_servers`` is not positive.

    >>> assign_spans([Extent(0, 0, 100, 4, cuts=(40, 80))], 2)
    ((Span(segment_index=0, start=0, stop=40),), (Span(segment_index=0, start=40, stop=100),))
    """
    if num_servers < 1:
        raise ValueError(f"variables need at least 1 server, not {num_servers}")
    total = sum((extent.stop - extent.start) * extent.itemsize for extent in extents)
    owned: list[list[Span]] = [[] for _ in range(num_servers)]
    done = 0
    for piece, itemsize in _pieces(extents):
        size = (piece.stop - piece.start) * itemsize
        # The piece's middle decides: in the s-th of equal parts of all bytes, it belongs to server s.
        server = min(num_servers - 1, (2 * done + size) * num_servers // (2 * total))
        _append(owned[server], piece)
        done += size
    return tuple(tuple(spans) for spans in owned)


def equal_parts(length: int, parts: int) -> tuple[slice, ...]:
    """Return ``parts`` consecutive slices of ``length`` elements, as equal as possible.

    >>> equal_parts(7, 2)
    (slice(0, 3, None), slice(3, 7, None))
    """
    bounds = [length * part // parts for part in range(parts + 1)]
    return tuple(slice(a, b) for a, b in pairwise(bounds))


def _pieces(extents: Sequence[Extent]) -> list[tuple[Span, int]]:
    pieces = []
    for extent in extents:
        bounds = (extent.start, *extent.cuts, extent.stop)
        for start, stop in pairwise(bounds):
            if start < stop:
                pieces.append((Span(extent.segment_index, start, stop), extent.itemsize))
    return pieces


def _append(spans: list[Span], piece: Span) -> None:
    if spans and spans[-1].segment_index == piece.segment_index and spans[-1].stop == piece.start:
        spans[-1] = Span(piece.segment_index, spans[-1].start, piece.stop)
    else:
        spans.append(piece)
