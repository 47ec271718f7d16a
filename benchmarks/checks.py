"""What looking for mistakes costs: ``python -m benchmarks.checks``.

The digits job (64-256-10, global batch 128, float32, SGD with momentum) trains in turns of one epoch each: without the
checks and receipts, with them, and with ``non_finite="raise"`` as well, which TensorFlow's semantics leave off. A turn
is compared with the turn without checks next to it, so that a drifting clock hits both; the ratio is the median over
all rounds of three turns, whose order changes from round to round.

"Without" takes out what can be taken out of a running process: marks, the tape's note of its target, receipts,
comparisons before an apply call, and the label that travels with a reduction. What is left in all three are a few tests
of attributes, timed by themselves and printed as nanoseconds a step.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distopt import blas
from distopt.autodiff.nodes import state
from distopt.distribute import Checks, MirroredStrategy, MultiWorkerMirroredStrategy, Strategy
from distopt.runtime.config_file import load_config
from distopt.runtime.prepare import prepare
from distopt.runtime.train import Hooks, TrainLoop

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs" / "digits.toml"
ARMS = ("without", "with", "with non_finite='raise'")
ORDERS = ((0, 1, 2), (1, 2, 0), (2, 0, 1), (0, 2, 1), (2, 1, 0), (1, 0, 2))
NO_CHECKS = Checks(
    reduced_by_hand="ignore",
    aggregated_twice="ignore",
    mean_taken_twice="ignore",
    never_reduced="ignore",
    local_mean_loss="ignore",
)


class Turns:
    """A recorder that changes the checks of a strategy after every epoch, and keeps the seconds of each."""

    def __init__(self, strategy: Strategy) -> None:
        self.seconds: list[dict[int, float]] = [{}]
        self._extended = strategy.extended
        self._several = self._extended.inspector.several
        self._switch(self._next())

    def epoch(self, metrics: Any) -> None:
        """Keep the time of a sample, and go to the next turn."""
        rounds = self.seconds
        rounds[-1][self._arm] = 1.0 / metrics.samples_per_s
        if len(rounds[-1]) == len(ARMS):
            rounds.append({})
        self._switch(self._next())

    def _next(self) -> int:
        rounds = self.seconds
        return ORDERS[len(rounds) % len(ORDERS)][len(rounds[-1])]

    def _switch(self, arm: int) -> None:
        self._arm = arm
        extended = self._extended
        owners: Any = extended.every_process
        extended.inspector.several = self._several and arm > 0
        extended.checks = (NO_CHECKS, Checks(), Checks(non_finite="raise"))[arm]
        owners.__dict__.pop("_introduced", None)
        if arm == 0:
            owners._introduced = lambda *_: (False, False, b"")

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


def ratios(strategy: Strategy, epochs: int) -> tuple[list[float], float]:
    """Return the median ratios of the arms to the first one, and the median microseconds of its step."""
    settings = [
        "task.hidden=[256]", "data.global_batch_size=128", f"strategy.replicas={strategy.num_replicas_in_sync}",
        f"data.epochs={epochs}", "run.checkpoint_every_epochs=0",
    ]  # fmt: skip
    turns = Turns(strategy)
    TrainLoop(prepare(load_config(CONFIG, settings)), strategy, Hooks(recorder=turns)).run()  # type: ignore[arg-type]  # it takes whatever a recorder is told
    rounds = [of_round for of_round in turns.seconds if len(of_round) == len(ARMS)]
    rounds = rounds[len(rounds) // 5 :]
    medians = [statistics.median(of_round[arm] / of_round[0] for of_round in rounds) for arm in range(len(ARMS))]
    return medians, 128e6 * statistics.median(of_round[0] for of_round in rounds)


def tests_left_ns() -> float:
    """Return the nanoseconds of the tests of attributes that one replica's step makes in any case."""
    inspector = MirroredStrategy(1).extended.inspector
    names = {"state": state, "inspector": inspector, "optimizer": None}
    statement = (
        "state.watcher is not None; inspector.several; inspector.several; inspector.adopt(optimizer); "
        "inspector.looks_at_applies; inspector.looks_for_non_finite"
    )
    return 1e9 * min(timeit.repeat(statement, globals=names, number=100_000, repeat=5)) / 100_000


def line(title: str, found: tuple[list[float], float]) -> str:
    """Return one line of the table."""
    medians, step_us = found
    shown = "".join(f"{100 * (ratio - 1):>+12.2f} %" for ratio in medians[1:])
    return f"{title:<26}{step_us:>10.0f} us{shown}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=1800, help="of each run, a third of them an arm (default 1800)")
    parser.add_argument("--mpi-rank", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    with blas.pin_threads(1):
        if options.mpi_rank:
            strategy = MultiWorkerMirroredStrategy(replicas=2)
            found = ratios(strategy, options.epochs)
            if strategy.extended.rank == 0:
                print(line("mpirun -n 2, 2 replicas", found))
            return
        print(f"{'':<26}{'a step':>13}{'checks':>14}{'+ non_finite':>14}")
        for replicas in (1, 2):
            title = f"1 process, {replicas} replica{'s' if replicas > 1 else ''}"
            print(line(title, ratios(MirroredStrategy(replicas), options.epochs)), flush=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMPI_MCA_osc": "^ucx"}
    if os.geteuid() == 0:
        environment |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    argv = [str(Path(sys.executable).parent / "mpirun"), "--oversubscribe", "-n", "2", sys.executable]
    argv += ["-m", "benchmarks.checks", "--mpi-rank", "--epochs", str(options.epochs)]
    subprocess.run(argv, env=environment, cwd=ROOT, check=True, timeout=900)
    print(f"tests of attributes that are left without checks, one replica: {tests_left_ns():.0f} ns a step")


if __name__ == "__main__":
    main()
