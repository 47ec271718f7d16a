"""Who owns which spans: a plain function of the layout and the number of servers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import msgspec

from distopt.arena import Span


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
    the servers' spans in rank order reads all extents in order. No span reaches over the end of an extent.

    Raises: ValueError if ``num_servers`` is not positive.

    >>> assign_spans([Extent(0, 0, 100, 4, cuts=(40, 80))], 2)
    ((Span(segment_index=0, start=0, stop=40),), (Span(segment_index=0, start=40, stop=100),))
    """
    if num_servers < 1:
        raise ValueError(f"variables need at least 1 server, not {num_servers}")
    total = sum((extent.stop - extent.start) * extent.itemsize for extent in extents)
    owned: list[list[Span]] = [[] for _ in range(num_servers)]
    done = 0
    for extent in extents:
        last: int | None = None
        for start, stop in pairwise((extent.start, *extent.cuts, extent.stop)):
            size = (stop - start) * extent.itemsize
            if not size:
                continue
            # The piece's middle decides: in the s-th of equal parts of all bytes, it belongs to server s.
            server = min(num_servers - 1, (2 * done + size) * num_servers // (2 * total))
            done += size
            if server == last:
                owned[server][-1] = owned[server][-1]._replace(stop=stop)
            else:
                owned[server].append(Span(extent.segment_index, start, stop))
            last = server
    return tuple(tuple(spans) for spans in owned)
