"""Notes between ranks: what they tell each other beside the messages of a step.

A rank that leaves tells all others: that it is done, or why it ends the job. One that meets another call than its own
tells its own, one that waits for long what for. Notes have a communicator of their own, so that nothing else can be
taken for one, and are short enough to be sent without the receiver's help. They are a courtesy: what cannot be sent
within a moment is given up.
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from distopt.comm.long_waits import Called, LongWait
from distopt.errors import DistoptError

if TYPE_CHECKING:
    from mpi4py import MPI

_MAX_BYTES: Final = 2000
"""Short enough to be sent without the receiver's help."""

_MOMENT_S: Final = 0.2
_PAUSE_S: Final = 20e-6
_PAUSE_OF_SPEAKERS_S: Final = 1e-3

_CALLS_WITHIN_S: Final = 1.0
"""How long a rank that has met another call waits for those of all, to name the odd one."""

_CALL, _END, _LEAVE, _WAIT = b"M", b"A", b"L", b"W"

_SPEAK_WITHIN_S: Final = 1.0
"""How long a rank that ends the job lets the others say themselves what went wrong."""

_undone: list[Any] = []
"""Requests that were given up. Each keeps its buffer alive, which MPI may still use."""


class Notes:
    """The notes of one rank, sent and read over ``comm``, which carries nothing else; ``mpi`` is mpi4py's module."""

    def __init__(self, mpi: Any, comm: MPI.Intracomm) -> None:
        self._mpi = mpi
        self.comm = comm
        self._rank, self._size = comm.Get_rank(), comm.Get_size()
        self.left: set[int] = set()
        """The ranks that are done, or have ended the job."""
        self.ended: tuple[int, str] | None = None
        """The rank that ended the job first, and its reason."""
        self.waits: dict[int, LongWait] = {}
        """By rank, this one too, what it has waited for long, and still does, as far as it was told."""
        self._calls: defaultdict[int, deque[Called]] = defaultdict(deque)
        """By rank, the calls that it has told."""
        self._other_call_since_s = 0.0

    def tell_leaving(self) -> None:
        """Tell all others that this rank is done; also those that are done themselves, as they wait for this."""
        self._send(_LEAVE, set())

    def tell_end(self, reason: str) -> None:
        """Tell all others why this rank ends the job."""
        self._send(_END + reason.encode(), self.left)

    def tell_wait(self, wait: LongWait | None) -> None:
        """Tell all others what this rank waits for; None when that is over."""
        note = b"" if wait is None else msgspec.msgpack.encode(wait)
        self._note_wait(self._rank, note)
        self._send(_WAIT + note, self.left)

    def let_others_speak(self, dead: Callable[[], Collection[int]]) -> None:
        """Return when all others have ended, too, but those that are ``dead``, or a moment later."""
        deadline_s = time.monotonic() + _SPEAK_WITHIN_S
        others = set(range(self._size)) - {self._rank}
        try:
            while not others <= self.left.union(dead()) and time.monotonic() < deadline_s:
                self.read()
                time.sleep(_PAUSE_OF_SPEAKERS_S)
        except (self._mpi.Exception, DistoptError):
            return  # a courtesy, too; it may be told to end meanwhile

    def exchange_calls(self, called: Called) -> dict[int, Called]:
        """Tell all others what this rank has called; return theirs, of those that tell it soon, by rank."""
        self._send(_CALL + msgspec.msgpack.encode(called), self.left)
        deadline_s = time.monotonic() + _CALLS_WITHIN_S
        others = set(range(self._size)) - {self._rank}
        meeting: set[int] = set()  # who tells nothing of messages
        while others - self.left - meeting - {peer for peer, calls in self._calls.items() if calls}:
            self.read()
            meeting = {peer for peer, wait in self.waits.items() if wait.on_host}
            if time.monotonic() >= deadline_s:
                break
            time.sleep(_PAUSE_S)
        return {peer: calls.popleft() for peer, calls in self._calls.items() if calls}

    def others_mean_something_else(self, called: Called) -> bool:
        """Return whether a rank told another call a while ago, so that a wait in this one may never end."""
        if not any(calls and calls[0].key != called.key for calls in self._calls.values()):
            self._other_call_since_s = 0.0
            return False
        now_s = time.monotonic()
        self._other_call_since_s = self._other_call_since_s or now_s
        return self.ended is not None or now_s - self._other_call_since_s > _CALLS_WITHIN_S / 2

    def read_beside(self) -> None:
        """Take in the notes, of a rank that may not wait: who always comes last never does, and is told of waits."""
        with contextlib.suppress(self._mpi.Exception):  # a wait will say why
            self.read()

    def let_mpi_work(self) -> None:
        """Call MPI, which moves data only while it is called."""
        self.comm.Iprobe(self._mpi.ANY_SOURCE)

    def read(self) -> None:
        """Take in the notes that have arrived."""
        status = self._mpi.Status()
        probe = self.comm.Iprobe
        # The first probe may do no more than fetch what has arrived, for the second one to find.
        anyone = self._mpi.ANY_SOURCE
        while probe(source=anyone, status=status) or probe(source=anyone, status=status):
            source = status.Get_source()
            buffer = np.empty(status.Get_count(self._mpi.BYTE), np.uint8)
            if not self._are_done_in_a_moment([self.comm.Irecv([buffer, self._mpi.BYTE], source)]):
                return
            note = buffer.tobytes()
            if note[:1] == _CALL:
                self._calls[source].append(msgspec.msgpack.decode(note[1:], type=Called))
                continue
            if note[:1] == _WAIT:
                self._note_wait(source, note[1:])
                continue
            if note[:1] == _END and self.ended is None:
                self.ended = source, note[1:].decode(errors="replace")
            self.left.add(source)

    def _note_wait(self, rank: int, note: bytes) -> None:
        self.waits.pop(rank, None)
        if note:
            self.waits[rank] = msgspec.msgpack.decode(note, type=LongWait)

    def _send(self, note: bytes, without: Collection[int]) -> None:
        buffer = np.frombuffer(note[:_MAX_BYTES], np.uint8)
        others = [peer for peer in range(self._size) if peer != self._rank and peer not in without]
        try:
            self._are_done_in_a_moment([self.comm.Isend([buffer, self._mpi.BYTE], peer) for peer in others])
        except self._mpi.Exception:
            return  # a note is a courtesy

    def _are_done_in_a_moment(self, requests: list[MPI.Request]) -> bool:
        deadline_s = time.monotonic() + _MOMENT_S
        while not (done := self._mpi.Request.Testall(requests)) and time.monotonic() < deadline_s:
            time.sleep(_PAUSE_S)
        if not done:
            _undone.extend(requests)
        return bool(done)
