"""Whatever happens to one process, the whole job ends soon, with one error that names it, and leaves nothing behind.

The harness kills what outlives a job and fails the test for it. Each job trains without end until its fault.
"""

from __future__ import annotations

import re
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.multiprocess.harness import ROOT, Job, JobResult, Process, mpirun, run_job, start_job

pytestmark = pytest.mark.multiprocess

LIMIT_S = 60.0
ENDS_WITHIN_S = 15.0
TRAIN = ("-m", "distopt", "train", str(ROOT / "configs" / "digits.toml"))
ENDLESS = ("--set", "data.epochs=100000", "--set", "strategy.replicas=8")


def cluster(directory: Path, *settings: str) -> list[str]:
    return [sys.executable, *TRAIN, "--on", "cluster", "--run-directory", str(directory), *ENDLESS, *settings]


def ranks(directory: Path, number: int, *settings: str) -> list[str]:
    return mpirun(number, [*TRAIN, "--on", "mpi", "--run-directory", str(directory), *ENDLESS, *settings])


def member(job: Job, role: str, index: int | None = None) -> Process:
    """Return the process of a local cluster that plays ``role``."""
    found = [
        process
        for process in job.processes()
        if process.argv[1:4] == ("-m", "distopt", role)
        and (index is None or process.argv[process.argv.index("--index") + 1] == str(index))
    ]
    assert len(found) == 1, f"{len(found)} processes are {role} {index}"
    return found[0]


def end_by(job: Job, fault: Callable[[], None], *, stream: str = "stderr") -> JobResult:
    """Let the job train for an epoch, cause ``fault``, and return how it ended, in time and with a status."""
    job.wait_for_line(r"epoch 1/", stream=stream)
    started_s = time.monotonic()
    fault()
    result = job.wait()
    assert time.monotonic() - started_s < ENDS_WITHIN_S, result
    assert result.status != 0, result
    return result


def the_error(result: JobResult) -> str:
    """Return the one error line."""
    lines = [line for line in result.stderr.splitlines() if "distopt: error:" in line]
    assert len(lines) == 1, result
    return lines[0]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["kill", "stop"])
@pytest.mark.parametrize("victim", [("worker", 1), ("server", 0), ("coordinator", None)], ids=lambda v: v[0])
def test_cluster_process_that_dies_or_freezes_ends_the_job_and_is_named(
    tmp_path: Path, victim: tuple[str, int | None], how: int
) -> None:
    with start_job(cluster(tmp_path), limit_s=LIMIT_S) as job:
        error = the_error(end_by(job, lambda: job.signal(member(job, *victim), how)))
    role, index = victim
    assert role if index is None else f"{role} {index}" in error
    assert "step" in error
    assert "wait" in error or role == "coordinator"


def test_launcher_that_is_killed_takes_its_children_along(tmp_path: Path) -> None:
    with start_job(cluster(tmp_path), limit_s=LIMIT_S) as job:
        result = end_by(job, lambda: job.kill(job.process.pid))
    error = the_error(result)
    assert "launcher" in error
    assert "step" in error


@pytest.mark.parametrize("on", ["cluster", "mpi", "process"])
def test_task_that_raises_on_one_replica_is_named_with_replica_and_step(tmp_path: Path, on: str) -> None:
    settings = ("--set", "task.name=tests.faults.tasks:FailsOnOneReplica")
    argv = {
        "cluster": cluster(tmp_path, *settings),
        "mpi": ranks(tmp_path, 3, *settings),
        "process": [sys.executable, *TRAIN, "--on", "process", "--run-directory", str(tmp_path), *ENDLESS, *settings],
    }[on]
    result = run_job(argv, limit_s=LIMIT_S)
    assert result.status != 0, result
    error = the_error(result)
    assert "replica 5" in error
    assert "step 3" in error
    assert "the data of this replica are bad" in error


@pytest.mark.parametrize("on", ["cluster", "mpi"])
def test_processes_with_different_hypers_at_a_step_end_with_the_error_that_names_it(tmp_path: Path, on: str) -> None:
    settings = ("--set", "optimizer.name=tests.faults.tasks:DriftsOnOneReplica")
    argv = cluster(tmp_path, *settings) if on == "cluster" else ranks(tmp_path, 2, *settings)
    result = run_job(argv, limit_s=LIMIT_S)
    assert result.status != 0, result
    found = re.search(r"(worker|rank) [01] and (the first one of the round|rank [01]) have different hypers at step 3",
                      the_error(result))  # fmt: skip
    assert found, result
    assert "epoch 1/" not in result.stderr


