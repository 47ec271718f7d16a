"""Random kills, and whether jobs end with the bits they would have had: ``python -m tests.chaos --kills 50 --seed 1``

Each job runs under ``mpirun --with-ft ulfm``; of its ranks all but one may be killed, by SIGKILL: at a random moment
from outside, or by themselves at a random point of a random kind (:mod:`tests.faults.doomed`). A job passes if it ends
with status 0 and the hash of the job in one process, its metrics hold each step and replica once, and, on one host, the
losses of its epochs are those of the other. The report says how many kills of which kind there were.

``--early``: all kills are within a second after MPI was initialized, most of them while the ranks connect.
``--resumed``: jobs that end by a kill and are resumed, and killed again meanwhile (:mod:`tests.chaos_resumed`).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from tests.multiprocess.harness import ROOT, Job, mpirun, run_job, start_job

REPLICAS = 6
EPOCHS = 5
STEPS = 12 * EPOCHS
KINDS = {
    "message": 260,
    "exchange": 40,
    "update": STEPS,
    "block": 2 * STEPS,
    "recovery": 1,
    "save": EPOCHS,
    "ending": 1,
}
"""How a rank kills itself, and about how often there is an occasion."""

ROWS = ("task.name=tests.multiprocess.bag_of_words:BagOfWords", "data.global_batch_size=32", "data.epochs=6")
TASKS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "clipped": ("optimizer.global_clipnorm=0.5",),
    "dropout": ("task.name=tests.faults.tasks:WithDropout",),
    "rows": (*ROWS, "optimizer.global_clipnorm=0.5"),
    "lamb": ("optimizer={name='Lamb', learning_rate=0.01, options={gradient_accumulation_steps=3}}",),
}
"""Each makes as many steps. The last two, with placement ``sharded``, go on from what was kept in memory."""
CONFIG = ROOT / "configs" / "digits.toml"


class Plan(NamedTuple):
    """One job: what it is, on how many ranks, and who dies when."""

    task: str
    placement: str
    ranks: int
    by_itself: dict[str, tuple[str, int]]
    from_outside: dict[int, float]
    """By rank, seconds after the first step."""
    hosts: int = 1
    """So many are emulated."""


def draw(rng: random.Random, *, early: bool = False) -> Plan:
    """Return a random plan; ``early``: of kills soon after MPI was initialized."""
    placement = rng.choice(["replica", "sharded"])
    task = rng.choice(list(TASKS))
    ranks = rng.choice([3, 5]) if early else rng.randint(2, 4)
    plan = Plan(task, placement, ranks, {}, {}, hosts=rng.choice([1, 1, 1, 2]))
    for rank in rng.sample(range(ranks), rng.randint(1, ranks - 1)):
        if early:
            plan.by_itself[str(rank)] = "start", round(10 ** rng.uniform(0, 3))
        elif rng.random() < 0.3:
            plan.from_outside[rank] = rng.uniform(0.0, 1.5)
        else:
            kind = rng.choice(list(KINDS))
            plan.by_itself[str(rank)] = kind, rng.randrange(KINDS[kind])
    return plan


def settings(task: str) -> list[str]:
    options = [f"data.epochs={EPOCHS}", f"strategy.replicas={REPLICAS}", *TASKS[task], "task.hidden=[200,100]"]
    return [word for option in options for word in ("--set", option)]


def want(task: str, directory: Path) -> tuple[str, list[float]]:
    """Return hash and losses of a job that nothing happens to."""
    argv = ["-m", "distopt", "train", str(CONFIG), "--on", "process", *settings(task)]
    result = run_job([sys.executable, *argv, "--run-directory", str(directory)], limit_s=120.0)
    assert result.status == 0, result
    return read(next(directory.iterdir()))[:2]


def read(folder: Path) -> tuple[str, list[float], Counter[tuple[int, int]]]:
    """Return hash, losses by epoch, and how often each replica was computed in each step."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["event"] == "epoch"]
    computed = Counter((line["step"], r) for line in lines if line["event"] == "step" for r in line["replicas"])
    return json.loads((folder / "summary.json").read_text())["state_hash"], losses, computed


