"""The global batches that ``fit`` and ``evaluate`` go through."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from distopt.sampling import batch_bounds, batch_length, epoch_permutation, num_steps

Batch = tuple[Any, ...]


class CountedBatches:
    """Batches, whose numbers of rows are noted as they pass; ``on_first`` gets the first one before it passes."""

    def __init__(self, batches: Iterable[Batch], on_first: Callable[[Batch], None]) -> None:
        self.lengths: deque[int] = deque()
        self._batches = batches
        self._on_first: Callable[[Batch], None] | None = on_first

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._batches:
            if not isinstance(batch, tuple) or not 2 <= len(batch) <= 3:
                raise ValueError("a batch must be a tuple (x, y) or (x, y, sample_weight)")
            if self._on_first is not None:
                self._on_first(batch)
                self._on_first = None
            self.lengths.append(batch_length(batch))
            yield batch


class GlobalBatches:
    """The global batches of an epoch: those of an iterable, or rows of arrays in a random order if there is a seed."""

    def __init__(
        self,
        x: Any,
        y: Any,
        sample_weight: Any,
        batch_size: int | None,
        seed: int | None = None,
        shuffle: bool = False,
    ) -> None:
        if x is None:
            raise ValueError("there are no data: x is None")
        self._iterable = x if y is None and not hasattr(x, "shape") and not isinstance(x, list) else None
        if self._iterable is not None:
            return
        self._arrays = tuple(np.asarray(part) for part in (x, y, sample_weight) if part is not None)
        self._length = batch_length(self._arrays)
        self._batch_size = 32 if batch_size is None else batch_size
        self._seed = seed if shuffle else None
        num_steps(self._length, self._batch_size)

    def from_epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of this epoch and, of arrays, of those that follow; an iterable is read once."""
        if self._iterable is not None:
            return self.of_epoch(epoch)
        return itertools.chain.from_iterable(map(self.of_epoch, itertools.count(epoch)))

    def of_epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches as tuples."""
        if self._iterable is not None:
            for batch in self._iterable:
                yield tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
            return
        order = None if self._seed is None else epoch_permutation(self._seed, epoch, self._length)
        for step in range(num_steps(self._length, self._batch_size)):
            start, stop = batch_bounds(self._length, self._batch_size, step)
            rows = slice(start, stop) if order is None else order[start:stop]
            yield tuple([array[rows] for array in self._arrays])


def exactly(count: int | None, batches: Iterator[Batch]) -> Iterator[Batch]:
    """Yield the next ``count`` batches.

    Raises: ValueError if there are fewer.
    """
    for step in range(count or 0):
        batch = next(batches, None)
        if batch is None:
            raise ValueError(f"the data ran out after {step} of {count} steps of an epoch; repeat() them")
        yield batch
