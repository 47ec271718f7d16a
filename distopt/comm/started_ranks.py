"""The ranks of this host while MPI is not there yet: whether one of them was lost before it had initialized it.

MPI has no word for that: where the launcher lets survivors live, the others wait inside of ``MPI_Init`` for ever. What
a rank can see is processes. The launcher has one daemon on each host (or is it itself), whose children are the ranks
there, and each of them has in its environment which rank of which job it is. So a rank looks for the other children of
its daemon, notes which ranks they are, and then whether one of them has ended. One that had ended before it was seen is
missed by their number.

Rules of this file: it only looks, and time is handed in. What cannot be seen (another host, a container of its own,
files that are hidden) is no proof of anything.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from distopt.comm.host_peers import stat_fields
from distopt.comm.process_ends import IS_GONE, how_it_ended
from distopt.comm.transfers import name_ranks

_ALL_ARE_STARTED_WITHIN_S: Final = 3.0
"""The daemon starts all ranks of a host in one go, long before the first of them has loaded MPI."""

_UNREADABLE = (OSError, ValueError)


class LaunchedRank(NamedTuple):
    """What a launcher tells a process in its environment."""

    job: str
    """Tells this job from others."""
    rank: int
    size: int
    size_here: int
    """So many ranks are on this host."""


class _Seen(NamedTuple):
    pid: int
    start_time: str
    pidfd: int
    """-1 where there is none."""


class StartedRanks:
    """The ranks that the daemon of ``own``, which is this process, has started.

    ``launched`` reads an environment. ``now_s``: in the time of ``time.monotonic``, as everywhere.
    """

    def __init__(
        self,
        own: LaunchedRank,
        launched: Callable[[Mapping[str, str]], LaunchedRank | None],
        now_s: float,
        *,
        proc: Path = Path("/proc"),
        pid: int | None = None,
    ) -> None:
        self._own, self._launched, self._proc = own, launched, proc
        self._began_s = now_s
        self._seen: dict[int, _Seen] = {}
        """By rank."""
        self._daemon = self._daemon_of(os.getpid() if pid is None else pid)
        self._sees_all = self._daemon != 0 and self._look_for_ranks()

    @property
    def living(self) -> tuple[int, ...]:
        """The ranks of this host that were found and live, this one too."""
        return tuple(sorted(rank for rank, seen in self._seen.items() if self._lives(seen)))

    def lost(self, now_s: float) -> str | None:
        """Return which rank is lost, in words; None if none is known to be. To be called a few times a second."""
        own = self._own
        if self._daemon and len(self._seen) < own.size_here:
            self._sees_all = self._look_for_ranks()
        if gone := [rank for rank, seen in self._seen.items() if not self._lives(seen)]:
            seen = self._seen[gone[0]]
            return f"rank {gone[0]} (pid {seen.pid}) {how_it_ended(seen.pidfd) if seen.pidfd >= 0 else IS_GONE}"
        if len(self._seen) == own.size_here or not self._sees_all:
            return None
        if now_s - self._began_s < _ALL_ARE_STARTED_WITHIN_S:
            return None
        if own.size_here == own.size:
            missing = sorted(set(range(own.size)) - self._seen.keys())
            return f"{name_ranks(missing)} ended before rank {own.rank} looked for it"
        verb = "is" if len(self._seen) == 1 else "are"
        return f"of the {own.size_here} ranks of this host only {name_ranks(self.living)} {verb} there"

    def _daemon_of(self, pid: int) -> int:
        """Return the first ancestor that is not of this rank, 0 where it cannot be seen."""
        try:
            while (parent := int(stat_fields(self._proc, pid)[1])) and self._rank_of(parent) == self._own:
                pid = parent
        except PermissionError:
            return parent
        except _UNREADABLE:
            return 0
        return parent

    def _look_for_ranks(self) -> bool:
        """Note which ranks there are; return whether all could be looked at."""
        sees_all = True
        try:
            pids = [int(folder.name) for folder in self._proc.iterdir() if folder.name.isdecimal()]
        except OSError:
            return False
        for pid in pids:
            try:
                fields = stat_fields(self._proc, pid)
            except _UNREADABLE:
                continue  # it has just ended, or is somebody else's
            if int(fields[1]) != self._daemon:
                continue
            try:
                found = self._rank_of(pid)
            except PermissionError:
                sees_all = False
            except OSError:
                continue  # it has just ended
            else:
                if found is not None and found.job == self._own.job and found.rank not in self._seen:
                    self._seen[found.rank] = _Seen(pid, fields[19], _open(pid))
        return sees_all

    def _rank_of(self, pid: int) -> LaunchedRank | None:
        entries = (self._proc / str(pid) / "environ").read_bytes().split(b"\0")
        return self._launched(dict(entry.decode(errors="replace").partition("=")[::2] for entry in entries))

    def _lives(self, seen: _Seen) -> bool:
        try:
            fields = stat_fields(self._proc, seen.pid)
        except PermissionError:
            return True
        except _UNREADABLE:
            return False
        return fields[19] == seen.start_time and fields[0] not in "ZX"


def _open(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):  # it has just ended, or this system has no pidfd
        return -1
