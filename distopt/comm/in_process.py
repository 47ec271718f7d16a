"""Ranks that are threads of one process: the transport that is meant to be obviously right.

Rules of this file:

- All state of a group is guarded by one lock, and every change wakes everyone.
- A sent buffer is copied, so that it belongs to the receiver. Messages between two ranks keep their order.
- A message that arrived before its sender was lost is delivered. A member that fails wakes all the others, which name
  it; one that leaves in peace fails only those that wait for it.
- Where every member waits and nothing is under way, waiting is of no use: time skips to the next event, which is the
  arrival of a delayed message or the end of somebody's patience. So faults cost a test no time, and a group whose
  members disagree on what they call fails at once.
"""

from __future__ import annotations

import functools
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from distopt.comm.communicator import Communicator, Receive, Send, Traffic, Wait, bytes_of, name_ranks
from distopt.comm.early import Batch, Channel
from distopt.comm.in_process_early import InProcessBatch, InProcessChannel
from distopt.comm.in_process_faults import Clock, Faultless, Faults, FaultsOfSurvivors, KilledByPlan, SkippingClock
from distopt.comm.long_waits import Called, LongWait, Standstill, calls_differ
from distopt.comm.transfers import describe_wait
from distopt.errors import (
    CollectiveTimeoutError,
    DistoptError,
    LocalProtocolError,
    MistakeError,
    PeerLostError,
    RemoteProtocolError,
)
from distopt.types import Array


@dataclass
class _Message:
    payload: Array
    due_s: float
    called: Called
    withdraws: bool = False


@dataclass
class _Wait:
    """What one rank waits for: the number of messages it still wants, by source, and the boxes that hold one each."""

    wanted: dict[int, int]
    deadline_s: float
    boxes: Sequence[tuple[int, int]] = ()


@dataclass
class _Member:
    """One rank, as the group sees it."""

    inboxes: list[deque[_Message]]
    wait: _Wait | None = None
    has_left: bool = False
    boxes: defaultdict[tuple[int, int], deque[Array]] = field(default_factory=lambda: defaultdict(deque))
    """What was sent early, by tag and source."""
    long_wait: LongWait | None = None
    """What it waits for, here or beside; still there if that failed."""
    is_lost: bool = False
    is_done: bool | None = None
    """What it says when the survivors agree on whether the job is done."""


