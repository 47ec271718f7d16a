"""Ranks that wait for each other in different calls, and so for ever: how that is known, and what is said of it.

Rules of this file: no transport, no clock.

A rank that has waited for a while tells the others where. All ranks make the same exchanges in the same order, and each
counts those that it has come to: those of the communicator, and the meetings of its host. A rank goes on when the ranks
that it waits for have come to the same exchange. One of them whose count is lower has not, nor has one that makes
another call of it; if it waits itself, for a rank that has not come to its exchange either, and so on back to the
first, none of them ever goes on.

That is a proof, however old the news is: who waits stays where it is until others come, and counts only grow. A rank
that is merely late waits for nobody; and one whose messages are on their way has been counted as having come.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final, Self

import msgspec

from distopt.agreement import find_odd, label_mismatch
from distopt.comm.communicator import Communicator
from distopt.comm.transfers import Wait, name_ranks
from distopt.errors import MergeOrderError, MistakeError

SAME_CALLS: Final = "every process must make the same all_reduce, apply_gradients and assign calls in the same order"

_OTHERS_WITHIN_S: Final = 0.5
"""So long the others may take to say where they are, once some are known to wait for ever: most of them are right."""

_MOST_RANKS: Final = 128
_MOST_LETTERS: Final = 256


class Called(msgspec.Struct, frozen=True, array_like=True):
    """The call that a rank is in; ``label``: that of what it does, see :mod:`distopt.agreement`; empty for none."""

    what: str
    label: bytes

    @classmethod
    def of(cls, what: str, label: bytes) -> Self:
        """Return a call, with a name that is short enough for a message."""
        return cls(what[:_MOST_LETTERS], label)

    @property
    def key(self) -> bytes:
        """What is the same on all ranks that are in the same call."""
        return self.label or self.what.encode()


class LongWait(msgspec.Struct, frozen=True, array_like=True):
    """What a rank waits for, as the others are told."""

    called: Called
    step: int
    missing: tuple[int, ...]
    """The ranks that it waits for, or some of them."""
    on_host: bool
    """Whether it is a meeting of the ranks of a host."""
    num_exchanges: int
    num_meetings: int
    """How many of each the rank has come to, this one included."""

    @classmethod
    def of(cls, owner: Communicator, wait: Wait) -> Self:
        """Return what ``owner`` tells the others of ``wait``, which is under way."""
        missing = tuple(wait.missing()[:_MOST_RANKS])
        return cls(
            Called.of(wait.what, wait.label), owner.step, missing, wait.on_host, owner.num_exchanges, owner.num_meetings
        )

    def __str__(self) -> str:
        return f"waits for {name_ranks(self.missing)} itself, in step {self.step}: {self.called.what}"

    def is_missed_by(self, other: LongWait) -> bool:
        """Return whether this rank has not come to what ``other`` waits in, and is elsewhere."""
        if other.on_host:
            return self.num_meetings < other.num_meetings
        if self.num_exchanges == other.num_exchanges and not self.on_host:
            return self.called.what != other.called.what and self.called.key != other.called.key
        return self.num_exchanges < other.num_exchanges


def waiting_for_ever(waits: Mapping[int, LongWait]) -> set[int]:
    """Return the ranks that can never go on, of those that have told their waits.

    >>> def wait(missing, on_host, exchanges, meetings):
    ...     return LongWait(Called("a call", b""), 0, missing, on_host, exchanges, meetings)
    >>> waiting_for_ever({0: wait((1,), True, 4, 9), 1: wait((0, 2), False, 5, 8)})
    {0, 1}
    >>> waiting_for_ever({0: wait((1,), True, 4, 9), 1: wait((2,), False, 5, 8)})  # rank 2 is late
    set()
    >>> waiting_for_ever({0: wait((1,), True, 5, 9), 1: wait((0,), False, 5, 8)})  # rank 0 has been there
    set()
    """
    found = set(waits)
    while goes_on := {
        rank
        for rank in found
        if not any(peer in found and waits[peer].is_missed_by(waits[rank]) for peer in waits[rank].missing)
    }:
        found -= goes_on
    return found


class Standstill:
    """Finds that ranks wait for each other for ever, in the course of one wait after another."""

    def __init__(self) -> None:
        self._since_s: float | None = None

    def error(self, waits: Mapping[int, LongWait], untold: Collection[int], now_s: float) -> MistakeError | None:
        """Return the error if ranks wait for ever; None as long as some of them, ``untold``, may yet say where.

        ``waits``: by rank. The error is the same on all ranks, if they know the same.
        """
        if not waiting_for_ever(waits):
            self._since_s = None
            return None
        if self._since_s is None:
            self._since_s = now_s
        if untold and now_s - self._since_s < _OTHERS_WITHIN_S:
            return None
        return calls_differ({rank: wait.called for rank, wait in waits.items()})


def calls_differ(calls: Mapping[int, Called]) -> MistakeError | None:
    """Return the error for the calls of ranks, the same on all ranks; None if all are in the same call.

    It names the first rank whose call is not that of most, and both calls.

    >>> calls = {rank: Called("writing" if rank else "reading", b"") for rank in range(3)}
    >>> str(calls_differ(calls)).partition(";")[0]
    "rank 1 (as 2 of 3) comes to 'writing' where rank 0 comes to 'reading'"
    """
    odd = find_odd({rank: calls[rank].key for rank in sorted(calls)})
    if odd is None:
        return None
    most, other = calls[odd.reference], calls[odd.rank]
    if most.what == other.what and most.label and other.label:
        return label_mismatch(odd.most, most.label, odd.name, other.label)
    return MergeOrderError(f"{odd.most} comes to {most.what!r} where {odd.name} comes to {other.what!r}; {SAME_CALLS}")
