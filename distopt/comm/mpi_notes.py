"""Notes between ranks: what they tell each other beside the messages of a step.

A rank that leaves tells all others: that it is done, or why it ends the job. One that meets another label than its own
tells its own, one that waits for long what for. Notes have a communicator of their own, so that nothing else can be
taken for one, and are short enough to be sent without the receiver's help. They are a courtesy: what cannot be sent
within a moment is given up.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from distopt.errors import DistoptError

if TYPE_CHECKING:
    from mpi4py import MPI

_MAX_BYTES: Final = 2000
"""Short enough to be sent without the receiver's help."""

_MOMENT_S: Final = 0.2
_PAUSE_S: Final = 20e-6
_PAUSE_OF_SPEAKERS_S: Final = 1e-3

_LABELS_WITHIN_S: Final = 1.0
"""How long a rank that has met another label waits for the labels of all, to name the odd one."""

_LABEL, _END, _LEAVE, _WAIT = b"M", b"A", b"L", b"W"

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
        self.waits: dict[int, str] = {}
        """By rank, what it has waited for long, and still does."""
        self._labels: defaultdict[int, deque[bytes]] = defaultdict(deque)
        """By rank, the labels that it has told."""
        self._other_label_since_s = 0.0

    def tell_leaving(self) -> None:
        """Tell all others that this rank is done; also those that are done themselves, as they wait for this."""
        self._send(_LEAVE, set())

    def tell_end(self, reason: str) -> None:
        """Tell all others why this rank ends the job."""
        self._send(_END + reason.encode(), self.left)

    def tell_wait(self, what: str) -> None:
        """Tell all others what this rank waits for; nothing when that is over."""
        self._send(_WAIT + what.encode(), self.left)

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

    def exchange_labels(self, label: bytes) -> dict[int, bytes]:
        """Tell all others ``label``; return theirs, of those that tell it soon, by rank."""
        self._send(_LABEL + label, self.left)
        deadline_s = time.monotonic() + _LABELS_WITHIN_S
        others = set(range(self._size)) - {self._rank}
        while others - self.left - {peer for peer, labels in self._labels.items() if labels}:
            self.read()
            if time.monotonic() >= deadline_s:
                break
            time.sleep(_PAUSE_S)
        return {peer: labels.popleft() for peer, labels in sorted(self._labels.items()) if labels}

    def others_mean_something_else(self, label: bytes) -> bool:
        """Return whether a rank told another label a while ago, so that a wait under ``label`` may never end."""
        if not any(labels and labels[0] != label for labels in self._labels.values()):
            self._other_label_since_s = 0.0
            return False
        now_s = time.monotonic()
        self._other_label_since_s = self._other_label_since_s or now_s
        return now_s - self._other_label_since_s > _LABELS_WITHIN_S / 2

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
            if note[:1] == _LABEL:
                self._labels[source].append(note[1:])
                continue
            if note[:1] == _WAIT:
                self.waits[source] = note[1:].decode(errors="replace")
                continue
            if note[:1] == _END and self.ended is None:
                self.ended = source, note[1:].decode(errors="replace")
            self.left.add(source)

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
