"""Kills of jobs that are resumed, also while they are being resumed: for ``python -m tests.chaos --resumed``.

Two ways, drawn at random. *By hand*: a job is killed at a random point; a job that resumes it is killed at a random
point of its beginning (:mod:`tests.faults.doomed`); a last one ends it. *By restarts*: ``distopt train --restarts N``,
of which one rank after the other is killed from outside, at any moment of starting, resuming or training.

A job passes if its last part ends with status 0 and the hash of the job in one process, and its metrics are whole
lines that hold each step and replica once since it was last started; a part that does not survive its kill must end
within 10 s, with a status and one error.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from distopt.observe import RunFolder
from tests.chaos import CONFIG, KINDS, REPLICAS, STEPS, TASKS, settings
from tests.multiprocess.harness import Job, JobResult, mpirun, run_job, start_job

BEGINNINGS = ("init", "folder", "load", "prepare", "manifest", "restore", "message", "update")
"""Where a job that is being resumed dies; the last two soon after."""
ENDS_WITHIN_S = 10.0


class Resumed(NamedTuple):
    """One job in several parts."""

    task: str
    placement: str
    ranks: int
    survives: bool
    """Whether the launcher lets survivors live."""
    parts: tuple[dict[str, tuple[str, int]], ...]
    """By hand: who dies when in each part but the last one."""
    gaps: tuple[tuple[int, float], ...]
    """By restarts: ranks that are killed, and how many seconds after the kill before."""


def draw(rng: random.Random, *, can_survive: bool = True) -> Resumed:
    """Return a random plan."""
    task, placement = rng.choice(list(TASKS)), rng.choice(["replica", "sharded"])
    ranks, survives = rng.randint(2, 4), can_survive and rng.random() < 0.5
    if rng.random() < 0.5:
        gaps = tuple((rng.randrange(ranks), rng.uniform(0.0, 4.0)) for _ in range(rng.randint(1, 3)))
        return Resumed(task, placement, ranks, survives, (), gaps)
    kind = rng.choice(("message", "exchange", "update", "save"))
    number = rng.randrange(KINDS[kind])
    # Where survivors live, all have to die; who is spared by what is saved by the first rank is told to die otherwise.
    doomed = range(ranks) if survives else [0 if kind == "save" else rng.randrange(ranks)]
    parts = [{str(rank): (kind if kind != "save" or rank == 0 else "exchange", number) for rank in doomed}]
    for _ in range(rng.randint(1, 2)):
        occasions = {"message": rng.randrange(40), "update": rng.randrange(5), "init": rng.randrange(20)}
        kind = rng.choice(BEGINNINGS)
        doomed = rng.sample(range(ranks), rng.choice([1, 1, 2]))
        parts.append({str(rank): (kind, occasions.get(kind, 0)) for rank in doomed})
    return Resumed(task, placement, ranks, survives, tuple(parts), ())


def run(plan: Resumed, expected: tuple[str, list[float]], directory: Path) -> list[str]:
    """Run a job and return its kills.

    Raises: AssertionError if it did not end as if there had been none.
    """
    runs = directory / "runs"
    result, killed = _by_hand(plan, runs, directory) if plan.parts else _by_restarts(plan, runs)
    assert result.status == 0, f"{plan}\n{killed}\n{result}"
    (folder,) = runs.iterdir()
    found = json.loads((folder / "summary.json").read_text())["state_hash"]
    assert found == expected[0], f"{plan}\n{killed}\nanother hash\n{result}"
    _check_metrics(folder, f"{plan}\n{killed}")
    return killed


def _options(plan: Resumed, runs: Path) -> list[str]:
    more = [
        f'deployment.placement="{plan.placement}"',
        "deployment.keep_every_steps=10",
        "run.checkpoint_every_steps=7",
    ]
    argv = [str(CONFIG), "--on", "mpi", "--run-directory", str(runs), *settings(plan.task)]
    return [*argv, *(word for option in more for word in ("--set", option))]


def _by_hand(plan: Resumed, runs: Path, directory: Path) -> tuple[JobResult, list[str]]:
    killed: list[str] = []
    for number, doomed in enumerate([*plan.parts, {}]):
        log = directory / f"kills {number}"
        has_folder = any(runs.glob("*/config.toml"))
        train = ["--resume", str(next(runs.iterdir()))] if has_folder else _options(plan, runs)
        launcher, *rest = mpirun(
            plan.ranks, ["-m", "tests.faults.doomed", json.dumps(doomed), str(log), "train", *train]
        )
        ulfm = ["--with-ft", "ulfm"] if plan.survives else []
        result = run_job([launcher, *ulfm, *rest], limit_s=90.0)
        ended_s = time.time()
        if log.exists():
            killed += log.read_text().splitlines()
            assert ended_s - log.stat().st_mtime < ENDS_WITHIN_S or result.status == 0, f"{plan}\n{killed}\n{result}"
        if result.status == 0 and any(runs.glob("*/summary.json")):
            break
        errors = re.findall("distopt: error:", result.stderr)
        assert log.exists(), f"{plan}\n{killed}\n{result}"
        assert len(errors) <= 1, f"{plan}\n{killed}\n{result}"
    return result, killed


def _by_restarts(plan: Resumed, runs: Path) -> tuple[JobResult, list[str]]:
    train = ["-m", "distopt", "train", *_options(plan, runs), "--restarts", str(len(plan.gaps))]
    more = [f"deployment.workers={plan.ranks}", f"deployment.survive_losses={str(plan.survives).lower()}"]
    argv = [sys.executable, *train, *(word for option in more for word in ("--set", option))]
    killed = []
    with start_job(argv, limit_s=120.0) as job:
        for rank, gap_s in plan.gaps:
            if not _wait(job, gap_s) or (pid := _pid(job, rank)) is None:
                break
            job.kill(pid)
            killed.append(f"{rank} restarts {gap_s:.2f}")
        return job.wait(), killed


def _wait(job: Job, seconds: float) -> bool:
    """Wait; return whether the job is still there."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        job.process.wait(seconds)
    return job.process.returncode is None


def _pid(job: Job, rank: int) -> int | None:
    """Return the process of that rank, or of another if it is lost, once there is one; None if the job ends."""
    while job.process.poll() is None:
        ranks = {found.mpi_rank: found.pid for found in job.processes() if found.mpi_rank is not None}
        if ranks:
            return ranks.get(rank, min(ranks.values()))
    return None


def _check_metrics(folder: Path, what: str) -> None:
    start = RunFolder(folder).read_start()
    text = (folder / "metrics.jsonl").read_text()
    assert all(isinstance(json.loads(line), dict) for line in text.splitlines())
    lines: list[dict[str, Any]] = [json.loads(line) for line in text[start:].splitlines()]
    begun = next(line["resumed_at_step"] for line in lines if line["event"] == "started")
    computed = Counter((line["step"], r) for line in lines if line["event"] == "step" for r in line["replicas"])
    wanted = Counter((step, replica) for step in range(begun, STEPS) for replica in range(REPLICAS))
    assert computed == wanted, f"{what}\nfrom step {begun}: {wanted - computed} missing, {computed - wanted} too many"
