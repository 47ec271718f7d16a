"""What it costs to aggregate gradients and apply them, on one host: ``python -m benchmarks.aggregate_apply``.

Every rank of one MPI job has a gradient of the same variables; a step ends when all ranks have the new variables. The
contenders take turns in blocks of steps within that job, so that a drifting clock or a busy neighbour hits all; a
figure is the median over rounds, a ratio the median of the rounds' ratios. float32, Adam, one thread a rank.

``sharded``       ours, placement ``sharded``; the gradient is written where the owners read it
``sharded, copy`` the same with gradients that lie elsewhere, so that they are copied first
``replica``       ours, placement ``replica``
``gloo``          PyTorch: ``all_reduce`` over gloo, then its fused Adam; left out where there is no PyTorch
``mpi4py``        ``Allreduce(IN_PLACE)``, then our compiled update
``one by one``    the same with an ``Allreduce`` for each variable

``roofline``: what must move, over the bandwidth of a triad that all ranks run at the same time in the same rounds, as
in ``benchmarks/update.py``. With W ranks each element's W contributions are read once, and variable and slots read and
written once on the host: W + 6 arrays for Adam.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

import distopt as tf
from benchmarks.update import triad
from distopt import threads
from distopt.arena import aligned_zeros
from distopt.comm.mpi import MpiCommunicator, load_mpi
from distopt.distribute import MultiWorkerMirroredStrategy
from distopt.types import Array

try:
    import torch
    import torch.distributed
except ImportError:
    torch = None

SIZES = (10**4, 10**5, 10**6, 10**7, 25 * 10**6)
BLOCK_S = 0.05
"""Seconds of steps of one contender before it is the next one's turn."""
SLOTS = 2
Step = Callable[[], None]


class Bench:
    """One rank of the job."""

    def __init__(self, rounds: int) -> None:
        self.comm = MpiCommunicator(timeout_s=120.0)
        self.mpi = load_mpi()
        self.world = self.mpi.COMM_WORLD
        self.rounds = rounds
        threads.set_num_threads(1)
        self.has_gloo = torch is not None
        if self.has_gloo:
            torch.set_num_threads(1)
            port = None
            if self.comm.rank == 0:
                with socket.create_server(("127.0.0.1", 0)) as free:
                    port = free.getsockname()[1]
            port = int(self.comm.broadcast_bytes(b"%d" % port if port else None))
            torch.distributed.init_process_group(
                "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=self.comm.rank, world_size=self.comm.size
            )

    def seconds(self, contenders: dict[str, Step]) -> dict[str, list[float]]:
        """Return the seconds of a step of each contender, by round; those of the slowest rank."""
        calls = {}
        for name, step in contenders.items():
            for _ in range(3):
                step()
            calls[name] = max(1, min(1000, int(BLOCK_S / self._timed(step, 2))))
        found: dict[str, list[float]] = {name: [] for name in contenders}
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

    def ours(self, shapes: Sequence[int], placement: str, *, in_place: bool = False) -> Step:
        """Return a step through ``apply_gradients``; one replica a rank."""
        strategy = MultiWorkerMirroredStrategy(placement=placement, communicator=self.comm)
        with strategy.scope():
            variables = [tf.Variable(np.full(size, 0.5, np.float32)) for size in shapes]
        optimizer = tf.keras.optimizers.Adam(1e-3)
        if in_place:
            gradients = strategy.extended.gradient_arrays(optimizer, variables)
        else:
            gradients = [aligned_zeros(size, np.dtype(np.float32)) for size in shapes]
        for gradient in gradients:
            gradient[...] = 0.01 * (1 + self.comm.rank)
        pairs = list(zip(map(tf.Tensor, gradients), variables, strict=True))
        return lambda: strategy.run(lambda: optimizer.apply_gradients(pairs)) and None

    def mpi4py(self, shapes: Sequence[int], *, one_by_one: bool = False) -> Step:
        """Return a step that adds by hand: one ``Allreduce`` of all gradients, or one for each variable."""
        variables = [tf.Variable(np.full(size, 0.5, np.float32)) for size in shapes]
        optimizer = tf.keras.optimizers.Adam(1e-3)
        flat = aligned_zeros(sum(shapes), np.dtype(np.float32))  # zeros: sums of sums would overflow in time
        starts = np.cumsum([0, *shapes])
        gradients = [flat[start : start + size] for start, size in zip(starts[:-1], shapes, strict=True)]
        pairs = list(zip(map(tf.Tensor, gradients), variables, strict=True))
        sent: list[Array] = gradients if one_by_one else [flat]

        def step() -> None:
            for array in sent:
                self.world.Allreduce(self.mpi.IN_PLACE, array)
            optimizer.apply_gradients(pairs)

        return step

    def gloo(self, size: int) -> Step:
        """Return a step of PyTorch's."""
        parameter = torch.nn.Parameter(torch.full((size,), 0.5))
        parameter.grad = torch.zeros(size)
        optimizer = torch.optim.Adam([parameter], lr=1e-3, fused=True)

        def step() -> None:
            torch.distributed.all_reduce(parameter.grad)
            optimizer.step()

        return step

    def say(self, line: str) -> None:
        """Print a line, once."""
        if self.comm.rank == 0:
            print(line, flush=True)


