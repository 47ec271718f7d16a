"""What is made of the launcher's answers; the library is a stand-in that fills the structures of PMIx."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import pytest

from distopt.comm import pmix
from distopt.comm.launcher_table import LauncherTable
from distopt.comm.started_ranks import LaunchedRank

CALLED_INIT, RUNS, UNKNOWN, EXITED, KILLED = 6, 5, 2, 20, 54
Row = tuple[int, bytes, int, int]
"""Rank, host, process id, state."""


class Library:
    """Answers with ``rows``, once for each question that is a good one."""

    def __init__(self, rows: Sequence[Row], *, version: bytes = b"OpenPMIx 5.0.11rc1 (Stable ABI: 5.0)") -> None:
        self.rows, self.version, self.status, self.asked, self.freed = rows, version, 0, 0, 0
        self.namespace = b"job"
        self.PMIx_Get_version = _Call(lambda: self.version)

    def PMIx_Query_info(self, query: Any, number: Any, results: Any, count: Any) -> int:
        self.asked += 1
        asked = query.contents
        assert number.value == asked.num_qualifiers == 1
        assert [asked.keys[0], asked.keys[1]] == [b"pmix.qry.ptable", None]
        assert asked.qualifiers[0].key == b"pmix.nspace"
        assert asked.qualifiers[0].value.data.string == b"job"
        infos = (pmix.ProcInfo * len(self.rows))()
        for info, (rank, host, pid, state) in zip(infos, self.rows, strict=True):
            info.proc.namespace, info.proc.rank = self.namespace, rank
            info.host, info.pid, info.state = host, pid, state
        self.array = pmix.DataArray(38, len(self.rows), ctypes.addressof(infos))
        self.infos = infos
        self.results = (pmix.Info * 1)()
        self.results[0].value.type = 39
        self.results[0].value.data.pointer = ctypes.addressof(self.array)
        results[0] = ctypes.cast(self.results, ctypes.POINTER(pmix.Info))
        count.contents.value = 1
        return self.status

    def PMIx_Info_free(self, results: Any, count: Any) -> None:
        assert count.value == 1
        self.freed += 1


class _Call:
    def __init__(self, call: Any) -> None:
        self._call = call
        self.restype: Any = None

    def __call__(self) -> Any:
        return self._call()


def table(library: Any, size: int = 3) -> LauncherTable:
    found = LauncherTable(library, LaunchedRank("job", 0, size, 1))
    found.ask()
    return found


def test_rank_that_was_killed_on_another_host_is_named_with_it() -> None:
    library = Library([(0, b"a", 10, CALLED_INIT), (1, b"b", 20, KILLED), (2, b"b", 21, RUNS)])
    found = table(library)
    assert found.lost() == "rank 1 (pid 20 on b) was killed by a signal"
    assert found.num_lost == 1
    assert (library.asked, library.freed) == (1, 1)


def test_rank_that_ended_otherwise_is_lost_too() -> None:
    assert table(Library([(2, b"b", 20, EXITED)])).lost() == "rank 2 (pid 20 on b) has ended"


def test_ranks_that_run_and_have_not_called_init_are_absent_and_not_lost() -> None:
    rows = [(0, b"a", 10, CALLED_INIT), (1, b"b", 20, RUNS)]
    assert table(Library(rows)).lost() is None
    assert table(Library(rows)).absent() == "rank 1 (pid 20 on b) has not called MPI_Init"
    assert table(Library([*rows, (2, b"b", 21, RUNS)])).absent() == "ranks 1, 2 have not called MPI_Init"


def test_ranks_of_which_a_daemon_was_told_nothing_are_neither_lost_nor_absent() -> None:
    found = table(Library([(0, b"a", 0, UNKNOWN), (1, b"b", 20, CALLED_INIT)]))
    assert (found.lost(), found.absent(), found.num_lost) == (None, None, 0)


@pytest.mark.parametrize("version", [b"OpenPMIx 3.2.5", b"another library", b""])
def test_library_of_another_version_is_not_asked(version: bytes) -> None:
    library = Library([(1, b"b", 20, KILLED)], version=version)
    assert table(library).lost() is None
    assert library.asked == 0


def test_library_without_pmix_is_not_asked() -> None:
    assert table(object()).lost() is None


def test_answers_that_failed_or_are_of_others_say_nothing() -> None:
    failed = Library([(1, b"b", 20, KILLED)])
    failed.status = -46
    assert table(failed).lost() is None
    others = Library([(1, b"b", 20, KILLED)])
    others.namespace = b"another job"
    assert table(others).lost() is None
    assert table(Library([(7, b"b", 20, KILLED)])).lost() is None


def test_ranks_that_another_host_has_not_told_of_are_absent_and_named_with_their_host() -> None:
    found = table(Library([(0, b"a", 0, UNKNOWN), (1, b"b", 20, CALLED_INIT), (2, b"b", 21, RUNS)]))
    late = "rank 2 (pid 21 on b) has not called MPI_Init"
    assert found.absent(came=()) == f"{late}; rank 0 (on a) has not been heard of"
    assert found.absent(came={0}) == late
    assert found.absent(came={0, 2}) is None


def test_hosts_are_known_by_their_first_ranks_and_the_own_one_by_who_has_come() -> None:
    library = Library([(0, b"a", 10, CALLED_INIT), (1, b"b", 0, UNKNOWN), (2, b"b", 0, UNKNOWN), (3, b"a", 11, RUNS)])
    found = table(library, size=4)
    assert found.first_ranks() == (0, {1})
    assert found.came_here == {0}
    assert found.names({1}) == "rank 1 (on b) has"
    assert found.names({2, 1}) == "ranks 1, 2 have"
    assert LauncherTable(object(), LaunchedRank("job", 2, 4, 2)).first_ranks() == (2, frozenset())
