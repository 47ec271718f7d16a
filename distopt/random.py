"""Random numbers that are a function of named integers, so that every process draws the same ones; ``tf.random``.

A *stream* is a Philox counter generator whose key is ``(seed, index)`` and whose highest counter word is a *domain*,
one for each use. Streams of different domains, seeds or indices never overlap: no stream is long enough to count its
lowest two words through. The third word is for replicas: inside ``strategy.run`` each draws values of its own, which
depend on its number and on how much *it* drew before, and not on which process hosts it. How much was drawn is part of
a job's checkpoints (:class:`Streams`): a resumed job draws what it would have drawn.

What is drawn as raw integers (shuffles, splits) is the same in every version of NumPy, which keeps the output
of its bit generators; what goes through its ``Generator`` (normal variates) may change between versions.

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"; NumPy NEP 19.
"""

from __future__ import annotations

import enum
import operator
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np

from distopt import replica_context
from distopt.tensor import Operand, Tensor, to_array
from distopt.types import Array

_WORD = 2**64


class Domain(enum.IntEnum):
    """What a stream is used for."""

    VARIABLE = 1
    EPOCH = 2
    SPLIT = 3
    SHUFFLE_SEED = 4
    BUFFER = 5
    VALUES = 6
    SEEDED_VALUES = 7
    RATE_NOISE = 8


def stream(domain: Domain, seed: int, index: int = 0, part: int = 0) -> np.random.Philox:
    """Return the bit generator of ``(domain, seed, index, part)``, at its start.

    ``seed`` and ``index`` are taken modulo 2**64; ``part`` is a small number, 0 unless replicas draw for themselves.

    Raises: TypeError if one of them is not an integer.
    """
    key = np.array([operator.index(seed) % _WORD, operator.index(index) % _WORD], np.uint64)
    counter = np.array([0, 0, operator.index(part), domain], np.uint64)
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
    current_streams().reset(operator.index(seed))


def seed_scope(seed: int) -> AbstractContextManager[None]:
    """Have a seed and counts of its own within a ``with`` block of this thread; the ones outside stay as they are.

    So what is built inside is a function of ``seed`` alone, whatever other threads draw meanwhile.

    Raises: TypeError if ``seed`` is not an integer.
    """
    return draw_from(Streams(operator.index(seed)))


@contextmanager
def draw_from(streams: Streams) -> Iterator[None]:
    """Draw from ``streams`` within a ``with`` block of this thread, going on where they are."""
    token = _scope.set(streams)
    try:
        yield
    finally:
        _scope.reset(token)


def get_seed() -> int:
    """Return the seed that ``set_seed`` or ``seed_scope`` set last."""
    return current_streams().seed


def next_stream(domain: Domain = Domain.VARIABLE) -> np.random.Philox:
    """Return the stream of the current seed and of the number of calls for ``domain`` since it was set.

    Processes that create the same variables in the same order draw the same values.
    """
    return current_streams().next_stream(domain)


# ---------------------------------------------------------------- tensors of random values


def normal(
    shape: Any,
    mean: float = 0.0,
    stddev: float = 1.0,
    dtype: Any = np.float32,
    seed: int | None = None,
    name: str | None = None,
) -> Tensor:
    """Return values of a normal distribution.

    With a ``seed`` they depend on it, and on how often it was drawn from since ``set_seed``; else on the global seed
    and on how many draws there were. In ``strategy.run`` every replica draws values of its own.
    """
    del name
    drawn = np.random.Generator(_values(seed)).standard_normal(_shape(shape))
    return Tensor(np.asarray(drawn * stddev + mean).astype(dtype))


def truncated_normal(
    shape: Any,
    mean: float = 0.0,
    stddev: float = 1.0,
    dtype: Any = np.float32,
    seed: int | None = None,
    name: str | None = None,
) -> Tensor:
    """Return values of a normal distribution, those beyond two standard deviations drawn again; see :func:`normal`."""
    del name
    generator = np.random.Generator(_values(seed))
    drawn = np.asarray(generator.standard_normal(_shape(shape)))
    while (beyond := np.abs(drawn) > 2).any():
        drawn[beyond] = generator.standard_normal(int(beyond.sum()))
    return Tensor((drawn * stddev + mean).astype(dtype))