def command(plan: Plan, directory: Path, log: Path) -> list[str]:
    doomed = [
        "-m",
        "tests.faults.doomed",
        json.dumps({**plan.by_itself, "hosts": plan.hosts}),
        str(log),
        "train",
        str(CONFIG),
    ]
    options = ["--on", "mpi", "--run-directory", str(directory), *settings(plan.task)]
    options += ["--set", f'deployment.placement="{plan.placement}"', "--set", "deployment.keep_every_steps=10"]
    launcher, *rest = mpirun(plan.ranks, [*doomed, *options])
    return [launcher, "--with-ft", "ulfm", *rest]


def kill_from_outside(job: Job, plan: Plan) -> list[str]:
    """Kill ranks when their time has come; return who was killed."""
    if plan.from_outside:
        job.wait_for_line("digits:|dropout:", stream="stderr")
    started_s, killed = time.monotonic(), []
    for rank, after_s in sorted(plan.from_outside.items(), key=lambda item: item[1]):
        with contextlib.suppress(subprocess.TimeoutExpired):  # unless the job has ended by then
            job.process.wait(max(0.0, started_s + after_s - time.monotonic()))
        found = [process for process in job.processes() if process.mpi_rank == rank]
        if found and job.process.poll() is None:
            job.kill(found[0])
            killed.append(f"{rank} outside {after_s:.2f}")
    return killed


def run(plan: Plan, expected: tuple[str, list[float]], directory: Path) -> list[str]:
    """Run a job and return its kills.

    Raises: AssertionError if it did not end as if there had been none.
    """
    log = directory / "kills"
    with start_job(command(plan, directory / "runs", log), limit_s=90.0) as job:
        killed = kill_from_outside(job, plan)
        result = job.wait()
    killed += log.read_text().splitlines() if log.exists() else []
    assert result.status == 0, f"{plan}\n{killed}\n{result}"
    assert (directory / "runs").exists(), f"{plan}\n{killed}\nno run folder\n{result}"
    found, losses, computed = read(next((directory / "runs").iterdir()))
    assert found == expected[0], f"{plan}\n{killed}\nanother hash\n{result}"
    assert computed == Counter((s, r) for s in range(STEPS) for r in range(REPLICAS)), f"{plan}\n{killed}\n{computed}"
    # The loss of an epoch is over the samples of which it is known; what a host has alone is lost with it.
    assert plan.hosts > 1 or losses == expected[1], f"{plan}\n{killed}\n{losses}\n{expected[1]}"
    return killed


def main() -> int:
    from tests.chaos_resumed import draw as draw_resumed
    from tests.chaos_resumed import run as run_resumed

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3000.0, help="begin no job after that")
    parser.add_argument("--placement", choices=["replica", "sharded"])
    parser.add_argument("--early", action="store_true", help="within a second after MPI was initialized")
    parser.add_argument("--resumed", action="store_true", help="of jobs that are resumed")
    parser.add_argument("--without-ulfm", action="store_true", help="resumed jobs of an MPI that has none")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    kinds: Counter[str] = Counter()
    expected: dict[str, Any] = {}
    jobs = failed = 0
    started_s = time.monotonic()
    output = sys.stdout
    while sum(kinds.values()) < options.kills and time.monotonic() - started_s < options.seconds:
        plan: Any = (
            draw_resumed(rng, can_survive=not options.without_ulfm)
            if options.resumed
            else draw(rng, early=options.early)
        )
        if options.placement:
            plan = plan._replace(placement=options.placement)
        with tempfile.TemporaryDirectory() as directory:
            began_s = time.monotonic()
            jobs += 1
            try:
                with contextlib.redirect_stdout(io.StringIO()):  # the harness shows all output, for pytest
                    if plan.task not in expected:
                        expected[plan.task] = want(plan.task, Path(directory) / "expected")
                    carry_out = run_resumed if options.resumed else run
                    killed = carry_out(plan, expected[plan.task], Path(directory))
            except AssertionError as error:
                failed += 1
                output.write(f"job {jobs} FAILED: {error}\n")
                output.flush()
                continue
        kinds.update(f"{plan.placement} {kill.split()[1]}" for kill in killed)
        seconds = time.monotonic() - began_s
        output.write(f"job {jobs}: {plan}: {killed}, {seconds:.1f} s\n")
        output.flush()
    output.write(f"{sum(kinds.values())} kills in {jobs} jobs, {failed} failed, seed {options.seed}: ")
    output.write(", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
