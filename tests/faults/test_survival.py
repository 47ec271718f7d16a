"""Ranks of `mpirun --with-ft ulfm` that die are survived in place: same hash, each step and replica once, status 0."""

from __future__ import annotations

import functools
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests import chaos
from tests.chaos import Plan
from tests.multiprocess.harness import start_job

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
    ],
    ids=["replica", "sharded", "dropout"],
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


def test_rank_that_is_stopped_is_ended_and_survived(tmp_path: Path) -> None:
    plan = Plan("plain", "sharded", 2, {}, {})
    with start_job(chaos.command(plan, tmp_path, tmp_path / "kills"), limit_s=60.0) as job:
        job.wait_for_line("epoch 1/", stream="stderr")
        job.stop(job.find(mpi_rank=0))
        result = job.wait()
    assert result.status == 0, result
    assert chaos.read(next(tmp_path.iterdir()))[0] == undisturbed("plain")[0]
    assert Counter(result.stdout.split())["lost"] == 1, result
