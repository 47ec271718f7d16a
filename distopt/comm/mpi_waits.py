"""Waiting for MPI's requests: test, offer the core to others, then sleep; look around; give up at the deadline.

MPI moves data only while it is called, so a wait is a loop. While it lasts it notes who has come, and logs who comes
late.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from distopt.comm.arrivals import LateRanks
from distopt.comm.communicator import Communicator, Wait
from distopt.comm.long_waits import LongWait
from distopt.comm.transfers import describe_wait
from distopt.errors import CollectiveTimeoutError

if TYPE_CHECKING:
    from mpi4py import MPI

_SPIN_S: Final = 1e-3
"""For so long the core is offered to others before a wait begins to sleep: most of what a short exchange takes."""
_SPIN_BYTES_PER_S: Final = 1e9
"""And for as long as the bytes take at this rate: where they come so fast, the processor is what moves them."""

_MIN_PAUSE_S: Final = 20e-6
MAX_PAUSE_S: Final = 1e-3
_MAX_PAUSE_OF_MANY_BYTES_S: Final = 1e-4
"""While many bytes are on their way; they move only while MPI is called."""
_MANY_BYTES: Final = 1 << 20
_PAUSE_SHARE: Final = 0.02
"""A wait sleeps for this share of what it has lasted, so it ends at most so much late."""

_MOST_AT_ONCE: Final = 64
"""So many requests are tested at once; a test of thousands takes longer than what it waits for."""

_LOOK_EVERY_S: Final = 0.1
_GAP_S: Final = 2.0
"""A pause this long between two looks means that this process was stopped; its waits are prolonged by it."""

_TOLD_AFTER_S: Final = 0.25
"""A rank that waits for so long, or half of what it waits at most, tells the others what for."""
_TOLD_EVERY_S: Final = 1.0
"""But no more often: who comes late every time takes it in seldom, as it never waits itself."""


class Requests(NamedTuple):
    """What is under way: requests, and the peer of each; the first ones receive so many bytes as ``lengths`` says."""

    what: str
    started_s: float
    requests: list[MPI.Request]
    peers: list[int]
    lengths: Sequence[int] = ()
    tag: int = 0
    """Of what is sent, and expected."""
    label: bytes = b""
    everyone: tuple[int, ...] = ()
    """All ranks, for a request that has no single peer."""
    num_bytes: int = 0
    """How many are sent and received."""
    max_pause_s: float = MAX_PAUSE_S
    on_host: bool = False

    def missing(self) -> list[int]:
        """Return the ranks whose transfers are not done."""
        if self.everyone:
            return list(self.everyone)
        found: set[int] = set()
        for request, peer in zip(self.requests, self.peers, strict=True):
            if peer not in found and not request.Get_status():
                found.add(peer)
        return sorted(found)

    def silent(self) -> list[int]:
        """Return the ranks that have not come: of which nothing is there, or which have not got what only they get."""
        missing = self.missing()
        if self.everyone:
            return missing
        senders, heard = self.peers[: len(self.lengths)], set[int]()
        for request, peer in zip(self.requests, senders, strict=False):
            if peer not in heard and request.Get_status():
                heard.add(peer)
        return sorted(set(senders) - heard | set(missing).difference(senders))

    def come(self, new_status: Callable[[], MPI.Status]) -> Iterator[tuple[MPI.Status, int, int]]:
        """Yield the status of each receive that is done and was not tested, the bytes expected, and the peer.

        Of each peer only those up to the first one that is not done: what it sends comes in order.
        """
        under_way: set[int] = set()
        for request, length, peer in zip(self.requests, self.lengths, self.peers, strict=False):
            if request and peer not in under_way:
                if request.Get_status(status := new_status()):
                    yield status, length, peer
                else:
                    under_way.add(peer)


class Waits:
    """The waits of ``owner``, one at a time; ``mpi`` is mpi4py's module, ``tell`` tells others of one, or its end."""

    def __init__(self, mpi: Any, owner: Communicator, tell: Callable[[LongWait | None], object]) -> None:
        self._mpi = mpi
        self._owner = owner
        self._tell = tell
        self._told: Wait | None = None
        """The wait that the others were told of, if it is under way."""
        self._told_s = -math.inf
        self.current: Wait | None = None
        """What is waited for, or was when a wait failed."""
        self.statuses: list[MPI.Status] = []
        """Of the latest requests."""
        self._late: LateRanks | None = None
        """Of the wait under way, once it has lasted."""

    def complete(self, wait: Requests, look: Callable[[Requests], object]) -> list[MPI.Status]:
        """Return when all requests are done; ``look`` is called a few times a second, and may raise.

        Raises: CollectiveTimeoutError.
        """
        self.current = wait
        self.statuses = statuses = [self._mpi.Status() for _ in wait.requests]
        test_all = self._mpi.Request.Testall
        num_done, most = 0, _MOST_AT_ONCE
        looked_s = wait.started_s
        deadline_s = wait.started_s + self._owner.timeout_s
        spin_s = min(_SPIN_S + wait.num_bytes / _SPIN_BYTES_PER_S, _LOOK_EVERY_S)
        max_pause_s = _MAX_PAUSE_OF_MANY_BYTES_S if wait.num_bytes >= _MANY_BYTES else wait.max_pause_s
        while num_done < len(wait.requests):
            some, most = slice(num_done, num_done + most), _MOST_AT_ONCE
            if test_all(wait.requests[some], statuses[some]):
                num_done = some.stop
                continue
            now_s = time.monotonic()
            if now_s - wait.started_s < spin_s:
                os.sched_yield()
                continue
            if now_s - looked_s >= _LOOK_EVERY_S:
                if now_s - looked_s > _GAP_S:
                    deadline_s += now_s - looked_s
                looked_s = now_s
                if self._late is None:
                    self._late = LateRanks(self._owner, wait.what, wait.started_s)
                self._late.note(wait.peers, wait.silent(), now_s)
                look(wait)
                most = len(wait.requests)  # a rank may be lost whose messages come later
                if now_s >= deadline_s:
                    raise CollectiveTimeoutError(self.situation())
            time.sleep(min(max_pause_s, max(_MIN_PAUSE_S, _PAUSE_SHARE * (now_s - wait.started_s))))
        if self._late is not None:
            self._late.note(wait.peers, [], time.monotonic())
            self._late = None
        self.end()
        return statuses

    def duplicated(self, comm: MPI.Intracomm, look: Callable[[], object]) -> MPI.Intracomm:
        """Return a new communicator of the ranks of ``comm``, which all call this; ``look`` as for :meth:`complete`.

        All meet before they make it, so that it takes no longer than it must: see ``mpi_start.survive_crashes``.

        Raises: CollectiveTimeoutError.
        """
        self._complete_alone(comm.Ibarrier(), MAX_PAUSE_S, look)
        duplicate, request = comm.Idup()
        self._complete_alone(request, _MIN_PAUSE_S, look)
        return duplicate

    def _complete_alone(self, request: MPI.Request, max_pause_s: float, look: Callable[[], object]) -> None:
        owner, what = self._owner, "making a communicator"
        everyone = tuple(range(owner.size))
        wait = Requests(what, time.monotonic(), [request], [owner.rank], everyone=everyone, max_pause_s=max_pause_s)
        self.complete(wait, lambda _: look())

    def end(self) -> None:
        """Note that the wait is over."""
        self.current = None
        if self._told is not None:
            self._told = None
            self._tell(None)

    def tell_if_long(self, *, at_once: bool) -> None:
        """Tell the others what is waited for, if it has been for long or ``at_once``; once a wait."""
        wait, owner = self.current, self._owner
        if wait is None or wait is self._told:
            return
        now_s = time.monotonic()
        limit_s = owner.timeout_s / 2
        is_long = now_s - wait.started_s >= min(_TOLD_AFTER_S, limit_s)
        if at_once or (is_long and now_s - self._told_s >= min(_TOLD_EVERY_S, limit_s)):
            self._told, self._told_s = wait, now_s
            self._tell(LongWait.of(owner, wait))

    def situation(self) -> str:
        """Return what this rank is waiting for, as part of a message."""
        owner, wait = self._owner, self.current
        if wait is None:
            return f"rank {owner.rank} was not waiting"
        now_s, missing = time.monotonic(), wait.missing()
        waiting = describe_wait(owner.rank, owner.step, now_s - wait.started_s, missing, wait.what)
        if self._late is None or not isinstance(wait, Requests) or wait.everyone:
            return waiting
        return f"{waiting}; {self._late.would_come(missing, now_s)}"
