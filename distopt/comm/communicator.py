"""What a transport must offer, and the collectives that follow from it.

A transport implements :meth:`Communicator.exchange` alone: a set of point-to-point buffers, all under way at once,
finished or failed by a deadline. Every collective is written once, on top of it, so the bits cannot depend on the
transport.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from distopt.canonical_sum import Node, SumTree, contiguous_ranges
from distopt.types import Array


class Contribution(NamedTuple):
    """The sum of the replicas of one node: flat, contiguous arrays, alike in count, length and dtype everywhere."""

    node: Node
    arrays: tuple[Array, ...]


@dataclass(frozen=True)
class Hosting:
    """Which replicas each rank hosts; the same value on every rank.

    >>> Hosting.contiguous(8, 3).hosted[1]
    (3, 4, 5)
    """

    num_replicas: int
    hosted: tuple[tuple[int, ...], ...]
    tree: SumTree = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        everyone = sorted(r for replicas in self.hosted for r in replicas)
        if everyone != list(range(self.num_replicas)):
            raise ValueError(f"each of {self.num_replicas} replicas needs one host; hosted are {self.hosted}")
        object.__setattr__(self, "tree", SumTree(self.num_replicas))

    @classmethod
    def contiguous(cls, num_replicas: int, num_workers: int) -> Hosting:
        """Return the default: contiguous ranges, as equal as possible, larger ones first."""
        return cls(num_replicas, tuple(tuple(r) for r in contiguous_ranges(num_replicas, num_workers)))


@dataclass
class Traffic:
    """Bytes of payload that crossed the boundary of this process, and seconds spent waiting for others."""

    bytes_sent: int = 0
    bytes_received: int = 0
    wait_s: float = 0.0


class Send(NamedTuple):
    """One buffer for ``peer``: contiguous, not written to until ``exchange`` has returned."""

    peer: int
    array: Array


class Receive(NamedTuple):
    """Where the next buffer from ``peer`` goes: contiguous, of exactly its number of bytes."""

    peer: int
    array: Array


class Communicator(abc.ABC):
    """``size`` ranks that call the same collectives in the same order.

    Every call may raise PeerLostError, CollectiveTimeoutError or JobAbortedError; after one of them the communicator
    cannot be used any more. ``step`` is only read, for error messages.
    """

    rank: int
    size: int
    traffic: Traffic
    step: int = 0

    @abc.abstractmethod
    def exchange(self, sends: Sequence[Send], receives: Sequence[Receive], what: str) -> None:
        """Carry out all transfers at once; return when all are done.

        Between two ranks buffers arrive in the order in which they were sent. A rank may send to itself.
        ``what`` names the collective in errors: "rank 2 waited 8.0 s in step 17 for ranks 0, 3: <what>".
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Release what the transport holds; a second call does nothing."""

    def combine(self, contributions: Sequence[Contribution], hosting: Hosting, aggregator: Any, like: Sequence[Array]) -> list[Array]:
        """Return the aggregate of all replicas' contributions, the same bits on every rank.

        ``contributions`` of this rank are ``hosting.tree.cover(hosting.hosted[rank])`` where ``aggregator.sums``,
        else one per hosted replica. A rank that hosts no replica passes none and still takes part, so it needs
        ``like``, empty arrays of the right lengths and dtypes. Rank i owns the i-th part of each array: it receives that part of every
        contribution, combines them, and sends the result to all.
        """
        raise NotImplementedError

    def all_reduce(self, reduce_op: Any, arrays: Sequence[Array]) -> list[Array]:
        """Return the canonical sum (or mean) over *ranks* of each array; shapes and dtypes are alike everywhere."""
        raise NotImplementedError

    def all_gather_bytes(self, payload: bytes) -> list[bytes]:
        """Return every rank's payload, in rank order; lengths may differ."""
        raise NotImplementedError

    def broadcast_bytes(self, payload: bytes | None, root: int = 0) -> bytes:
        """Return ``root``'s payload on every rank."""
        raise NotImplementedError

    def barrier(self) -> None:
        """Return when every rank has called this."""
        self.all_gather_bytes(b"")