@pytest.mark.parametrize(
    ("victim", "placement", "how"),  # each pair of any two
    [
        (0, "replica", signal.SIGKILL),
        (0, "sharded", signal.SIGSTOP),
        (2, "replica", signal.SIGSTOP),
        (2, "sharded", signal.SIGKILL),
    ],
)
def test_mpi_rank_that_dies_or_freezes_ends_the_job_and_is_named(
    tmp_path: Path, victim: int, placement: str, how: int
) -> None:
    argv = ranks(tmp_path, 3, "--set", f"deployment.placement={placement}")
    with start_job(argv, limit_s=LIMIT_S) as job:
        result = end_by(job, lambda: job.signal(job.find(mpi_rank=victim), how))
    error = the_error(result)
    assert f"rank {victim}" in error
    assert "step" in error


def test_mpi_rank_with_another_configuration_is_refused_before_step_0_and_named_on_every_rank(tmp_path: Path) -> None:
    odd, same = ranks(tmp_path, 1, "--set", "optimizer.momentum=0.5"), ranks(tmp_path, 2)
    result = run_job([*odd, ":", *same[same.index("-n") :]], limit_s=LIMIT_S)
    assert result.status != 0, result
    diff = "rank 0 does not belong to this job (the value of 2 of 3 first): configuration optimizer.momentum: "
    diff += "0.9 against 0.5"
    assert diff in the_error(result)
    assert "epoch 1/" not in result.stderr
    logs = list(tmp_path.glob("*/logs/rank-*.log"))
    assert len(logs) == 3
    assert all(diff in log.read_text() for log in logs), logs


def test_worker_with_another_configuration_is_refused_before_step_0(tmp_path: Path) -> None:
    config = str(ROOT / "configs" / "digits.toml")
    program = [sys.executable, "-m", "distopt"]
    with ExitStack() as jobs:
        coordinator = jobs.enter_context(
            start_job(
                [*program, "coordinator", config, *ENDLESS, "--set", f"run.directory={tmp_path}"], limit_s=LIMIT_S
            )
        )
        (line,) = coordinator.wait_for_line(r"listens at tcp://", stream="stderr")
        join = ("--coordinator", line.rpartition(" ")[2], *ENDLESS)
        others = [
            jobs.enter_context(start_job([*program, role, config, *join, "--index", index, *extra], limit_s=LIMIT_S))
            for role, index, extra in (
                ("server", "0", ()),
                ("worker", "0", ()),
                ("worker", "1", ("--set", "data.global_batch_size=64")),
            )
        ]
        result = coordinator.wait()
        assert result.status != 0, result
        error = the_error(result)
        assert "worker" in error
        assert "global_batch_size" in error
        assert "128" in error
        assert "64" in error
        for other in others:
            ended = other.wait()
            assert ended.status != 0, ended


def test_processes_with_other_numerics_are_refused_before_step_0(tmp_path: Path) -> None:
    same = ranks(tmp_path, 1)
    other = same[same.index("-n") :]
    other[2:2] = ["-x", "OPENBLAS_CORETYPE=Nehalem"]
    result = run_job([*same, ":", *other], limit_s=LIMIT_S)
    assert result.status != 0, result
    error = the_error(result)
    assert "rank 1" in error
    assert "numerics" in error
    assert "Nehalem" in error


def test_address_in_use_is_an_error_that_names_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        result = run_job(cluster(tmp_path, "--set", f"deployment.address={address}"), limit_s=LIMIT_S)
    assert result.status != 0, result
    error = the_error(result)
    assert address in error
    assert "in use" in error


def test_missing_mpi_is_an_error_that_says_how_to_get_it(tmp_path: Path) -> None:
    argv = [sys.executable, *TRAIN, "--on", "mpi", "--run-directory", str(tmp_path)]
    result = run_job(argv, limit_s=LIMIT_S, env={"MPI4PY_LIBMPI": "/nonexistent/libmpi.so"})
    assert result.status != 0, result
    assert "pip install 'distopt[mpi]'" in the_error(result)
