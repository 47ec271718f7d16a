"""Which rank of a host is lost before MPI knows of any, from what stands in a ``/proc`` of the test's own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from distopt.comm.started_ranks import LaunchedRank, StartedRanks
from distopt.runtime.environment import launched_rank

DAEMON, SHELL, FIRST = 50, 70, 100
"""Process ids: of the launcher's daemon, of a shell that started it, and of rank 0."""


def environment(rank: int, size: int, size_here: int, job: str = "job") -> dict[str, str]:
    return {
        "OMPI_MCA_mpi_ft_enable": "1",
        "PMIX_NAMESPACE": job,
        "OMPI_COMM_WORLD_RANK": str(rank),
        "OMPI_COMM_WORLD_SIZE": str(size),
        "OMPI_COMM_WORLD_LOCAL_SIZE": str(size_here),
    }


def start(proc: Path, pid: int, parent: int, environ: dict[str, str], *, state: str = "S", start_time: int = 7) -> None:
    (proc / str(pid)).mkdir(exist_ok=True)
    fields = [state, str(parent), *["0"] * 17, str(start_time), "0"]
    (proc / str(pid) / "stat").write_text(f"{pid} (a name) with (parens) {' '.join(fields)}\n")
    (proc / str(pid) / "environ").write_bytes(b"\0".join(f"{k}={v}".encode() for k, v in environ.items()) + b"\0")


def end(proc: Path, pid: int) -> None:
    for file in (proc / str(pid)).iterdir():
        file.unlink()
    (proc / str(pid)).rmdir()


def host(proc: Path, ranks: Iterable[int], *, size: int, size_here: int) -> None:
    """Make a host with a daemon, these of its ranks, and what else runs there."""
    start(proc, 1, 0, {})
    start(proc, SHELL, 1, {"HOME": "/"})
    start(proc, DAEMON, SHELL, {"HOME": "/"})
    for rank in ranks:
        start(proc, FIRST + rank, DAEMON, environment(rank, size, size_here))
    start(proc, 300, DAEMON, environment(0, 2, 2, job="another job of the daemon"))
    start(proc, 301, SHELL, environment(1, size, size_here, job="job of another daemon"))


def started(proc: Path, rank: int = 0, *, pid: int | None = None) -> StartedRanks:
    own_pid = FIRST + rank if pid is None else pid
    entries = (proc / str(own_pid) / "environ").read_text().split("\0")
    own = launched_rank(dict(entry.partition("=")[::2] for entry in entries))
    assert own is not None
    return StartedRanks(own, launched_rank, 10.0, proc=proc, pid=own_pid)


def test_rank_that_ends_is_named_with_its_process(tmp_path: Path) -> None:
    host(tmp_path, range(3), size=3, size_here=3)
    ranks = started(tmp_path)
    assert ranks.living == (0, 1, 2)
    assert ranks.lost(10.1) is None
    assert ranks.lost(1000.0) is None
    end(tmp_path, 101)
    assert ranks.lost(1000.2) == "rank 1 (pid 101) is gone"


@pytest.mark.parametrize("how", [{"state": "Z"}, {"state": "X"}, {"start_time": 8}])
def test_rank_whose_process_is_dead_or_another_one_is_gone(tmp_path: Path, how: dict[str, str]) -> None:
    host(tmp_path, range(2), size=2, size_here=2)
    ranks = started(tmp_path, 1)
    start(tmp_path, 100, DAEMON, {}, **how)  # type: ignore[arg-type]
    assert ranks.lost(10.2) == "rank 0 (pid 100) is gone"


def test_rank_that_calls_exec_is_there_while_its_environment_is_empty(tmp_path: Path) -> None:
    host(tmp_path, range(2), size=2, size_here=2)
    ranks = started(tmp_path)
    start(tmp_path, 101, DAEMON, {})
    assert ranks.lost(1000.0) is None


def test_rank_that_had_ended_before_is_named_once_all_must_have_started(tmp_path: Path) -> None:
    host(tmp_path, [0, 2], size=3, size_here=3)
    ranks = started(tmp_path, 2)
    assert ranks.lost(12.9) is None
    assert ranks.lost(13.1) == "rank 1 ended before rank 2 looked for it"


def test_rank_that_starts_a_moment_later_is_waited_for(tmp_path: Path) -> None:
    host(tmp_path, [0], size=2, size_here=2)
    ranks = started(tmp_path)
    assert ranks.lost(12.0) is None
    start(tmp_path, 101, DAEMON, environment(1, 2, 2))
    assert ranks.lost(14.0) is None
    assert ranks.living == (0, 1)


def test_rank_of_one_of_several_hosts_says_who_is_there(tmp_path: Path) -> None:
    host(tmp_path, [3, 5], size=8, size_here=3)
    assert started(tmp_path, 3).lost(13.1) == "of the 3 ranks of this host only ranks 3, 5 are there"


def test_rank_started_through_a_shell_finds_the_daemon_above_it(tmp_path: Path) -> None:
    host(tmp_path, range(2), size=2, size_here=2)
    start(tmp_path, 200, 100, environment(0, 2, 2))
    ranks = started(tmp_path, pid=200)
    end(tmp_path, 101)
    assert ranks.lost(10.2) == "rank 1 (pid 101) is gone"


def test_rank_in_a_container_of_its_own_knows_nothing(tmp_path: Path) -> None:
    start(tmp_path, 1, 0, environment(0, 2, 2))
    assert started(tmp_path, pid=1).lost(1000.0) is None


@pytest.mark.skipif(sys.platform != "linux", reason="looks at real processes")
def test_real_processes_are_seen_and_missed() -> None:
    environ = {**os.environ, **environment(1, 2, 2, job="test of distopt")}
    with subprocess.Popen(["cat"], env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(b"!")
        child.stdin.flush()
        assert child.stdout.read(1) == b"!"  # until then it may be within exec, with no environment yet
        own = LaunchedRank("test of distopt", 1, 2, 2)
        ranks = StartedRanks(own, launched_rank, 0.0, pid=child.pid)
        assert ranks.living == (1,)
        assert ranks.lost(1.0) is None
        child.kill()
        child.wait()
        found = ranks.lost(1.0)
        assert ranks.living == ()
    # How it ended, Linux tells from 6.15 on.
    assert found in (f"rank 1 (pid {child.pid}) was killed by SIGKILL", f"rank 1 (pid {child.pid}) is gone")
