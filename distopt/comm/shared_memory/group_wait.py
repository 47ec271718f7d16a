"""One wait of a member of a host group for the others: how long, for whom, and what is said when it is in vain."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Sequence
from typing import Final

from distopt.comm.arrivals import LateRanks
from distopt.comm.communicator import Communicator
from distopt.comm.transfers import describe_wait
from distopt.errors import CollectiveTimeoutError, PeerLostError

LOOK_EVERY_S: Final = 0.1
"""So often a wait looks whether it is in vain."""
_GAP_S: Final = 2.0
"""A pause this long between two looks means that this process was stopped; its waits are prolonged by it."""

_MOMENTS: Final = 10
_MOMENT_S: Final = 0.02
"""A process that ends closes its sockets before others can see that it is gone, and after it said why."""


class GroupWait:
    """What this member waits for; also what the transport's own messages say of it.

    ``ranks`` are those of the group; ``links`` the sockets to the others, with their places in it.
    """

    on_host = True

    def __init__(
        self,
        communicator: Communicator,
        ranks: Sequence[int],
        links: Sequence[tuple[int, socket.socket]],
        phase: str,
        label: bytes,
        started_s: float,
    ) -> None:
        self._communicator, self._ranks, self._links = communicator, ranks, links
        self._looked_s = started_s
        self._deadline_s = started_s + self._communicator.timeout_s
        self._late: LateRanks | None = None
        self.what, self.label = phase, label
        self.started_s = started_s
        self.come: set[int] = set()
        """The places of those that have come so far, and were read."""

    def missing(self) -> list[int]:
        """Return the ranks that have not come; who has, and was not read yet, is none of them."""
        return [self._ranks[i] for i, link in self._links if i not in self.come and not _has_come(link)]

    def look(self, poll: select.poll) -> None:
        """Wait for a moment.

        Raises: an error if it is in vain.
        """
        if poll.poll(LOOK_EVERY_S * 1e3):
            return
        now_s = time.monotonic()
        if now_s - self._looked_s > _GAP_S:
            self._deadline_s += now_s - self._looked_s
        self._looked_s = now_s
        missing = self.missing()
        if self._late is None:
            self._late = LateRanks(self._communicator, self.what, self.started_s)
        self._late.note(self._ranks, missing, now_s)
        try:
            self._communicator.look(missing, str(self))
        except PeerLostError:
            if self.missing() == missing:
                raise
            return  # one of them has come, and may have left in peace, since it was looked who is missing
        if now_s >= self._deadline_s:
            raise CollectiveTimeoutError(str(self))

    def end(self) -> None:
        """Note that all have come."""
        if self._late is not None:
            self._late.note(self._ranks, [], time.monotonic())
        self._communicator.end_wait()

    def lost(self, place: int, reason: str) -> Exception:
        """Return the error for a member whose socket has ended; the transport may know why, a moment later."""
        rank = self._ranks[place]
        for _ in range(_MOMENTS):
            self._communicator.look([rank], str(self))
            time.sleep(_MOMENT_S)
        return PeerLostError(f"rank {rank} {reason} at step {self._communicator.step}; {self}")

    def __str__(self) -> str:
        communicator, now_s, missing = self._communicator, time.monotonic(), self.missing()
        waited_s = now_s - self.started_s
        waiting = describe_wait(communicator.rank, communicator.step, waited_s, missing, self.what)
        return waiting if self._late is None or not missing else f"{waiting}; {self._late.would_come(missing, now_s)}"


def _has_come(link: socket.socket) -> bool:
    """Return whether a message lies in ``link``; the end of the other side is none."""
    try:
        return bool(link.recv(1, socket.MSG_PEEK))
    except OSError:
        return False
