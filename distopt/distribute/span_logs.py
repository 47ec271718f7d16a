"""What every owner of a host was doing when it died, in memory that the others map: they end it, to the same bits.

An owner saves a span, marks it as open, updates it, and marks it as ended; while it updates one, it saves the next::

    mark of rank r   update 17, 5 spans ended, the next one is open
    saved by rank r  variables and slots of its span 5, as they were before update 17; some of its span 6

A survivor puts back what was saved of an open span and goes on from there, with the gradients, which lie in shared
memory, too. It saves and marks likewise, so that it may be lost as well.

Rules of this file:

- A mark is one number of 8 bytes, written at once. What a killed process has written stays, in the order in which it
  was written: its death is told by the kernel, after that.
- Spans are saved to two places in turn, the same for all spans of an owner, so they stay in the cache.
- Only for updates of a span that write nothing outside of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np

from distopt.arena import ALIGNMENT, Span
from distopt.comm.shared_memory import HostGroup
from distopt.distribute.shared_gradients import padded
from distopt.optimizers.piece import NO_COPIES, Copies
from distopt.types import Array

SPAN_BYTES: Final = 96 << 10
"""Of the variables in a span: with Adam two spans, what is saved of both, and gradients stay in a cache of 2 MB."""

_SERIAL_SHIFT: Final = 32
_ENDED_MASK: Final = (1 << 31) - 1


class _Mark(NamedTuple):
    serial: int
    """Of the last update that was begun; counted from 1."""
    ended: int
    """How many of the spans are updated."""
    is_open: bool
    """Whether the next one is saved, and may be updated in part."""


class SpanLogs:
    """Of the members of ``group``, whose spans are ``spans_of``; ``arrays_of`` returns what the update of one writes.

    Making it is a collective.

    Raises: SharedMemoryError if there is not enough memory.
    """

    def __init__(
        self,
        group: HostGroup,
        spans_of: Sequence[Sequence[Span]],
        arrays_of: Callable[[Span], Sequence[Array]],
    ) -> None:
        self._spans_of = tuple(tuple(spans) for spans in spans_of)
        self._arrays_of = arrays_of
        largest = max((sum(padded(a.nbytes) for a in arrays_of(s)) for s in self._spans_of[group.index]), default=0)
        memories = group.share(ALIGNMENT + 2 * largest, "what is being updated")
        self._marks = [memory[:8].view(np.int64) for memory in memories]
        self._saved = [memory[ALIGNMENT:] for memory in memories]
        self._copies_of: dict[tuple[int, int], Copies] = {}
        """By member and span: the arrays that its update writes, and where they are saved."""

    @property
    def latest(self) -> int:
        """The serial number of the last update that any member has begun; 0 for none."""
        return max(self._mark(place).serial for place in range(len(self._marks)))

    def saves(self, place: int, first: int = 0) -> Callable[[int], Copies]:
        """Return what is to be copied while a member's span is updated, by its position from span ``first`` on."""

        def copies_of(position: int) -> Copies:
            following = first + position + 1
            return self._copies(place, following) if following < len(self._spans_of[place]) else NO_COPIES

        return copies_of

    def carry_out(self, place: int, serial: int, steps: Iterable[int], first: int = 0) -> None:
        """Run ``steps``, which updates the spans of a member one after another, from its span number ``first`` on.

        With each it makes the copies of :meth:`saves`: so the next span is saved before it is marked as open.
        """
        mark, spans = self._marks[place], self._spans_of[place]
        going: Iterator[int] = iter(steps)
        if first < len(spans):
            self._copies(place, first).make()
        for index in range(first, len(spans)):
            mark[0] = serial << _SERIAL_SHIFT | index << 1 | 1
            next(going)
            mark[0] = serial << _SERIAL_SHIFT | (index + 1) << 1
        if first == len(spans):
            mark[0] = serial << _SERIAL_SHIFT | first << 1

    def unfinished(self, serial: int) -> list[tuple[int, int]]:
        """Return the members that have not ended update ``serial``, and how many of their spans are updated."""
        found = []
        for place, spans in enumerate(self._spans_of):
            mark = self._mark(place)
            ended = mark.ended if mark.serial == serial else 0
            if mark.serial < serial or ended < len(spans):
                found.append((place, ended))
        return found

    def put_back(self, place: int, serial: int) -> None:
        """Undo what a member has written in a span that is open in update ``serial``."""
        mark = self._mark(place)
        if mark.serial != serial or not mark.is_open:
            return
        arrays, saved = self._copies(place, mark.ended)
        Copies(saved, arrays).make()

    def _copies(self, place: int, index: int) -> Copies:
        found = self._copies_of.get((place, index))
        if found is None:
            memory = self._saved[place]
            start = index % 2 * (len(memory) // 2)
            arrays, saved = self._arrays_of(self._spans_of[place][index]), []
            for array in arrays:
                saved.append(memory[start : start + array.nbytes].view(array.dtype))
                start += padded(array.nbytes)
            found = self._copies_of[place, index] = Copies(arrays, saved)
        return found

    def _mark(self, place: int) -> _Mark:
        value = int(self._marks[place][0])
        return _Mark(value >> _SERIAL_SHIFT, value >> 1 & _ENDED_MASK, bool(value & 1))
