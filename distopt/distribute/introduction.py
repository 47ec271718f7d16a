"""What processes tell each other once about a list of variables, before its first reduction.

Every process comes to its first apply call with a list of variables at the same point of its program; so there is one
small exchange a list, and none in later steps, in which a label travels with the numbers (:mod:`distopt.agreement`).
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from distopt.aggregation import GradientAggregator
from distopt.agreement import Described, Label, describe_names, digest_of, digest_of_numbers, disagreement
from distopt.comm.communicator import Communicator
from distopt.errors import MergeOrderError, RemoteProtocolError
from distopt.types import Array


class _Told(msgspec.Struct, frozen=True, array_like=True):
    """One process's list: names, shapes and dtypes, and whether it has row-sparse gradients."""

    rows: bool
    variables: tuple[tuple[str, tuple[int, ...], str], ...]

    def described(self) -> list[Described]:
        keys = describe_names([name for name, _, _ in self.variables])
        return [Described(key, *variable) for key, variable in zip(keys, self.variables, strict=True)]


class Known(NamedTuple):
    """What is known of a list of variables once it was introduced."""

    rows: bool
    """Whether a replica of any process had row-sparse gradients."""
    digest: int
    """Of what is told, equal on all processes."""


class Introductions:
    """The lists of variables that the processes of ``communicator`` have told each other."""

    def __init__(self, communicator: Communicator | None) -> None:
        self._communicator = communicator
        self._known: weakref.WeakKeyDictionary[Any, dict[tuple[int, ...], Known]] = weakref.WeakKeyDictionary()

    def of(self, optimizer: Any, pairs_of: Sequence[Any]) -> Known:
        """Return what is known of the variables of ``pairs_of``, asking the other processes at the first time.

        Raises: the MistakeError that says how the lists differ; MergeOrderError if the others do something else.
        """
        key = pairs_of[0].key
        known = self._known.get(optimizer)
        if known is None:
            known = self._known[optimizer] = {}
        found = known.get(key)
        if found is None:
            found = known[key] = self._introduce(pairs_of)
        return found

    def _introduce(self, pairs_of: Sequence[Any]) -> Known:
        rows = any(array is None for pairs in pairs_of for array in pairs.arrays)
        mine = _Told(rows, tuple((v.name, tuple(v.shape), v.dtype.name) for _, v in pairs_of[0]))
        communicator = self._communicator
        everyone = [mine]
        if communicator is not None and communicator.size > 1:
            payload = msgspec.msgpack.encode(mine)
            try:
                payloads = communicator.all_gather_bytes(payload)
                everyone = [msgspec.msgpack.decode(p, type=_Told) for p in payloads]
            except (RemoteProtocolError, msgspec.DecodeError) as error:
                raise MergeOrderError(
                    f"rank {communicator.rank} makes its first apply call for "
                    f"{', '.join(name for name, _, _ in mine.variables[:8])}, and another process does something else; "
                    "every process must make the same all_reduce and apply_gradients calls in the same order"
                ) from error
        lists = [told.described() for told in everyone]
        for rank, other in enumerate(lists[1:], start=1):
            if _comparable(other) != _comparable(lists[0]):
                raise disagreement("rank 0", lists[0], f"rank {rank}", other)
        return Known(any(told.rows for told in everyone), digest_of("gradients", _comparable(lists[0])))


def label_of_step(known: Known, operation: str, hypers: Mapping[str, float], step: int) -> bytes:
    """Return the label of the reduction of one step's gradients."""
    return Label(known.digest ^ _digest_of_name(operation), digest_of_numbers(hypers.values()), step).encode()


def label_of_values(aggregator: GradientAggregator, arrays: Sequence[Array]) -> bytes:
    """Return the label of a reduction of values, of which those of one replica are ``arrays``."""
    return _label_of_kinds(aggregator.name, tuple([(array.shape, array.dtype.num) for array in arrays]))


@functools.lru_cache(maxsize=1024)
def _label_of_kinds(aggregator: str, kinds: tuple[Any, ...]) -> bytes:
    return Label(digest_of("values", aggregator, kinds)).encode()


@functools.cache
def _digest_of_name(name: str) -> int:
    return digest_of(name)


def _comparable(described: Sequence[Described]) -> list[tuple[Any, ...]]:
    return [(v.key, v.shape, v.dtype) for v in described]
