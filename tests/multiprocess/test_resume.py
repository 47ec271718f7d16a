"""A job that is interrupted and resumed elsewhere ends with the hash of one that was not."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest

from tests.multiprocess.harness import ROOT, mpirun, run_job, start_job

pytestmark = pytest.mark.multiprocess

TRAIN = ("-m", "distopt", "train")
CONFIG = (str(ROOT / "configs" / "digits.toml"), "--set", "data.epochs=80", "--set", "strategy.replicas=3")


def folder_of(directory: Path) -> Path:
    (folder,) = directory.iterdir()
    return folder


def final_hash(folder: Path) -> str:
    return str(json.loads((folder / "summary.json").read_text())["state_hash"])


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("whole")
    job = run_job([sys.executable, *TRAIN, *CONFIG, "--on", "process", "--run-directory", str(directory)], limit_s=90)
    assert job.status == 0, job
    return final_hash(folder_of(directory))


def test_job_interrupted_in_one_process_and_on_a_cluster_ends_under_mpirun_with_the_same_hash(
    tmp_path: Path, uninterrupted: str
) -> None:
    begin = [*CONFIG, "--on", "process", "--run-directory", str(tmp_path)]
    for arguments in (begin, None):
        argv = arguments or ["--resume", str(folder_of(tmp_path)), "--on", "cluster"]
        with start_job([sys.executable, *TRAIN, *argv], limit_s=90) as job:
            job.wait_for_line(r"epoch \d+/", stream="stderr", count=3)
            job.signal(job.process.pid, signal.SIGINT)
            result = job.wait()
        assert result.status == 130, result
        assert "interrupted at step" in result.stdout
        assert f"--resume {folder_of(tmp_path)}" in result.stdout
    resumed = run_job(mpirun(2, [*TRAIN, "--resume", str(folder_of(tmp_path)), "--on", "mpi"]), limit_s=90)
    assert resumed.status == 0, resumed
    assert final_hash(folder_of(tmp_path)) == uninterrupted


@pytest.mark.parametrize("on", ["cluster", "mpi"])
def test_job_that_loses_a_process_goes_on_to_the_same_hash(tmp_path: Path, uninterrupted: str, on: str) -> None:
    argv = [sys.executable, *TRAIN, *CONFIG, "--on", on, "--run-directory", str(tmp_path), "--restarts", "1"]
    if on == "mpi":  # where the lost rank owned a part of variables and slots
        argv += ["--set", "deployment.placement=sharded", "--set", "deployment.survive_losses=false"]
    with start_job(argv, limit_s=90) as job:
        job.wait_for_line(r"epoch 3/", stream="stderr")
        job.kill(job.find(mpi_rank=1) if on == "mpi" else job.find(argument="server"))
        result = job.wait()
    assert result.status == 0, result
    assert "distopt: restart 1 of 1, from the last checkpoint" in result.stderr
    assert "resumed at step" in result.stderr
    assert final_hash(folder_of(tmp_path)) == uninterrupted
    (error,) = folder_of(tmp_path).glob("error.*.json")
    assert json.loads(error.read_text())["kind"] == "PeerLostError"


def test_restarts_start_ranks_that_survive_each_others_loss(tmp_path: Path, uninterrupted: str) -> None:
    argv = [sys.executable, *TRAIN, *CONFIG, "--on", "mpi", "--set", "deployment.workers=2"]
    with start_job([*argv, "--run-directory", str(tmp_path), "--restarts", "2"], limit_s=90) as job:
        job.kill(job.find(mpi_rank=1))  # before it has loaded MPI
        job.wait_for_line("distopt: error: rank 1 .* before step 0; rank 0 waited", stream="stderr")
        job.wait_for_line("restart 1 of 2, from the last checkpoint", stream="stderr")
        job.wait_for_line(r"epoch 3/", stream="stderr")
        job.kill(job.find(mpi_rank=1))  # is survived
        (log,) = [folder_of(tmp_path) / "logs" / "rank-0.log"]
        job.wait_for_line_in(log, "1 ranks are left")
        job.kill(job.find(mpi_rank=0))  # the last one
        job.wait_for_line("restart 2 of 2, from the last checkpoint", stream="stderr")
        job.wait_for_line("resumed at step", stream="stderr")
        job.kill(job.find(mpi_rank=0))  # is survived
        result = job.wait()
    assert result.status == 0, result
    assert result.stderr.count("from the last checkpoint") == 2, result
    assert final_hash(folder_of(tmp_path)) == uninterrupted
    lost = json.loads((folder_of(tmp_path) / "summary.json").read_text())["lost"]
    assert [each["worker"] for each in lost] == [0]
