"""What distopt costs beside the arithmetic: ``python -m benchmarks.overhead``.

1. One process, one replica, against a loop written by hand in NumPy: the same model (64-width-10), data, batch,
   optimizer (SGD with momentum, float32) and number of BLAS threads. Blocks of epochs of the two alternate, so that a
   drifting clock hits both; samples/s are medians over epochs. Both evaluate after each epoch, which is not timed, but
   leaves the caches to the next epoch as it does.
2. Two workers against one: where a step's milliseconds go, by phase, on MPI and through a parameter server.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from distopt import blas
from distopt.distribute import MirroredStrategy
from distopt.runtime.config_file import load_config
from distopt.runtime.prepare import prepare
from distopt.runtime.train import Hooks, TrainLoop
from distopt.types import Array

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs" / "digits.toml"
BLOCK = 10
"""Epochs of the one before it is the other's turn."""
PHASES = ("gradient", "combine", "send", "wait", "apply")


class HandWritten:
    """A perceptron with one hidden layer, softmax cross-entropy and momentum, as one would write it in NumPy."""

    def __init__(self, x: Array, y: Array, width: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.x, self.y = x, y
        self.parameters = [
            (rng.standard_normal((64, width)) * np.sqrt(2 / 64)).astype(np.float32),
            np.zeros(width, np.float32),
            (rng.standard_normal((width, 10)) * np.sqrt(1 / width)).astype(np.float32),
            np.zeros(10, np.float32),
        ]
        self.velocities = [np.zeros_like(p) for p in self.parameters]

    def epoch(self, order: Array, batch_size: int, learning_rate: float = 0.1, momentum: float = 0.9) -> float:
        """Train one epoch and return the last loss."""
        lr, mu = np.float32(learning_rate), np.float32(momentum)
        loss = 0.0
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            x, y = self.x[rows], self.y[rows]
            count = len(rows)
            w1, b1, w2, b2 = self.parameters
            hidden = x @ w1
            hidden += b1
            np.maximum(hidden, 0, out=hidden)
            logits = hidden @ w2
            logits += b2
            logits -= logits.max(axis=1, keepdims=True)
            probabilities = np.exp(logits)
            total = probabilities.sum(axis=1, keepdims=True)
            at = np.arange(count)
            loss = float((np.log(total[:, 0]) - logits[at, y]).sum() / np.float32(count))
            probabilities /= total
            probabilities[at, y] -= 1
            probabilities /= np.float32(count)
            back = probabilities @ w2.T
            back *= hidden > 0
            gradients = (x.T @ back, back.sum(axis=0), hidden.T @ probabilities, probabilities.sum(axis=0))
            for parameter, velocity, gradient in zip(self.parameters, self.velocities, gradients, strict=True):
                velocity *= mu
                velocity -= lr * gradient
                parameter += velocity
        return loss

    def accuracy(self, x: Array, y: Array) -> float:
        """Return the share of ``x`` that is classified right, and compute its loss, as a loop that trains does."""
        w1, b1, w2, b2 = self.parameters
        logits = np.maximum(x @ w1 + b1, 0) @ w2 + b2
        correct = np.count_nonzero(logits.argmax(axis=1) == y)
        logits -= logits.max(axis=1, keepdims=True)
        self.test_loss = (np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(x)), y]).mean()
        return correct / len(x)


