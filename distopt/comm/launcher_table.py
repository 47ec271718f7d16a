"""What the launcher knows of the ranks of all hosts, for one that waits for them before MPI knows of any.

The launcher keeps a table of the processes that it started, with the state of each, and tells it to whoever asks by
PMIx, which Open MPI brings along. Where ``mpirun`` itself runs the table is that of all hosts; its daemons elsewhere
know how the ranks of their own host are. So a rank next to ``mpirun`` learns that one of another host is lost, also the
only one there, and however early it was.

Rules of this file: it only asks. A launcher or a library that has no answer is no error, and no proof of anything.
Source: PMIx 5.0 standard, "PMIx_Query_info", ``PMIX_QUERY_PROC_TABLE``; the layouts of its stable ABI, which are those
of ``pmix_types.h`` of PMIx 4 and 5.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from distopt.comm.started_ranks import LaunchedRank
from distopt.comm.transfers import name_ranks

_CONNECTED: Final = 6
"""The state of a process from its call of ``MPI_Init`` on."""
_TERMINATED: Final = 20
"""From here on, states are those of a process that has ended."""
_ABORTED_BY_SIGNAL: Final = 54

_PROC_TABLE: Final = b"pmix.qry.ptable"
_NAMESPACE: Final = b"pmix.nspace"
_STRING, _DATA_ARRAY, _PROC_INFO = 3, 39, 38
"""Types of values."""
_MAJOR_VERSIONS: Final = (b"4", b"5")


class LauncherRow(NamedTuple):
    """What the launcher knows of one rank; process id 0 if it was not told of its start."""

    rank: int
    host: str
    pid: int
    state: int

    def __str__(self) -> str:
        return f"rank {self.rank} (pid {self.pid} on {self.host})"


class LauncherTable:
    """What the launcher of ``own``, which is this process, says whenever it is asked; ``library`` is the MPI library.

    One thread may ask while others read.
    """

    def __init__(self, library: Any, own: LaunchedRank) -> None:
        self._library, self._own = library, own
        self._rows: Sequence[LauncherRow] = ()
        self._can_answer = hasattr(library, "PMIx_Query_info") and _version(library) in _MAJOR_VERSIONS

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

    def absent(self) -> str | None:
        """Return which ranks are known to run and not to have called ``MPI_Init``, in words; None if none is."""
        rows = [row for row in self._rows if row.pid and row.state < _CONNECTED]
        if len(rows) == 1:
            return f"{rows[0]} has not called MPI_Init"
        return f"{name_ranks([row.rank for row in rows])} have not called MPI_Init" if rows else None


class _Proc(ctypes.Structure):
    _fields_ = (("namespace", ctypes.c_char * 256), ("rank", ctypes.c_uint32))


class _Data(ctypes.Union):
    _fields_ = (("string", ctypes.c_char_p), ("pointer", ctypes.c_void_p), ("longest", ctypes.c_uint64 * 3))


class _Value(ctypes.Structure):
    _fields_ = (("type", ctypes.c_uint16), ("data", _Data))


class _Info(ctypes.Structure):
    _fields_ = (("key", ctypes.c_char * 512), ("flags", ctypes.c_uint32), ("value", _Value))


class _Query(ctypes.Structure):
    _fields_ = (
        ("keys", ctypes.POINTER(ctypes.c_char_p)),
        ("qualifiers", ctypes.POINTER(_Info)),
        ("num_qualifiers", ctypes.c_size_t),
    )


class _DataArray(ctypes.Structure):
    _fields_ = (("type", ctypes.c_uint16), ("size", ctypes.c_size_t), ("items", ctypes.c_void_p))


class _ProcInfo(ctypes.Structure):
    _fields_ = (
        ("proc", _Proc),
        ("host", ctypes.c_char_p),
        ("executable", ctypes.c_char_p),
        ("pid", ctypes.c_int),
        ("exit_code", ctypes.c_int),
        ("state", ctypes.c_uint8),
    )


def _version(library: Any) -> bytes:
    """Return the major version, as in "OpenPMIx 5.0.11"; empty if it is not that library."""
    try:
        call = library.PMIx_Get_version
    except AttributeError:
        return b""
    call.restype = ctypes.c_char_p
    words = (call() or b"").replace(b",", b" ").split()
    return words[1].partition(b".")[0] if len(words) > 1 else b""


def _rows(library: Any, own: LaunchedRank) -> list[LauncherRow]:
    keys = (ctypes.c_char_p * 2)(_PROC_TABLE, None)
    job = _Info(key=_NAMESPACE, value=_Value(type=_STRING, data=_Data(string=own.job.encode())))
    query = _Query(keys, ctypes.pointer(job), 1)
    results, count = ctypes.POINTER(_Info)(), ctypes.c_size_t()
    call = library.PMIx_Query_info
    if call(ctypes.pointer(query), ctypes.c_size_t(1), ctypes.pointer(results), ctypes.pointer(count)) != 0:
        return []
    rows = []
    for result in results[: count.value]:
        if result.value.type != _DATA_ARRAY or not result.value.data.pointer:
            continue
        array = _DataArray.from_address(result.value.data.pointer)
        if array.type == _PROC_INFO and array.items:
            for info in (_ProcInfo * array.size).from_address(array.items):
                if info.proc.namespace == own.job.encode():
                    host = (info.host or b"").decode(errors="replace")
                    rows.append(LauncherRow(info.proc.rank, host, info.pid, info.state))
    if hasattr(library, "PMIx_Info_free"):
        library.PMIx_Info_free(results, count)
    return rows