def ratio(seconds: dict[str, list[float]], other: str, ours: str) -> str:
    """Return how many times as long ``other`` takes, as the median over rounds; empty where it did not run."""
    if other not in seconds:
        return "-"
    return f"{statistics.median(t / o for t, o in zip(seconds[other], seconds[ours], strict=True)):.2f}"


def one_variable(bench: Bench, sizes: Sequence[int]) -> None:
    """Print what a step on one variable of each size costs."""
    ranks = bench.comm.size
    bench.say(f"\none variable, {ranks} ranks: ms a step, then how many times as long as `sharded` the others take")
    bench.say(
        f"{'elements':>10} {'sharded':>9} {'gloo':>7} {'mpi4py':>7} {'replica':>8} {'copy':>6} {'of roofline':>12} "
        f"{'copy, of roofline':>18} {'gloo/replica':>13}"
    )
    for size in sizes:
        contenders = {
            "sharded": bench.ours([size], "sharded", in_place=True),
            "copy": bench.ours([size], "sharded"),
            "replica": bench.ours([size], "replica"),
            "mpi4py": bench.mpi4py([size]),
            "triad": triad(4 * size),
        }
        if bench.has_gloo:
            contenders["gloo"] = bench.gloo(size)
        seconds = bench.seconds(contenders)
        # The triad moves 4 arrays on every rank, a step 2 + 2 * SLOTS and one for each rank, on the host.
        moved = (2 + 2 * SLOTS + ranks) / (4 * ranks)
        shares = [
            statistics.median(moved * t / s for t, s in zip(seconds["triad"], seconds[name], strict=True))
            for name in ("sharded", "copy")
        ]
        bench.say(
            f"{size:>10,} {1e3 * statistics.median(seconds['sharded']):>9.3f} {ratio(seconds, 'gloo', 'sharded'):>7} "
            f"{ratio(seconds, 'mpi4py', 'sharded'):>7} {ratio(seconds, 'replica', 'sharded'):>8} "
            f"{ratio(seconds, 'copy', 'sharded'):>6} {shares[0]:>12.2f} {shares[1]:>18.2f} "
            f"{ratio(seconds, 'gloo', 'replica'):>13}"
        )


def many_variables(bench: Bench, number: int, size: int) -> None:
    """Print what a step on many small variables costs."""
    shapes = [size] * number
    seconds = bench.seconds(
        {
            "sharded": bench.ours(shapes, "sharded", in_place=True),
            "copy": bench.ours(shapes, "sharded"),
            "replica": bench.ours(shapes, "replica"),
            "mpi4py": bench.mpi4py(shapes),
            "one by one": bench.mpi4py(shapes, one_by_one=True),
        }
    )
    bench.say(f"\n{number:,} variables of {size} elements, {bench.comm.size} ranks: ms a step")
    for name, times in seconds.items():
        bench.say(f"{name:>12} {1e3 * statistics.median(times):>9.3f}   {ratio(seconds, name, 'sharded')} of sharded")


def exchanges(bench: Bench) -> None:
    """Print what one exchange between the ranks of the host costs."""
    group, label = bench.comm.host_group, bytes(24)
    seconds = bench.seconds({"exchange": lambda: group.exchange("a benchmark", label) and None})
    bench.say(f"one exchange of {group.size} ranks: {1e6 * statistics.median(seconds['exchange']):.1f} us")


def inside(options: argparse.Namespace) -> None:
    """Run as one rank."""
    bench = Bench(options.rounds)
    exchanges(bench)
    if "1" in options.parts:
        one_variable(bench, [int(size) for size in options.sizes])
    if "2" in options.parts:
        many_variables(bench, 1000, 100)
    bench.comm.finish()


def main() -> None:
    """Print all comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2])
    parser.add_argument("--sizes", type=float, nargs="+", default=SIZES, help="elements of one variable")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--parts", default="12", help="1: one variable; 2: many small ones")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        inside(options)
        return
    peer = f"PyTorch {torch.__version__}" if torch is not None else "no PyTorch here, so no gloo"
    print(f"{platform.processor() or platform.machine()}, {threads.available_processors()} processors; {peer}")
    own = Path(sys.executable).parent / "mpirun"
    launcher = str(own) if own.exists() else shutil.which("mpirun")
    if launcher is None:
        sys.exit("no mpirun; pip install 'distopt[mpi]'")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for ranks in options.ranks:
        argv = [launcher, "--oversubscribe", "-n", str(ranks), sys.executable, "-m", "benchmarks.aggregate_apply"]
        argv += ["--inside", "--rounds", str(options.rounds), "--parts", options.parts, "--sizes"]
        argv += [str(size) for size in options.sizes]
        subprocess.run(argv, check=True, timeout=1200, env=environment)


if __name__ == "__main__":
    main()