def uniform(
    shape: Any,
    minval: float = 0,
    maxval: float | None = None,
    dtype: Any = np.float32,
    seed: int | None = None,
    name: str | None = None,
) -> Tensor:
    """Return values evenly distributed over ``minval <= x < maxval`` (None: 1); see :func:`normal` for the seed.

    Raises: ValueError for an integer ``dtype`` without ``maxval``, or an interval without integers.
    """
    del name
    generator, wanted, lengths = np.random.Generator(_values(seed)), np.dtype(dtype), _shape(shape)
    if wanted.kind in "iu":
        if maxval is None or not minval < maxval:
            raise ValueError(f"uniform integers need minval < maxval, not {minval} and {maxval}")
        return Tensor(np.asarray(generator.integers(int(minval), int(maxval), lengths)).astype(wanted))
    high = 1.0 if maxval is None else float(maxval)
    drawn = np.asarray(generator.random(lengths) * (high - minval) + minval).astype(wanted)
    # Rounding to the dtype may reach the end that is left out.
    return Tensor(np.where(drawn < high, drawn, np.nextafter(wanted.type(high), wanted.type(minval))))


def shuffle(value: Any, seed: int | None = None, name: str | None = None) -> Tensor:
    """Return ``value`` with the slices along its first axis in random order; see :func:`normal` for the seed."""
    del name
    array = np.asarray(value.numpy() if isinstance(value, Operand) else to_array(value))
    return Tensor(array[permutation(_values(seed), len(array))])


def _values(seed: int | None) -> np.random.Philox:
    context = replica_context.current()
    alone = context.is_default or context.replica is None
    part = 0 if alone else int(context.replica.replica_id_in_sync_group) + 1  # type: ignore[union-attr]  # alone if None
    if seed is None:
        return current_streams().next_stream(Domain.VALUES, part=part)
    return current_streams().next_stream(Domain.SEEDED_VALUES, operator.index(seed), part)


def _shape(shape: Any) -> Any:
    return shape.numpy().tolist() if isinstance(shape, Operand) else shape


class Streams:
    """A seed, and how many streams were taken: by domain, by seed, and by who draws, a replica or all of them.

    >>> streams = Streams(7)
    >>> with draw_from(streams):
    ...     first, second = uniform([2]), uniform([2])
    >>> streams.taken()
    {('VALUES', 7, None): 2}
    >>> again = Streams(7)
    >>> again.go_on({("VALUES", 7, None): 1})
    >>> with draw_from(again):
    ...     bool((uniform([2]).numpy() == second.numpy()).all())
    True
    """

    def __init__(self, seed: int) -> None:
        self._lock = threading.Lock()
        self.reset(seed)

    def reset(self, seed: int) -> None:
        """Begin anew, with ``seed``."""
        with self._lock:
            self.seed = seed
            self._taken: dict[tuple[Domain, int, int], int] = {}

    def next_stream(self, domain: Domain, seed: int | None = None, part: int = 0) -> np.random.Philox:
        """Return the next stream of a domain, of the seed that was set unless one is given."""
        key = domain, self.seed if seed is None else seed, part
        with self._lock:
            number = self._taken.get(key, 0)
            self._taken[key] = number + 1
        return stream(domain, key[1], number, part)

    def taken(self) -> dict[tuple[str, int, int | None], int]:
        """Return how many streams were taken, by name of the domain, seed and replica; None: outside of replicas."""
        with self._lock:
            return {(d.name, seed, part - 1 if part else None): count for (d, seed, part), count in self._taken.items()}

    def go_on(self, taken: Mapping[tuple[str, int, int | None], int]) -> None:
        """Draw next what follows on ``taken``, which :meth:`taken` returned."""
        with self._lock:
            self._taken = {
                (Domain[name], seed, 0 if replica is None else replica + 1): count
                for (name, seed, replica), count in taken.items()
            }


_process = Streams(0)
_scope: ContextVar[Streams | None] = ContextVar("distopt_seed_scope", default=None)


def current_streams() -> Streams:
    """Return what this thread draws from."""
    return _scope.get() or _process