class EpochRates:
    """A recorder that keeps the samples/s of each epoch."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def started(self, info: Any) -> None:
        """Nothing is kept of the start."""

    def progress(self, step: int, loss: float | None = None) -> None:
        """Nothing is shown."""

    def steps(self, records: Any) -> None:
        """Nothing is kept of single steps."""

    def epoch(self, metrics: Any) -> None:
        """Keep the rate."""
        self.rates.append(metrics.samples_per_s)

    def checkpoint(self, state: Any) -> None:
        """Nothing is kept."""

    def finished(self, summary: Any) -> None:
        """Nothing is kept."""


def against_hand_written(batch_size: int, width: int, epochs: int) -> tuple[float, float]:
    """Return (ours, hand-written) median samples/s."""
    settings = [
        f"task.hidden=[{width}]", f"data.global_batch_size={batch_size}", "strategy.replicas=1",
        f"data.epochs={epochs}", "run.checkpoint_every_epochs=0",
    ]  # fmt: skip
    job = prepare(load_config(CONFIG, settings))
    x, y = job.task.train_data()
    test_x, test_y = job.task.test_data()
    hand = HandWritten(x, y, width)
    hand_rates: list[float] = []
    ours = EpochRates()

    class Alternate(EpochRates):
        def epoch(self, metrics: Any) -> None:
            ours.epoch(metrics)
            if (metrics.epoch + 1) % BLOCK == 0:
                for epoch in range(BLOCK):
                    started = time.perf_counter()
                    hand.epoch(np.random.default_rng(epoch).permutation(len(x)), batch_size)
                    hand_rates.append(len(x) / (time.perf_counter() - started))
                    hand.accuracy(test_x, test_y)

    TrainLoop(job, MirroredStrategy(1), Hooks(recorder=Alternate())).run()
    warm = epochs // 5
    return statistics.median(ours.rates[warm:]), statistics.median(hand_rates[warm:])


def phases_of(on: str, workers: int, replicas: int, epochs: int) -> dict[str, float]:
    """Run the job as real processes and return the median milliseconds of a step by phase, and of the whole step."""
    with tempfile.TemporaryDirectory() as directory:
        argv = [sys.executable, "-m", "distopt", "train", str(CONFIG), "--on", on]
        for setting in (
            f"run.directory={directory}", f"strategy.replicas={replicas}", f"data.epochs={epochs}",
            f"deployment.workers={workers}",
        ):  # fmt: skip
            argv += ["--set", setting]
        if on == "mpi":
            argv = [str(Path(sys.executable).parent / "mpirun"), "--oversubscribe", "-n", str(workers), *argv]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OMPI_MCA_osc": "^ucx"}
        if os.geteuid() == 0:
            environment |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        job = subprocess.run(argv, timeout=300, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
        if job.returncode != 0:
            sys.exit(f"{' '.join(argv)}: status {job.returncode}\n{job.stderr}")
        (folder,) = Path(directory).iterdir()
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["event"] == "step" and line["step"] > 20]
    result = {phase: 1e3 * statistics.median(step["phases"][phase] for step in steps) for phase in PHASES}
    result["total"] = 1e3 * statistics.median(sum(step["phases"].values()) for step in steps)
    return result


def one_process(epochs: int) -> None:
    """Print the first comparison."""
    print("one process, one replica, against a hand-written NumPy loop (median samples/s)")
    print(f"{'batch':>6} {'width':>6} {'distopt':>12} {'by hand':>12} {'ratio':>7}")
    with blas.pin_threads(1):
        for batch_size, width in ((128, 256), (64, 64)):
            ours, hand = against_hand_written(batch_size, width, epochs)
            print(f"{batch_size:>6} {width:>6} {ours:>12,.0f} {hand:>12,.0f} {ours / hand:>7.2f}")


def two_workers() -> None:
    """Print the second comparison."""
    print(
        "\ntwo workers against one: milliseconds a step by phase (median over steps and workers; batch 128, 64-256-10)"
    )
    print(f"{'deployment':<34}" + "".join(f"{name:>10}" for name in (*PHASES, "total")))
    for title, on, workers, replicas in (
        ("one process, 1 replica", "process", 1, 1),
        ("one process, 2 replicas", "process", 1, 2),
        ("mpirun -n 2, 2 replicas", "mpi", 2, 2),
        ("server, 1 worker, 2 replicas", "cluster", 1, 2),
        ("server, 2 workers, 2 replicas", "cluster", 2, 2),
    ):
        row = phases_of(on, workers, replicas, epochs=20)
        print(f"{title:<34}" + "".join(f"{row[name]:>10.3f}" for name in (*PHASES, "total")))


def main() -> None:
    """Print both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("1", "2"), help="only this comparison")
    parser.add_argument("--epochs", type=int, default=150, help="of each loop in the first comparison (default 150)")
    options = parser.parse_args()
    if options.part != "2":
        one_process(options.epochs)
    if options.part != "1":
        two_workers()


if __name__ == "__main__":
    main()
