"""The order of samples, apart from what the samples are.

A stream yields *blocks*: arrays of row numbers, or lists of elements that some function made. Shuffling, repeating and
slicing treat both alike, and arrays in one NumPy call, so a pipeline over arrays runs no Python for a sample.
A stream may be read any number of times.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, Protocol, TypeAlias

import numpy as np

from distopt import nest
from distopt.random import Domain, permutation, stream
from distopt.sampling import epoch_permutation
from distopt.types import Array

Block: TypeAlias = "Array | list[Any]"

INFINITE = -1
_DRAWS = 1024


class Stream(Protocol):
    """Blocks of items, of ``size`` items in all, or ``INFINITE``."""

    @property
    def size(self) -> int: ...

    def blocks(self) -> Iterator[Block]: ...


class Numbers:
    """The row numbers ``0 .. size - 1``."""

    def __init__(self, size: int) -> None:
        self.size = size

    def blocks(self) -> Iterator[Block]:
        yield np.arange(self.size)


class Shuffled:
    """Another order of ``source``: a function of the seed and of how often the stream was read before.

    Where the buffer can hold all of the source, reading number k has the order ``epoch_permutation(seed, k, size)``.
    Else the buffer is filled, and each item that follows takes the place of a random one, which leaves; what the
    buffer holds at the end leaves in random order. So an item may leave at most ``buffer_size`` places early.
    """

    def __init__(self, source: Stream, buffer_size: int, seed: int, reshuffle: bool) -> None:
        self.size = source.size
        self._source = source
        self._buffer_size = buffer_size
        self._seed = seed
        self._readings = itertools.count() if reshuffle else itertools.repeat(0)

    def blocks(self) -> Iterator[Block]:
        reading = next(self._readings)
        if self.size == INFINITE or self.size > self._buffer_size:
            yield from self._through_buffer(reading)
        else:
            everything = join(list(self._source.blocks()))
            yield pick(everything, epoch_permutation(self._seed, reading, len(everything)))

    def _through_buffer(self, reading: int) -> Iterator[Block]:
        bits = stream(Domain.BUFFER, self._seed, reading)
        buffer: Block = []
        for block in rechunk(self._source.blocks(), _DRAWS):
            room = max(0, self._buffer_size - len(buffer))
            buffer = join([buffer, block[:room]]) if len(buffer) else block[:room]
            leaving = []
            draws = (bits.random_raw(_DRAWS) >> np.uint64(32)).tolist()
            for item, draw in zip(block[room:], draws, strict=False):
                place = draw * self._buffer_size >> 32
                leaving.append(buffer[place])
                buffer[place] = item
            if leaving:
                yield like(block, leaving)
        yield pick(buffer, permutation(bits, len(buffer)))


class Repeated:
    """``source`` read ``count`` times over, or without end; a source without items ends at once."""

    def __init__(self, source: Stream, count: int) -> None:
        endless = count < 0 or source.size == INFINITE
        self.size = source.size * count if not endless else INFINITE if source.size else 0
        self._source = source
        self._count = count

    def blocks(self) -> Iterator[Block]:
        if self.size:
            for _ in itertools.count() if self._count < 0 else range(self._count):
                yield from self._source.blocks()


class Sliced:
    """Items ``start <= i < stop`` of ``source``; no ``stop`` means to its end."""

    def __init__(self, source: Stream, start: int, stop: int | None) -> None:
        if source.size == INFINITE:
            self.size = INFINITE if stop is None else max(0, stop - start)
        else:
            self.size = len(range(source.size)[start:stop])
        self._source = source
        self._start = start
        self._stop = stop

    def blocks(self) -> Iterator[Block]:
        position = 0
        if self.size == 0:
            return
        for block in self._source.blocks():
            stop = None if self._stop is None else max(0, self._stop - position)
            part = block[max(0, self._start - position) : stop]
            position += len(block)
            if len(part):
                yield part
            if self._stop is not None and position >= self._stop:
                return


class Strided:
    """Every ``step``-th item of ``source``, from item ``start`` on."""

    def __init__(self, source: Stream, start: int, step: int) -> None:
        self.size = INFINITE if source.size == INFINITE else len(range(start, source.size, step))
        self._source = source
        self._start = start
        self._step = step

    def blocks(self) -> Iterator[Block]:
        position = 0
        for block in self._source.blocks():
            part = block[(self._start - position) % self._step :: self._step] if len(block) else block
            position += len(block)
            if len(part):
                yield part


class Cached:
    """What ``source`` yields the first time that it is read to its end. Elements that are kept cannot be written to."""

    def __init__(self, source: Stream) -> None:
        self.size = source.size
        self._source = source
        self._kept: list[Block] | None = None

    def blocks(self) -> Iterator[Block]:
        if self._kept is not None:
            yield from self._kept
            return
        seen: list[Block] = []
        for block in self._source.blocks():
            seen.append(block if isinstance(block, np.ndarray) else nest.map_structure(_read_only, block))
            yield seen[-1]
        self._kept = seen


def _read_only(array: Any) -> Array:
    view = np.asarray(array).view()
    view.flags.writeable = False
    return view


def rechunk(blocks: Iterator[Block], size: int, drop_remainder: bool = False) -> Iterator[Block]:
    """Yield the same items in blocks of ``size``; the last may be short, unless it is to be dropped."""
    pending: list[Block] = []
    count = 0
    for block in blocks:
        start = 0
        while len(block) - start >= size - count:
            stop = start + size - count
            yield join([*pending, block[start:stop]])
            pending, count, start = [], 0, stop
        if start < len(block):
            pending.append(block[start:])
            count += len(block) - start
    if count and not drop_remainder:
        yield join(pending)


def join(blocks: list[Block]) -> Block:
    """Return the items of ``blocks`` as one block."""
    if len(blocks) == 1:
        return blocks[0]
    if blocks and isinstance(blocks[0], np.ndarray):
        return np.concatenate(blocks)
    return [item for block in blocks for item in block]


def pick(block: Block, order: Array) -> Block:
    """Return the items of ``block`` at the positions ``order``."""
    return block[order] if isinstance(block, np.ndarray) else [block[i] for i in order]


def like(block: Block, items: list[Any]) -> Block:
    """Return ``items`` as a block of the kind of ``block``."""
    return np.array(items, block.dtype) if isinstance(block, np.ndarray) else items
