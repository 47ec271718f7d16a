"""What is to go wrong in a group of replicas, decided before it runs."""

from __future__ import annotations

import math


class FaultPlan:
    """Faults by rank and number of exchange; one exchange is one round of messages, counted from 0 on each rank.

    A small ``all_reduce`` or a ``barrier`` is one exchange, a large ``combine`` is two. Every method returns the plan
    itself, so that faults can be chained. Given to :func:`~distopt.testing.run_replicas`.

    >>> from distopt.errors import PeerLostError
    >>> from distopt.testing import run_replicas
    >>> def replica(comm):
    ...     comm.barrier()
    ...     comm.barrier()
    >>> try:
    ...     run_replicas(replica, 2, faults=FaultPlan().kill(rank=1, exchange=1))
    ... except PeerLostError as error:
    ...     print(str(error).partition(";")[0])
    rank 1 was killed by the fault plan in its exchange 1
    """

    def __init__(self) -> None:
        self._kills: set[tuple[int, int]] = set()
        self._delays_s: dict[tuple[int, int, int], float] = {}

    def kill(self, *, rank: int, exchange: int) -> FaultPlan:
        """Let ``rank`` vanish as it begins this exchange, before it sends anything."""
        self._kills.add((rank, exchange))
        return self

    def drop(self, *, source: int, destination: int, exchange: int) -> FaultPlan:
        """Lose what ``source`` sends to ``destination`` in this exchange, and with it all that follows on this way."""
        self._delays_s[source, destination, exchange] = math.inf
        return self

    def delay(self, *, source: int, destination: int, exchange: int, seconds: float) -> FaultPlan:
        """Let what ``source`` sends to ``destination`` in this exchange be under way for ``seconds``.

        The time is skipped as soon as nobody can do anything but wait, so that a test does not last longer for it.

        Raises: ValueError for a time below zero.
        """
        if seconds < 0.0:
            raise ValueError(f"a message cannot arrive {-seconds} s before it is sent")
        self._delays_s[source, destination, exchange] = seconds
        return self

    def kills(self, rank: int, exchange: int) -> bool:
        """Return whether ``rank`` dies as it begins this exchange."""
        return (rank, exchange) in self._kills

    def delay_s(self, source: int, destination: int, exchange: int) -> float:
        """Return how long these messages are under way; infinity if they are lost."""
        return self._delays_s.get((source, destination, exchange), 0.0)
