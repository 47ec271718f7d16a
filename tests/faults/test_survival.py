"""Ranks of `mpirun --with-ft ulfm` that die are survived in place: same hash, each step and replica once, status 0.

Loops of users' own make steps again, to the same hash.
"""

from __future__ import annotations

import functools
import json
import os
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests import chaos, chaos_resumed
from tests.chaos import Plan
from tests.chaos_resumed import Resumed
from tests.faults.own_loop import KEEP_EVERY
from tests.multiprocess.harness import ROOT, mpirun, run_job, start_job

pytestmark = pytest.mark.multiprocess


@functools.cache
def undisturbed(task: str) -> tuple[str, list[float]]:
    with tempfile.TemporaryDirectory() as directory:
        return chaos.want(task, Path(directory) / "runs")


@pytest.mark.parametrize(
    ("plan", "lost"),
    [
        # The root as it writes a checkpoint, and another in the middle of telling the others that it is ready.
        (Plan("plain", "replica", 3, {"0": ("save", 1), "2": ("message", 70)}, {}), {0, 2}),
        # An owner in the middle of its block, and one in the recovery from that.
        (Plan("clipped", "sharded", 4, {"1": ("block", 31), "3": ("recovery", 0)}, {}), {1, 3}),
        # State that a replica has for itself, and a rank that is done when it dies.
        (Plan("dropout", "sharded", 3, {"0": ("update", 25), "1": ("ending", 0)}, {}), {0, 1}),
        # The root in the second exchange of all, and another in that of the others without it.
        (Plan("plain", "sharded", 3, {"0": ("exchange", 1), "2": ("exchange", 3)}, {}), {0, 2}),
        # What is not ended in place: rows, and two hosts with a rule after norms and accumulated gradients.
        (Plan("rows", "sharded", 3, {"1": ("update", 31), "2": ("message", 150)}, {}), {1, 2}),
        (Plan("lamb", "sharded", 4, {"0": ("message", 120), "2": ("update", 30)}, {}, hosts=2), {0, 2}),
    ],
    ids=["replica", "sharded", "dropout", "connecting", "rows", "lamb on two hosts"],
)
def test_killed_ranks_are_survived_by_the_others_in_the_same_processes(
    tmp_path: Path, plan: Plan, lost: set[int]
) -> None:
    killed = chaos.run(plan, undisturbed(plan.task), tmp_path)
    assert {int(kill.split()[0]) for kill in killed} == lost
    (folder,) = (tmp_path / "runs").iterdir()
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    at_the_end = {int(rank) for rank, (kind, _) in plan.by_itself.items() if kind == "ending"}  # the job may be done
    assert lost - at_the_end <= {each["worker"] for each in summary["lost"]} <= lost
    assert not (folder / "error.json").exists()


def test_root_killed_as_a_killed_job_is_resumed_is_survived_and_all_since_then_is_recorded(tmp_path: Path) -> None:
    everyone = {str(rank): ("update", 30) for rank in range(3)}
    plan = Resumed("plain", "sharded", 3, True, (everyone, {"0": ("restore", 0)}), ())
    killed = chaos_resumed.run(plan, undisturbed("plain"), tmp_path)
    assert sorted(killed) == ["0 restore 0", "0 update 30", "1 update 30", "2 update 30"]


def test_rank_that_is_stopped_is_ended_and_survived(tmp_path: Path) -> None:
    plan = Plan("plain", "sharded", 2, {}, {})
    with start_job(chaos.command(plan, tmp_path, tmp_path / "kills"), limit_s=60.0) as job:
        job.wait_for_line("epoch 1/", stream="stderr")
        job.stop(job.find(mpi_rank=0))
        result = job.wait()
    assert result.status == 0, result
    assert chaos.read(next(tmp_path.iterdir()))[0] == undisturbed("plain")[0]
    assert Counter(result.stdout.split())["lost"] == 1, result


def own_loop(placement: str, doomed: dict[str, tuple[int, str]], status: int = 0, *fifo: str) -> list[str]:
    return ["-m", "tests.faults.own_loop", placement, json.dumps(doomed), str(status), *fifo]


@functools.cache
def hash_of_own_loop() -> str:
    result = run_job([sys.executable, *own_loop("replica", {})], limit_s=60.0)
    assert result.status == 0, result
    (found,) = re.findall(r"hash (\w+)", result.stdout)
    return str(found)


@pytest.mark.parametrize(
    ("placement", "doomed", "status"),
    [("replica", {"0": (9, "before"), "2": (21, "meanwhile")}, 0), ("sharded", {"1": (6, "meanwhile")}, 3)],
    ids=["replica", "sharded"],
)
def test_loop_of_ones_own_goes_on_without_ranks_that_are_killed_and_ends_with_its_status(
    tmp_path: Path, placement: str, doomed: dict[str, tuple[int, str]], status: int
) -> None:
    fifo = tmp_path / "leaving"
    os.mkfifo(fifo)
    launcher, *rest = mpirun(3, own_loop(placement, doomed, status, str(fifo)))
    result = run_job([launcher, "--with-ft", "ulfm", *rest], limit_s=90.0)
    assert result.status == status, result
    left = 3 - len(doomed)
    assert re.findall(r"hash (\w+)", result.stdout) == left * [hash_of_own_loop()], result
    begun = {int(size): int(step) for size, step in re.findall(r"size (\d) begins at step (\d+)", result.stdout)}
    first, *later = sorted(step for step, _ in doomed.values())
    assert begun[3] == 0
    assert abs(first - begun[2]) < KEEP_EVERY, result
    assert all(abs(step - begun[1]) < KEEP_EVERY for step in later), result


def test_loop_on_the_operations_page_runs_on_two_ranks(tmp_path: Path) -> None:
    _, _, section = (ROOT / "docs" / "operations.md").read_text().partition("### A training loop of one's own")
    script = tmp_path / "script.py"
    script.write_text(section.partition("```python\n")[2].partition("```")[0])
    launcher, *rest = mpirun(2, [str(script)])
    result = run_job([launcher, "--with-ft", "ulfm", *rest], limit_s=60.0, env={"PYTHONPATH": str(ROOT)})
    assert result.status == 0, result
    first, second = result.stdout.strip().splitlines()
    assert first == second
    assert first.startswith("[ 0.49"), result


def test_error_after_a_loss_ends_the_job_everywhere_with_a_status() -> None:
    launcher, *rest = mpirun(3, own_loop("replica", {"0": (5, "before"), "1": (12, "raises")}))
    result = run_job([launcher, "--with-ft", "ulfm", *rest], limit_s=40.0)
    assert result.status != 0, result
    assert "ArithmeticError: the data of this rank are bad" in result.stderr, result