class InProcessGroup:
    """``size`` communicators that belong together, one for each thread.

    >>> group = InProcessGroup(2)
    >>> group.communicators[1].rank
    1
    """

    def __init__(
        self,
        size: int,
        *,
        timeout_s: float = 60.0,
        clock: Clock | None = None,
        faults: Faults | None = None,
        survives_losses: bool = False,
    ) -> None:
        if size < 1:
            raise ValueError(f"a group needs at least 1 member, not {size}")
        self.size = size
        self.timeout_s = timeout_s
        self._clock: Clock = clock or SkippingClock()
        self._faults: Faults = faults or Faultless()
        self._changed = threading.Condition()
        self._members = [_Member([deque() for _ in range(size)]) for _ in range(size)]
        self._abort: DistoptError | None = None
        self.survives_losses = survives_losses
        self._agreed: bool | None = None
        self._successor: InProcessGroup | None = None
        """The group of the survivors."""
        self._survivors: list[int] = []
        self._standstill = Standstill()
        self._failure: str | None = None
        """The first member that failed, and why, as the start of a message."""
        self.communicators = tuple(InProcessCommunicator(self, rank) for rank in range(size))

    def leave(self, rank: int) -> None:
        """Take ``rank`` out in peace; who still waits for it gets a PeerLostError."""
        with self._changed:
            self._members[rank].has_left = True
            self._changed.notify_all()

    def fail(self, rank: int, error: BaseException) -> None:
        """Take ``rank`` out because of ``error``; everyone who waits gets a PeerLostError that names it."""
        with self._changed:
            self._members[rank].has_left = self._members[rank].is_lost = True
            if self._failure is None:
                reason = (
                    str(error) if isinstance(error, KilledByPlan) else f"failed with {type(error).__name__}: {error}"
                )
                self._failure = f"rank {rank} {reason}"
            self._changed.notify_all()
            successor = self._successor
        if successor is not None and rank in self._survivors:
            successor.fail(self._survivors.index(rank), error)

    def abort(self, error: DistoptError) -> None:
        """Make every wait, now or later, raise ``error``."""
        with self._changed:
            self._abort = error
            self._changed.notify_all()
            successor = self._successor
        if successor is not None:
            successor.abort(error)

    def agree(self, rank: int, is_done: bool) -> bool:
        """Return whether all members have called this with ``is_done``; the same on all survivors."""
        with self._changed:
            self._members[rank].is_done = is_done
            self._changed.notify_all()
            while self._agreed is None:
                said = [member.is_done for member in self._members if not member.is_lost]
                if None not in said:
                    self._agreed = all(said) and len(said) == self.size
                    self._changed.notify_all()
                elif self._abort is not None:
                    raise self._abort
                else:
                    self._changed.wait()
            return self._agreed

    def survivors_of(self, rank: int) -> InProcessCommunicator:
        """Return the member of the group of all survivors that ``rank`` is in it."""
        if self._members[rank].is_done is None:
            self.agree(rank, False)
        with self._changed:
            left = [r for r, member in enumerate(self._members) if not member.is_lost]
            if self._successor is None:
                counts = [self.communicators[r].num_exchanges for r in left]
                self._successor = InProcessGroup(
                    len(left), timeout_s=self.timeout_s, clock=self._clock, survives_losses=True,
                    faults=FaultsOfSurvivors(self._faults, left, counts),
                )  # fmt: skip
                self._survivors = left
            return self._successor.communicators[self._survivors.index(rank)]

    def look(self, comm: InProcessCommunicator, wait: Wait | None, missing: Sequence[int], waiting: str) -> None:
        """Raise if one of ``missing`` has left, any member has failed, or ``wait``, of ``comm``, can never end.

        ``waiting`` says who waits for what.
        """
        with self._changed:
            if self._abort is not None:
                raise self._abort
            if wait is not None:
                self._raise_at_standstill(comm, LongWait.of(comm, wait))
            if self._failure is not None:
                raise PeerLostError(f"{self._failure}; {waiting}")
            if left := [rank for rank in missing if self._members[rank].has_left]:
                raise PeerLostError(f"{name_ranks(left)} left; {waiting}")

    def end_long_wait(self, rank: int) -> None:
        """Note that what ``rank`` waits for has come."""
        self._members[rank].long_wait = None

    def waiting(self) -> tuple[int, ...]:
        """Return the ranks that wait for others at the moment."""
        with self._changed:
            return tuple(rank for rank, member in enumerate(self._members) if member.wait is not None)

    def _exchange(
        self,
        comm: InProcessCommunicator,
        sends: Iterable[Send],
        receives: Sequence[Receive],
        what: str,
        label: bytes,
        withdraws: bool,
        batch: InProcessBatch | None,
    ) -> bool:
        member = self._members[comm.rank]
        called = Called(what, label)
        with self._changed:
            number = comm.num_exchanges
            comm.num_exchanges += 1
            if self._faults.kills(comm.rank, number):
                raise KilledByPlan(f"was killed by the fault plan in its exchange {number}")
        for peer, array in sends:  # which may be made as they are asked for: not under the lock
            payload = bytes_of(array).copy()
            comm.traffic.bytes_sent += payload.nbytes if peer != comm.rank else 0
            with self._changed:
                due_s = self._clock.now_s + self._faults.delay_s(comm.rank, peer, number)
                self._members[peer].inboxes[comm.rank].append(_Message(payload, due_s, called, withdraws))
                self._changed.notify_all()
        with self._changed:
            started_s = self._clock.now_s
            wanted: dict[int, int] = {}
            for peer, _ in receives:
                wanted[peer] = wanted.get(peer, 0) + 1
            begun = batch.end() if batch is not None else {}
            member.wait = _Wait(wanted, started_s + self.timeout_s, tuple(begun))
            try:
                while missing := self._missing(comm.rank):
                    self._raise_if_hopeless(comm, missing, started_s, called)
                    if not self._skip_time():
                        self._changed.wait(max(0.0, self._next_event_s() - self._clock.now_s))
            finally:
                member.wait = None
            member.long_wait = None
            arrived = [(peer, array, member.inboxes[peer].popleft()) for peer, array in receives]
            early = [(array, member.boxes[box].popleft()) for box, array in begun.items()]
        for array, payload in early:
            if len(payload):
                bytes_of(array)[...] = payload
            comm.traffic.bytes_received += len(payload)
        if any(message.called.key != called.key for _, _, message in arrived):
            mismatch = calls_differ({comm.rank: called} | {peer: message.called for peer, _, message in arrived})
            assert mismatch is not None, "one is another"
            raise mismatch
        for peer, array, message in arrived:
            payload = message.payload
            if payload.nbytes != array.nbytes:
                raise RemoteProtocolError(
                    f"rank {comm.rank} expected {array.nbytes} bytes from rank {peer} at step {comm.step} "
                    f"and got {payload.nbytes}: {what}"
                )
            bytes_of(array)[...] = payload
        return any(message.withdraws for _, _, message in arrived)

    def put(self, source: int, peer: int, tag: int, array: Array) -> None:
        """Put a copy of ``array`` into the box of ``peer``."""
        payload = bytes_of(array).copy()
        with self._changed:
            self._members[peer].boxes[tag, source].append(payload)
            self._changed.notify_all()

    def _missing(self, rank: int) -> list[int]:
        """Return the ranks whose messages have not all arrived at ``rank``."""
        member = self._members[rank]
        if member.wait is None:
            return []
        now_s = self._clock.now_s
        missing = []
        for peer, count in member.wait.wanted.items():
            inbox = member.inboxes[peer]
            if len(inbox) < count or any(inbox[i].due_s > now_s for i in range(count)):
                missing.append(peer)
        missing += [source for tag, source in member.wait.boxes if not member.boxes[tag, source]]
        return sorted(set(missing))

    def _raise_if_hopeless(
        self, comm: InProcessCommunicator, missing: list[int], started_s: float, called: Called
    ) -> None:
        if self._abort is not None:
            raise self._abort
        self._raise_at_standstill(
            comm, LongWait(called, comm.step, tuple(missing), False, comm.num_exchanges, comm.num_meetings)
        )
        waited_s = self._clock.now_s - started_s
        waiting = describe_wait(comm.rank, comm.step, waited_s, missing, called.what)
        if self._failure is not None:
            raise PeerLostError(f"{self._failure}; {waiting}")
        if left := self._left(comm.rank, missing):
            raise PeerLostError(f"{name_ranks(left)} left; {waiting}")
        wait = self._members[comm.rank].wait
        assert wait is not None
        if self._clock.now_s >= wait.deadline_s:
            raise CollectiveTimeoutError(waiting)

    def _raise_at_standstill(self, comm: InProcessCommunicator, wait: LongWait) -> None:
        """Note what ``comm`` waits for; raise if it can never come."""
        self._members[comm.rank].long_wait = wait
        waits = {rank: member.long_wait for rank, member in enumerate(self._members) if member.long_wait is not None}
        gone = {rank for rank, member in enumerate(self._members) if member.has_left}
        if error := self._standstill.error(waits, set(range(self.size)) - waits.keys() - gone, time.monotonic()):
            self._changed.notify_all()  # who waits here finds it out as well
            raise error

    def _left(self, rank: int, missing: list[int]) -> list[int]:
        """Return those of ``missing`` that have left and owe ``rank`` messages that they never sent."""
        member = self._members[rank]
        assert member.wait is not None
        wanted = member.wait.wanted
        owing = {source for tag, source in member.wait.boxes if not member.boxes[tag, source]}
        owing |= {p for p in missing if len(member.inboxes[p]) < wanted.get(p, 0)}
        return [p for p in missing if self._members[p].has_left and p in owing]

    def _skip_time(self) -> bool:
        """Move the clock to the next event if nothing else can happen before; return whether it was moved."""
        now_s = self._clock.now_s
        if self._failure is not None or self._abort is not None:
            return False
        for rank, member in enumerate(self._members):
            if member.has_left:
                continue
            missing = self._missing(rank)
            if member.wait is None or not missing or member.wait.deadline_s <= now_s or self._left(rank, missing):
                return False  # this member has something to do
        self._clock.advance(self._next_event_s() - now_s)
        self._changed.notify_all()
        return True

    def _next_event_s(self) -> float:
        """Return when the next delayed message arrives or somebody's patience ends."""
        now_s = self._clock.now_s
        events = []
        for member in self._members:
            if member.wait is not None:
                if member.wait.deadline_s > now_s:
                    events.append(member.wait.deadline_s)
                events += [m.due_s for inbox in member.inboxes for m in inbox if m.due_s > now_s]
        return min(events)


