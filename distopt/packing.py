"""Packing: arrays that lie anywhere are copied to where they lie one after another, the small ones many at a time.

Theory of operation. Assigning one array to a place costs 0.3 us beside its bytes, which for a hundred elements is ten
times as much as they are. ``bytes.join`` goes through a list of buffers without a statement of ours; so small
neighbours, and the padding between them, are joined and then written at once, in parts that stay in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from typing import Any, Final, NamedTuple

import numpy as np

from distopt.types import Array, Shape

SMALL_BYTES: Final = 2**14
"""Bytes of an array up to which one more copy of it costs less than a call does."""

BATCH_BYTES: Final = 2**17
"""Bytes of the small arrays that are written at a time at most, so that they are still in the cache afterwards."""


MANY: Final = 16
"""Arrays from which joining them costs less than copying one after another."""


class Place(NamedTuple):
    """Where an array goes: the elements ``start <= i < stop`` of a flat one; ``position`` is its own in a list."""

    position: int
    start: int
    stop: int
    shape: Shape


class Packing:
    """How arrays of one dtype, in a list, go to ``places`` of a flat array; these are in order and do not overlap.

    >>> packing = Packing([Place(1, 0, 2, (2,)), Place(0, 4, 6, (2, 1))], np.dtype(np.float32))
    >>> flat = np.zeros(6, np.float32)
    >>> packing.write([np.ones((2, 1), np.float32), np.full(2, 2.0, np.float32)], flat)
    >>> flat
    array([2., 2., 0., 0., 1., 1.], dtype=float32)
    """

    def __init__(self, places: Sequence[Place], dtype: np.dtype[Any]) -> None:
        together = list(_neighbours(places, dtype.itemsize))
        self.joined = [_Joined(some, dtype.itemsize) for some in together if len(some) >= MANY]
        self.alone: tuple[Place, ...] = tuple(place for some in together if len(some) < MANY for place in some)
        """Those whose arrays are copied one after another."""

    def write(self, arrays: Sequence[Array], flat: Array) -> None:
        """Copy ``arrays``, of their places' shapes and the dtype of ``flat``, whose padding between them is zero."""
        self.write_small(arrays, flat)
        for place in self.alone:
            copy(arrays, flat, place)

    def write_small(self, arrays: Sequence[Array], flat: Array) -> None:
        """Copy the arrays that are not :attr:`alone`."""
        for joined in self.joined:
            joined.write(arrays, flat)


class _Joined:
    """Many small neighbours."""

    def __init__(self, places: Sequence[Place], itemsize: int) -> None:
        self._places = tuple(places)
        self._bytes = slice(places[0].start * itemsize, places[-1].stop * itemsize)
        self.num_bytes = self._bytes.stop - self._bytes.start
        self._pick: Callable[[Sequence[Array]], tuple[Any, ...]] = itemgetter(*[place.position for place in places])
        ends = [place.start for place in places[1:]] + [places[-1].stop]
        paddings = [bytes((end - place.stop) * itemsize) for place, end in zip(places, ends, strict=True)]
        self._pieces: list[Any] = [piece for padding in paddings for piece in (b"", padding)]

    def write(self, arrays: Sequence[Array], flat: Array) -> None:
        pieces = self._pieces.copy()
        pieces[::2] = self._pick(arrays)
        try:
            joined = b"".join(pieces)
        except TypeError:  # one is not in C order
            for place in self._places:
                copy(arrays, flat, place)
            return
        flat.view(np.uint8)[self._bytes] = np.frombuffer(joined, np.uint8)


def copy(arrays: Sequence[Array], flat: Array, place: Place) -> None:
    """Copy one array to its place."""
    flat[place.start : place.stop].reshape(place.shape)[...] = arrays[place.position]


def _neighbours(places: Sequence[Place], itemsize: int) -> Iterator[list[Place]]:
    """Yield the places in order: small neighbours together, as many as are written at a time."""
    together: list[Place] = []
    for place in places:
        fits = together and (place.stop - together[0].start) * itemsize <= BATCH_BYTES
        is_small = (place.stop - place.start) * itemsize <= SMALL_BYTES
        if together and not (fits and is_small):
            yield together
            together = []
        together.append(place)
        if not is_small:
            yield together
            together = []
    if together:
        yield together
