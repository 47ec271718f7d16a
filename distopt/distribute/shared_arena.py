"""Variables and slots in memory that all processes of a host map.

Rules of this file:

- A value lies there once, whoever reads it. Owners write their spans while every process is inside of an apply call;
  everything else that writes, an assignment or a restored checkpoint, goes through :meth:`SharedArena.write`.
- All processes move the same storage at the same point of the program. The values are those of the first one.
- The pages of a span are taken by its owner: on a host with several memory nodes they lie in the owner's.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from distopt.arena import Segment, Span
from distopt.comm.shared_memory import HostGroup
from distopt.distribute.shared_gradients import equal_parts, padded
from distopt.types import Array


class _Moved(NamedTuple):
    """One buffer on its way; ``key`` is None for the variables, else what :meth:`SlotStore.arrays` calls it."""

    segment: Segment
    key: tuple[str, int] | None
    array: Array


class SharedArena:
    """Of the processes of ``group``."""

    def __init__(self, group: HostGroup) -> None:
        self._group = group
        self._segments: weakref.WeakSet[Segment] = weakref.WeakSet()
        self._slots: weakref.WeakKeyDictionary[Any, set[tuple[int, tuple[str, int]]]] = weakref.WeakKeyDictionary()

    def take(
        self,
        optimizer: Any,
        segments: Iterable[Segment],
        gather_slots: Callable[[Any], None],
        owned: Sequence[Sequence[Span]] = (),
    ) -> None:
        """Move what is not there yet of ``segments`` and of their slots; a collective.

        ``gather_slots``, of the optimizer, is called before a slot is read. ``owned`` are the spans of each process of
        the group, where they are known; what has no owner here is taken in equal parts.

        Raises: SharedMemoryError, before anything has moved, if there is not enough memory.
        """
        slots = self._slots.setdefault(optimizer, set())
        moved: list[_Moved] = []
        for segment in segments:
            if segment not in self._segments:
                moved.append(_Moved(segment, None, segment.buffer))
            for key, array in optimizer.slots.arrays(segment).items():
                if (segment.index, key) not in slots:
                    moved.append(_Moved(segment, key, array))
        if not moved:
            return
        group = self._group
        starts = list(itertools.accumulate((padded(each.array.nbytes) for each in moved), initial=0))
        begins = [
            (start + begin * each.array.itemsize, place)
            for start, each in zip(starts, moved, strict=False)
            for begin, place in _parts(each, owned, group.size)
        ]
        memory = group.share_one(starts.pop(), begins, f"{len(moved)} arrays of variables and slots")
        targets = [
            memory[start : start + each.array.nbytes].view(each.array.dtype)
            for start, each in zip(starts, moved, strict=True)
        ]
        if group.index == 0:
            for each, target in zip(moved, targets, strict=True):
                np.copyto(target, each.array)
        group.exchange("variables and slots are in shared memory")
        for (segment, key, _), target in zip(moved, targets, strict=True):
            if key is None:
                segment.move(target)
                self._segments.add(segment)
                for variable in segment.variables:
                    variable.shared = self
            else:
                for slot in optimizer.slots.move(segment, key, target, is_writer=group.index == 0):
                    slot.shared = _Slots(self, optimizer, gather_slots)
                slots.add((segment.index, key))
        optimizer.forget_bindings()

    def before_read(self) -> None:
        """Do nothing: variables are current everywhere."""

    def write(self, stored: Array, write: Callable[[Array], Any]) -> None:
        """Carry out ``write(stored)`` once for all processes, none of which is elsewhere meanwhile; a collective."""
        group = self._group
        what = f"a write to a shared {stored.dtype.name}{list(stored.shape)}"
        group.exchange(what)
        if group.index == 0:
            write(stored)
        group.exchange(f"{what} is done")


def _parts(moved: _Moved, owned: Sequence[Sequence[Span]], size: int) -> Iterator[tuple[int, int]]:
    """Yield the element at which each part of an array begins, and the place in the group of who writes it most."""
    at = 0
    is_flat = moved.key is None or moved.key[1] < 0  # else of one variable, in a shape of its own
    own = [(span, place) for place, spans in enumerate(owned if is_flat else ()) for span in spans]
    for span, place in sorted(each for each in own if each[0].segment_index == moved.segment.index):
        yield from equal_parts(at, span.start, size)
        yield span.start, place
        at = span.stop
    yield from equal_parts(at, moved.array.size, size)


class _Slots:
    """What a slot asks of the memory that it lies in; see :class:`~distopt.variable.SharedStorage`."""

    def __init__(self, arena: SharedArena, optimizer: Any, gather: Callable[[Any], None]) -> None:
        self._optimizer = weakref.ref(optimizer)
        self._gather = gather
        self.write = arena.write

    def before_read(self) -> None:
        optimizer = self._optimizer()
        if optimizer is not None:
            self._gather(optimizer)