class InProcessCommunicator(Communicator):
    """One member of an :class:`InProcessGroup`; used by one thread."""

    def __init__(self, group: InProcessGroup, rank: int) -> None:
        self.rank = rank
        self.size = group.size
        self.traffic = Traffic()
        self.step = 0
        self.timeout_s = group.timeout_s
        self.survives_losses = group.survives_losses
        self._channel: Channel | None = None
        self._group = group
        self._wait: Wait | None = None
        """What it waits for beside the group."""
        self._closed = False

    def exchange(
        self,
        sends: Iterable[Send],
        receives: Sequence[Receive],
        what: str,
        label: bytes = b"",
        *,
        withdraws: bool = False,
        batch: Batch | None = None,
    ) -> bool:
        if self._closed:
            raise LocalProtocolError(f"rank {self.rank} used a communicator that is closed: {what}")
        started_s = time.perf_counter()
        try:
            assert batch is None or isinstance(batch, InProcessBatch), "made by a channel of this communicator"
            withdrawn = self._group._exchange(self, sends, receives, what, label, withdraws, batch)
        except MistakeError:
            raise  # all who take part see it, each by itself
        except BaseException as error:
            self.has_failed = True
            if not (self.survives_losses and isinstance(error, PeerLostError)):
                self._group.fail(self.rank, error)
            raise
        self.traffic.wait_s += time.perf_counter() - started_s
        self.traffic.bytes_received += sum(array.nbytes for peer, array in receives if peer != self.rank)
        return withdrawn

    def channel(self) -> Channel:
        if self._channel is None:
            self._channel = InProcessChannel(self.traffic, functools.partial(self._group.put, self.rank))
        return self._channel

    def look(self, missing: Sequence[int], waiting: str) -> None:
        self._group.look(self, self._wait, missing, waiting)

    def begin_wait(self, wait: Wait) -> None:
        self._wait = wait

    def end_wait(self) -> None:
        self._wait = None
        self._group.end_long_wait(self.rank)

    def survivors(self) -> Communicator:
        if not self.survives_losses:
            return super().survivors()
        self.has_failed = self._closed = True
        self._close_host_group()
        return self._group.survivors_of(self.rank)

    def finish(self) -> None:
        if self.survives_losses and not self._group.agree(self.rank, True):
            raise PeerLostError(f"a rank was lost at step {self.step}, before all had finished")
        self.close()

    def close(self) -> None:
        self._closed = True
        self._group.leave(self.rank)
        self._close_host_group()
