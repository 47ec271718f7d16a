"""Random numbers that are a function of named integers, so that every process draws the same ones.

A *stream* is a Philox counter generator whose key is ``(seed, index)`` and whose highest counter word is a *domain*,
one for each use. Streams of different domains, seeds or indices never overlap: no stream is long enough to count its
lowest three words through.

What is drawn as raw integers (shuffles, splits) is the same in every version of NumPy, which keeps the output
of its bit generators; what goes through its ``Generator`` (normal variates) may change between versions.

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"; NumPy NEP 19.
"""

from __future__ import annotations

import enum
import itertools
import operator
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np

from distopt.types import Array

_WORD = 2**64


class Domain(enum.IntEnum):
    """What a stream is used for."""

    VARIABLE = 1
    EPOCH = 2
    SPLIT = 3
    SHUFFLE_SEED = 4
    BUFFER = 5


def stream(domain: Domain, seed: int, index: int = 0) -> np.random.Philox:
    """Return the bit generator of ``(domain, seed, index)``, at its start.

    ``seed`` and ``index`` are taken modulo 2**64.

    Raises: TypeError if one of them is not an integer.
    """
    key = np.array([operator.index(seed) % _WORD, operator.index(index) % _WORD], np.uint64)
    counter = np.array([0, 0, 0, domain], np.uint64)
    return np.random.Philox(key=key, counter=counter)


def permutation(bits: np.random.Philox, length: int) -> Array:
    """Return the numbers below ``length`` in random order, int64: the order that sorts ``length`` raw draws.

    The lowest bits of each draw, as many as a number below ``length`` has, give way to its position: so all differ, and
    any way of sorting has the same result.
    """
    draws = bits.random_raw(length)
    position = np.uint64((1 << max(length - 1, 0).bit_length()) - 1)
    draws &= ~position
    draws |= np.arange(length, dtype=np.uint64)
    draws.sort()
    draws &= position
    return draws.view(np.int64)


def set_seed(seed: int) -> None:
    """Set the seed of all streams that are not given one, and start counting them from zero again.

    Without a call the seed is 0: processes of one job must agree, so there is no seed from the clock.

    Raises: TypeError if ``seed`` is not an integer.
    """
    _current().reset(operator.index(seed))


@contextmanager
def seed_scope(seed: int) -> Iterator[None]:
    """Have a seed and counts of its own within a ``with`` block of this thread; the ones outside stay as they are.

    So what is built inside is a function of ``seed`` alone, whatever other threads draw meanwhile.

    Raises: TypeError if ``seed`` is not an integer.
    """
    token = _scope.set(_Streams(operator.index(seed)))
    try:
        yield
    finally:
        _scope.reset(token)


def get_seed() -> int:
    """Return the seed that ``set_seed`` or ``seed_scope`` set last."""
    return _current().seed


def next_stream(domain: Domain = Domain.VARIABLE) -> np.random.Philox:
    """Return the stream of the current seed and of the number of calls for ``domain`` since it was set.

    Processes that create the same variables in the same order draw the same values.
    """
    return _current().next_stream(domain)


class _Streams:
    """A seed, and for each domain how many streams were taken."""

    def __init__(self, seed: int) -> None:
        self._lock = threading.Lock()
        self.reset(seed)

    def reset(self, seed: int) -> None:
        with self._lock:
            self.seed = seed
            self._taken: dict[Domain, Iterator[int]] = {domain: itertools.count() for domain in Domain}

    def next_stream(self, domain: Domain) -> np.random.Philox:
        with self._lock:
            return stream(domain, self.seed, next(self._taken[domain]))


_process = _Streams(0)
_scope: ContextVar[_Streams | None] = ContextVar("distopt_seed_scope", default=None)


def _current() -> _Streams:
    return _scope.get() or _process
