"""Whether the other ranks on this host are alive: a death is seen at once, a stop within seconds.

MPI itself tells a waiting rank nothing. Here each rank watches the processes that share its kernel and its process
namespace. A death is read from a ``pidfd``, which cannot be fooled by a process id that is used again; a stop
(SIGSTOP, or a container that is paused by one) from ``/proc/<pid>/stat``. Where there is no Linux, or where ranks
cannot see each other, nobody is watched and waits end by their deadline.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from distopt.comm.process_ends import IS_GONE, how_it_ended

_STOPS_EVERY_S: Final = 0.5
"""Every so often the states of processes are read."""

_GAP_S: Final = 2.0
"""After a pause this long between two looks this process was itself stopped, and so it knows nothing about stops."""


class LostPeer(NamedTuple):
    """A rank of this host that takes no part any more, and why."""

    rank: int
    pid: int
    reason: str

    def __str__(self) -> str:
        return f"rank {self.rank} (pid {self.pid}) {self.reason}"


class _Peer(NamedTuple):
    rank: int
    pid: int
    start_time: int


def identity(proc: Path = Path("/proc")) -> bytes:
    """Return what makes this process known to others on its host: boot, process namespace, process id, start time.

    Empty where the system cannot say, which is not an error.
    """
    pid = os.getpid()
    try:
        boot_id = (proc / "sys/kernel/random/boot_id").read_text().strip()
        namespace = (proc / "self/ns/pid").stat().st_ino
        _, start_time = _state_and_start_time(proc, pid)
    except (OSError, ValueError):
        return b""
    return f"{boot_id}:{namespace} {pid} {start_time}".encode()


class HostPeers:
    """The ranks that run on the host of ``rank``, as far as they can be watched.

    ``identities`` are those of all ranks, in rank order. A thread waits for deaths, so that their order is known.
    """

    def __init__(
        self,
        rank: int,
        identities: Sequence[bytes],
        *,
        stopped_timeout_s: float = 5.0,
        proc: Path = Path("/proc"),
    ) -> None:
        self._stopped_timeout_s = stopped_timeout_s
        self._proc = proc
        self._stopped_since_s: dict[int, float] = {}
        self._looked_s = time.monotonic()
        self._deaths: list[LostPeer] = []
        self._by_pidfd: dict[int, _Peer] = {}
        self._poll: select.poll | None = None
        self._wake = -1
        peers = _on_this_host(rank, identities)
        if not peers or not hasattr(os, "pidfd_open"):
            return
        for peer in peers:
            self._watch(peer)
        self._poll = select.poll()
        for pidfd in self._by_pidfd:
            self._poll.register(pidfd, select.POLLIN)
        self._wake = os.eventfd(0)
        threading.Thread(target=self._record_deaths, name="distopt host peers", daemon=True).start()

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks that are watched."""
        return tuple(sorted(peer.rank for peer in self._by_pidfd.values()))

    def first_dead(self) -> LostPeer | None:
        """Return the rank that died first, if any did; can be called in a signal handler."""
        if not self._deaths and self._poll is not None:
            # The thread may not have had its turn yet.
            for pidfd, _ in self._poll.poll(0):
                return _lost(self._by_pidfd[pidfd], how_it_ended(pidfd))
        return self._deaths[0] if self._deaths else None

    def dead(self) -> list[int]:
        """Return the ranks that are known to have died."""
        return [lost.rank for lost in self._deaths]

    def first_lost(self, now_s: float | None = None) -> LostPeer | None:
        """Return the rank that died first, or else one that has been stopped for ``stopped_timeout_s``.

        To be called a few times a second during a wait; ``now_s`` is in the time of ``time.monotonic``.
        """
        return self.first_dead() or self._first_stopped(time.monotonic() if now_s is None else now_s)

    def stopped(self) -> list[int]:
        """Return the process ids of all that have been stopped for long, when one of them is lost by that.

        Half the time is long enough: those that go on without the one would wait for the others.
        """
        enough_s = self._stopped_timeout_s / 2
        since_s = self._stopped_since_s
        peers = self._by_pidfd.values()
        return [peer.pid for peer in peers if self._looked_s - since_s.get(peer.rank, self._looked_s) >= enough_s]

    def close(self) -> None:
        """Watch no more; a second call does nothing."""
        if self._wake >= 0:
            os.eventfd_write(self._wake, 1)
            self._wake = -1
        self._poll = None
        self._by_pidfd = {}

    def _first_stopped(self, now_s: float) -> LostPeer | None:
        if now_s - self._looked_s < _STOPS_EVERY_S:
            return None
        if now_s - self._looked_s > _GAP_S:
            self._stopped_since_s.clear()
        self._looked_s = now_s
        lost = None
        for peer in self._by_pidfd.values():
            try:
                state, start_time = _state_and_start_time(self._proc, peer.pid)
            except (OSError, ValueError):
                continue  # gone, or hidden: what is gone is seen by its pidfd
            if state != "T" or start_time != peer.start_time:
                self._stopped_since_s.pop(peer.rank, None)
                continue
            stopped_s = now_s - self._stopped_since_s.setdefault(peer.rank, now_s)
            if lost is None and stopped_s >= self._stopped_timeout_s:
                lost = LostPeer(peer.rank, peer.pid, f"has been stopped for {stopped_s:.1f} s")
        return lost

    def _watch(self, peer: _Peer) -> None:
        try:
            pidfd = os.pidfd_open(peer.pid)
        except ProcessLookupError:
            self._deaths.append(_lost(peer, IS_GONE))
            return
        except OSError:
            return  # this kernel or sandbox has no pidfd
        try:
            _, start_time = _state_and_start_time(self._proc, peer.pid)
        except (OSError, ValueError):
            start_time = peer.start_time  # its files are hidden from us
        if start_time == peer.start_time:
            self._by_pidfd[pidfd] = peer
        else:
            os.close(pidfd)
            self._deaths.append(_lost(peer, IS_GONE))

    def _record_deaths(self) -> None:
        """Run in a thread, which alone closes what it polls."""
        wake, by_pidfd = self._wake, dict(self._by_pidfd)
        poll = select.poll()
        for descriptor in (wake, *by_pidfd):
            poll.register(descriptor, select.POLLIN)
        closed = False
        while not closed:
            for descriptor, _ in poll.poll():
                if descriptor == wake:
                    closed = True
                else:
                    self._deaths.append(_lost(by_pidfd[descriptor], how_it_ended(descriptor)))
                    poll.unregister(descriptor)
        for descriptor in (wake, *by_pidfd):
            os.close(descriptor)


def _lost(peer: _Peer, how: str) -> LostPeer:
    return LostPeer(peer.rank, peer.pid, how)


def _on_this_host(rank: int, identities: Sequence[bytes]) -> list[_Peer]:
    """Return the other ranks whose boot and process namespace are those of ``rank``."""
    own_host = identities[rank].partition(b" ")[0]
    peers = []
    for other, text in enumerate(identities):
        host, _, process = text.partition(b" ")
        if other != rank and host == own_host and process:
            pid, start_time = map(int, process.split())
            peers.append(_Peer(other, pid, start_time))
    return peers


def _state_and_start_time(proc: Path, pid: int) -> tuple[str, int]:
    fields = stat_fields(proc, pid)
    return fields[0], int(fields[19])


def stat_fields(proc: Path, pid: int) -> list[str]:
    """Return ``/proc/<pid>/stat`` from its third field on: state, parent, and at position 19 the start time.

    The second field is a name in parentheses, which may contain anything.

    Raises: OSError if there is no such process; ValueError for another format.
    Source: proc_pid_stat(5).
    """
    fields = (proc / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    if len(fields) < 20:
        raise ValueError(f"/proc/{pid}/stat is too short")
    return fields
