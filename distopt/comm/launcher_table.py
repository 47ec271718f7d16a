"""What the launcher knows of the ranks of all hosts, for one that waits for them before MPI knows of any.

The launcher keeps a table of the processes that it started, with the state of each, and tells it to whoever asks by
PMIx, which Open MPI brings along. Where ``mpirun`` itself runs the table is that of all hosts; its daemons elsewhere
know how the ranks of their own host are. So a rank next to ``mpirun`` learns that one of another host is lost, also the
only one there, and however early it was.

Rules of this file: it only asks. A launcher or a library that has no answer is no error, and no proof of anything.
Source: PMIx 5.0 standard, "PMIx_Query_info", ``PMIX_QUERY_PROC_TABLE``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Sequence
from typing import Any, Final, NamedTuple

from distopt.comm import pmix
from distopt.comm.started_ranks import LaunchedRank
from distopt.comm.transfers import name_ranks

_CONNECTED: Final = 6
"""The state of a process from its call of ``MPI_Init`` on."""
_TERMINATED: Final = 20
"""From here on, states are those of a process that has ended."""
_ABORTED_BY_SIGNAL: Final = 54

_PROC_TABLE: Final = b"pmix.qry.ptable"
_NAMESPACE: Final = b"pmix.nspace"


class LauncherRow(NamedTuple):
    """What the launcher knows of one rank; process id 0 if it was not told of its start."""

    rank: int
    host: str
    pid: int
    state: int

    def __str__(self) -> str:
        return f"rank {self.rank} ({f'pid {self.pid} ' if self.pid else ''}on {self.host})"


class LauncherTable:
    """What the launcher of ``own``, which is this process, says whenever it is asked; ``library`` is the MPI library.

    One thread may ask while others read.
    """

    def __init__(self, library: Any, own: LaunchedRank) -> None:
        self._library, self._own = library, own
        self._rows: Sequence[LauncherRow] = ()
        self._can_answer = hasattr(library, "PMIx_Query_info") and pmix.is_known(library)

    def ask(self) -> None:
        """Ask the launcher; returns when it has answered. Not before ``MPI_Init`` has been called."""
        if self._can_answer:
            self._rows = [row for row in _rows(self._library, self._own) if 0 <= row.rank < self._own.size]

    @property
    def num_lost(self) -> int:
        """How many ranks were known to be lost when the launcher was last asked."""
        return sum(row.state >= _TERMINATED for row in self._rows)

    def lost(self) -> str | None:
        """Return which rank was lost when the launcher was last asked, in words; None if none is known to be."""
        for row in self._rows:
            if row.state >= _TERMINATED:
                # Which one, the table does not say (Open MPI 5.0.11).
                return f"{row} {'was killed by a signal' if row.state == _ABORTED_BY_SIGNAL else 'has ended'}"
        return None

    @property
    def came_here(self) -> frozenset[int]:
        """The ranks of this host that have called ``MPI_Init`` and are not lost."""
        here = {row.host for row in self._rows if row.rank == self._own.rank}
        return frozenset(row.rank for row in self._rows if row.host in here and _CONNECTED <= row.state < _TERMINATED)

    def first_ranks(self) -> tuple[int, frozenset[int]]:
        """Return the first rank of this host, and that of each other one."""
        by_host: dict[str, list[int]] = {}
        for row in self._rows:
            by_host.setdefault(row.host, []).append(row.rank)
        here = min((min(ranks) for ranks in by_host.values() if self._own.rank in ranks), default=self._own.rank)
        return here, frozenset(map(min, by_host.values())) - {here}

    def names(self, ranks: Collection[int]) -> str:
        """Return these ranks, with what is known of them, and the verb that follows: "rank 1 (pid 7 on b) has"."""
        rows = [row for row in self._rows if row.rank in ranks]
        return f"{rows[0]} has" if len(rows) == 1 else f"{name_ranks(sorted(ranks))} have"

    def absent(self, came: Collection[int] | None = None) -> str | None:
        """Return which ranks have not called ``MPI_Init``, in words; None if there are none, or none are known.

        ``came``: the ranks of other hosts of which was heard that they have; None where that cannot be.
        """
        # The launcher is told of a rank elsewhere only when all of its host have (Open MPI 5.0.11).
        late = [row.rank for row in self._rows if row.pid and row.state < _CONNECTED and row.rank not in (came or ())]
        unheard = [row.rank for row in self._rows if not row.pid and came is not None and row.rank not in came]
        found = [f"{self.names(late)} not called MPI_Init"] if late else []
        found += [f"{self.names(unheard)} not been heard of"] if unheard else []
        return "; ".join(found) or None


def _rows(library: Any, own: LaunchedRank) -> list[LauncherRow]:
    keys = (ctypes.c_char_p * 2)(_PROC_TABLE, None)
    job = pmix.Info(key=_NAMESPACE, value=pmix.Value(type=pmix.STRING, data=pmix.Data(string=own.job.encode())))
    query = pmix.Query(keys, ctypes.pointer(job), 1)
    results, count = ctypes.POINTER(pmix.Info)(), ctypes.c_size_t()
    call = library.PMIx_Query_info
    if call(ctypes.pointer(query), ctypes.c_size_t(1), ctypes.pointer(results), ctypes.pointer(count)) != 0:
        return []
    rows = []
    for result in results[: count.value]:
        if result.value.type != pmix.DATA_ARRAY or not result.value.data.pointer:
            continue
        array = pmix.DataArray.from_address(result.value.data.pointer)
        if array.type == pmix.PROC_INFO and array.items:
            for info in (pmix.ProcInfo * array.size).from_address(array.items):
                if info.proc.namespace == own.job.encode():
                    host = (info.host or b"").decode(errors="replace")
                    rows.append(LauncherRow(info.proc.rank, host, info.pid, info.state))
    if hasattr(library, "PMIx_Info_free"):
        library.PMIx_Info_free(results, count)
    return rows
