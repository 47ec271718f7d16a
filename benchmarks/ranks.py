"""One MPI job whose ranks let contenders take turns, and the program that starts it and collects its figures.

A contender is a function that makes one step on its rank; all ranks call it at the same time. The contenders take turns
in blocks of steps, so that a drifting clock or a busy neighbour hits all: a figure is the median over rounds, a ratio
the median of the rounds' ratios. The time of a step is that of the slowest rank.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distopt import threads
from distopt.comm.mpi import MpiCommunicator
from distopt.comm.mpi_start import load_mpi

try:
    import torch
    import torch.distributed
except ImportError:
    torch = None

ROOT = Path(__file__).resolve().parent.parent
BLOCK_S = 0.05
"""Seconds of steps of one contender before it is the next one's turn."""
Step = Callable[[], None]
Seconds = dict[str, list[float]]


class Ranks:
    """One rank of the job, in one thread; ``figures`` are what rank 0 hands to the program that started it."""

    def __init__(self, rounds: int, block_s: float = BLOCK_S) -> None:
        logging.getLogger("distopt").setLevel(logging.ERROR)  # on a busy machine ranks come late to where they start
        self.comm = MpiCommunicator(timeout_s=120.0)
        self.mpi = load_mpi()
        self.world = self.mpi.COMM_WORLD
        self.rounds = rounds
        self.block_s = block_s
        self.figures: list[dict[str, Any]] = []
        threads.set_num_threads(1)
        self.has_torch = torch is not None
        if self.has_torch:
            torch.set_num_threads(1)
            torch.distributed.init_process_group(
                "gloo",
                init_method=f"tcp://127.0.0.1:{self.free_ports(1)[0]}",
                rank=self.comm.rank,
                world_size=self.comm.size,
            )

    def free_ports(self, number: int) -> list[int]:
        """Return ports of this host that nobody uses, the same on all ranks; a collective."""
        found: list[int] | None = None
        if self.comm.rank == 0:
            sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
            found = [each.getsockname()[1] for each in sockets]
            for each in sockets:
                each.close()
        ports: list[int] = json.loads(self.comm.broadcast_bytes(json.dumps(found).encode() if found else None))
        return ports

    def seconds(self, contenders: dict[str, Step]) -> Seconds:
        """Return the seconds of a step of each contender, by round; those of the slowest rank."""
        calls = {}
        for name, step in contenders.items():
            for _ in range(3):
                step()
            calls[name] = max(1, min(1000, int(self.block_s / self._timed(step, 2))))
        found: Seconds = {name: [] for name in contenders}
        for _ in range(self.rounds):
            for name, step in contenders.items():
                found[name].append(self._timed(step, calls[name]))
        return found

    def _timed(self, step: Step, calls: int) -> float:
        self.world.Barrier()
        started = time.perf_counter()
        for _ in range(calls):
            step()
        own = np.array([(time.perf_counter() - started) / calls])
        slowest = np.empty(1)
        self.world.Allreduce(own, slowest, op=self.mpi.MAX)
        return float(slowest[0])

    def say(self, line: str) -> None:
        """Print a line, once."""
        if self.comm.rank == 0:
            print(line, flush=True)

    def finish(self, figures_file: str) -> None:
        """Hand over the figures, and return when all ranks are done."""
        if self.comm.rank == 0:
            Path(figures_file).write_text(json.dumps(self.figures), encoding="utf-8")
        self.comm.finish()


def ratio(seconds: Seconds, other: str, ours: str) -> float:
    """Return how many times as long ``other`` takes, as the median over rounds; NaN where one of them did not run."""
    if other not in seconds or ours not in seconds:
        return float("nan")
    return statistics.median(t / o for t, o in zip(seconds[other], seconds[ours], strict=True))


def column(value: float, width: int) -> str:
    """Return a figure as a column of a table, with a dash for what did not run.

    >>> column(1.234, 6), column(float("nan"), 3)
    ('  1.23', '  -')
    """
    return f"{'-' if math.isnan(value) else format(value, '.2f'):>{width}}"


def medians_ms(seconds: Seconds) -> dict[str, float]:
    """Return the median milliseconds of each contender."""
    return {name: 1e3 * statistics.median(times) for name, times in seconds.items()}


def launch(module: str, ranks: int, arguments: Sequence[str]) -> list[dict[str, Any]]:
    """Run ``module`` with ``arguments`` and ``--inside FILE`` on so many ranks of this host; return its figures."""
    own = Path(sys.executable).parent / "mpirun"
    launcher = str(own) if own.exists() else shutil.which("mpirun")
    if launcher is None:
        sys.exit("no mpirun; pip install 'distopt[mpi]'")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        argv = [launcher, "--oversubscribe", "-n", str(ranks), sys.executable, "-m", module]
        argv += ["--inside", str(file), *arguments]
        subprocess.run(argv, check=True, timeout=1800, env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=ROOT)
        figures: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    return figures


def about() -> str:
    """Return what this runs on, for the head of a report."""
    peer = f"PyTorch {torch.__version__}" if torch is not None else "no PyTorch here, so without its figures"
    return f"{threads.available_processors()} processors; load {os.getloadavg()[0]:.1f}; {peer}"
