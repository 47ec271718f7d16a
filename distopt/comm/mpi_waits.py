"""Waiting for MPI's requests: test, offer the core to others, then sleep; look around; give up at the deadline.

MPI moves data only while it is called, so a wait is a loop. While it lasts it notes who has come, and logs who comes
late.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from distopt.comm.arrivals import Arrivals
from distopt.comm.communicator import Communicator, Wait, name_ranks
from distopt.errors import CollectiveTimeoutError

if TYPE_CHECKING:
    from mpi4py import MPI

logger = logging.getLogger(__name__)

_YIELDS: Final = 100
"""So many times the core is offered to others before a wait begins to sleep."""

_MIN_PAUSE_S: Final = 20e-6
MAX_PAUSE_S: Final = 1e-3
_PAUSE_SHARE: Final = 0.1
"""A wait sleeps for this share of what it has lasted, so it ends at most so much late."""

_LOOK_EVERY_S: Final = 0.1
_GAP_S: Final = 2.0
"""A pause this long between two looks means that this process was stopped; its waits are prolonged by it."""

_LATE_S: Final = 1.0
"""A rank that comes so much later than the median of the others is logged."""


class Requests(NamedTuple):
    """What is under way: requests, and the peer of each."""

    what: str
    started_s: float
    requests: list[MPI.Request]
    peers: list[int]
    everyone: tuple[int, ...] = ()
    """All ranks, for a request that has no single peer."""
    label: bytes = b""
    max_pause_s: float = MAX_PAUSE_S

    def missing(self) -> list[int]:
        """Return the ranks whose transfers are not done."""
        if self.everyone:
            return list(self.everyone)
        pairs = zip(self.requests, self.peers, strict=True)
        return sorted({peer for request, peer in pairs if not request.Get_status()})


class Waits:
    """The waits of ``owner``, one at a time; ``mpi`` is mpi4py's module."""

    def __init__(self, mpi: Any, owner: Communicator) -> None:
        self._mpi = mpi
        self._owner = owner
        self.current: Wait | None = None
        """What is waited for, or was when a wait failed."""
        self.statuses: list[MPI.Status] = []
        """Of the latest requests."""
        self._arrivals: Arrivals | None = None
        """Of the wait under way, once it has lasted."""

    def complete(self, wait: Requests, look: Callable[[Requests], object]) -> list[MPI.Status]:
        """Return when all requests are done; ``look`` is called a few times a second, and may raise.

        Raises: CollectiveTimeoutError.
        """
        self.current = wait
        self.statuses = statuses = [self._mpi.Status() for _ in wait.requests]
        test_all = self._mpi.Request.Testall
        yields = 0
        looked_s = wait.started_s
        deadline_s = wait.started_s + self._owner.timeout_s
        while not test_all(wait.requests, statuses):
            if yields < _YIELDS:
                yields += 1
                os.sched_yield()
                continue
            now_s = time.monotonic()
            if now_s - looked_s >= _LOOK_EVERY_S:
                if now_s - looked_s > _GAP_S:
                    deadline_s += now_s - looked_s
                looked_s = now_s
                self._note_arrivals(wait, wait.missing(), now_s)
                look(wait)
                if now_s >= deadline_s:
                    raise CollectiveTimeoutError(self.situation())
            time.sleep(min(wait.max_pause_s, max(_MIN_PAUSE_S, _PAUSE_SHARE * (now_s - wait.started_s))))
        if self._arrivals is not None:
            self._note_arrivals(wait, [], time.monotonic())
            self._arrivals = None
        self.current = None
        return statuses

    def situation(self) -> str:
        """Return what this rank is waiting for, as part of a message."""
        owner, wait = self._owner, self.current
        if wait is None:
            return f"rank {owner.rank} waited for nothing"
        now_s, missing = time.monotonic(), wait.missing()
        waiting = describe_wait(owner.rank, owner.step, now_s - wait.started_s, missing, wait.what)
        if self._arrivals is None or not isinstance(wait, Requests) or wait.everyone:
            return waiting
        return f"{waiting}; {self._late(missing, self._arrivals.lateness_s(now_s), 'would come')}"

    def _note_arrivals(self, wait: Requests, missing: Sequence[int], now_s: float) -> None:
        """Take in who has not come, and log who comes late."""
        if self._arrivals is None:
            self._arrivals = Arrivals(self._owner.rank, wait.started_s)
        late_s = self._arrivals.lateness_s(now_s)
        came = self._arrivals.note(wait.peers, missing, now_s)
        if came and late_s >= _LATE_S:
            logger.warning("%s at step %d: %s", self._late(came, late_s, "came"), self._owner.step, wait.what)

    def _late(self, ranks: Sequence[int], late_s: float, verb: str) -> str:
        # All ranks run one program: the phase that led to this wait here is the one that they are late in.
        phase = f" in phase {self._owner.phase!r}" if self._owner.phase else ""
        return f"{name_ranks(ranks)} {verb} {late_s:.1f} s later than the median of the others{phase}"


def describe_wait(rank: int, step: int, seconds: float, missing: Sequence[int], what: str) -> str:
    """Return who waited for whom, as part of a message."""
    return f"rank {rank} waited {seconds:.1f} s in step {step} for {name_ranks(missing)}: {what}"
