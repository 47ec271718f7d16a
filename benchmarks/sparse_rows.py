"""What a step costs on an embedding of which few rows have a gradient: ``python -m benchmarks.sparse_rows``.

Every rank of an MPI job has a row-sparse gradient of one float32 table, of other rows than the others', and of others
in each step: ``TURNS`` draws take turns, whose rows together do not fit a cache (``--turns 1``: the same rows in every
step, as where few rows are hot). The values lie in one array, which is in the cache as far as it fits, as what backward
has just written. A step ends when all ranks have the new rows. The contenders take turns in blocks of steps within that
job; a figure is the median over rounds, a ratio the median of the rounds' ratios; ``cpu`` is the processor time of a
rank, which other programs do not lengthen. One thread a rank.

``sharded``    ours, placement ``sharded``, SGD (or Adagrad, which has a slot), rows written where others read them
``replica``    ours, placement ``replica``, likewise
``sharded copied``, ``replica copied``  the same with rows that lie elsewhere, as a tape would make them
``dense``      ours, placement ``sharded``: the same gradient as an array of the whole table, written where owners read
``dense copied``  the same with an array that lies elsewhere, as a tape would make it
``dense replica``  as ``dense``, with placement ``replica``
``mpi4py``     ``Allgatherv`` of indices and rows with mpi4py's buffers, then ``np.add.at`` on the table

``moved``: what the process, or between hosts the host, that sends most sends in a step, over the bytes of the union of
all ranks' rows, an index of 8 bytes with each. On one host that is what others read of its memory; with several
(:mod:`benchmarks.emulated_hosts`, as root) what ranks of one host read of each other is left out.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import distopt as tf
from benchmarks.aggregate_apply import Bench, Step
from benchmarks.emulated_hosts import emulated_hosts, why_not
from distopt.distribute import MultiWorkerMirroredStrategy

ROOT = Path(__file__).resolve().parent.parent
OPTIMIZERS = {"SGD": lambda: tf.keras.optimizers.SGD(1e-3), "Adagrad": lambda: tf.keras.optimizers.Adagrad(1e-3)}


TURNS = 16


class Rows:
    """What one rank has: the values of ``share`` of the rows of a table, and which rows these are in each turn."""

    def __init__(self, bench: Bench, num_rows: int, width: int, share: float, turns: int) -> None:
        rng = np.random.default_rng(bench.comm.rank)
        self.shape = (num_rows, width)
        self.count = max(1, round(share * num_rows))
        self.turns = [rng.choice(num_rows, self.count, replace=False) for _ in range(turns)]
        self.values = rng.standard_normal((self.count, width), np.float32)

    def union_bytes(self, bench: Bench) -> int:
        """Return the bytes of the rows that some rank has in the first turn."""
        there = np.zeros(self.shape[0], np.uint8)
        there[self.turns[0]] = 1
        everywhere = np.empty_like(there)
        bench.world.Allreduce(there, everywhere, op=bench.mpi.MAX)
        return int(everywhere.sum()) * (8 + 4 * self.shape[1])


class Ours:
    """A step through ``apply_gradients``."""

    def __init__(
        self, bench: Bench, rows: Rows, optimizer: str, placement: str, *, dense: str = "", copied: bool = False
    ) -> None:
        self.strategy = MultiWorkerMirroredStrategy(placement=placement, communicator=bench.comm)
        with self.strategy.scope():
            variable = tf.Variable(np.zeros(rows.shape, np.float32))
        self._optimizer = OPTIMIZERS[optimizer]()
        values = rows.values
        if not dense and not copied:
            values = self.strategy.extended.gradient_rows(variable, rows.count)
            values[...] = rows.values
        gradients: list[Any] = [tf.IndexedSlices(values, indices, rows.shape) for indices in rows.turns]
        if dense:
            array = np.zeros(rows.shape, np.float32)
            if dense == "in place":
                (array,) = self.strategy.extended.gradient_arrays(self._optimizer, [variable])
            array[rows.turns[0]] = rows.values
            gradients = [tf.Tensor(array)]
        self._turns = [[(gradient, variable)] for gradient in gradients]
        self._pairs = itertools.cycle(self._turns)

    def __call__(self) -> None:
        self.strategy.run(self._apply)

    def _apply(self) -> None:
        self._optimizer.apply_gradients(next(self._pairs))

    def moved(self, bench: Bench) -> int:
        """Return what the host, or on one host the process, that sends most sends in a step of the first turn."""
        self._pairs = itertools.cycle(self._turns)
        comm = bench.comm
        hosts = comm.host_group.hosts
        own_host = comm.host_group.ranks
        exchange, before, sent = comm.exchange, comm.traffic.bytes_sent, 0

        def counted(sends: Any, *args: Any, **kwargs: Any) -> bool:
            nonlocal sent
            sends = list(sends)
            sent += sum(array.nbytes for peer, array in sends if peer not in own_host)
            return exchange(sends, *args, **kwargs)

        comm.exchange = counted  # type: ignore[method-assign]
        self()
        comm.exchange = exchange  # type: ignore[method-assign]
        if len(hosts) == 1:
            return max(bench.world.allgather(comm.traffic.bytes_sent - before))
        told = bench.world.allgather(sent)
        return max(sum(told[rank] for rank in ranks) for ranks in hosts)


def cpu_ms(bench: Bench, step: Step, seconds: float) -> float:
    """Return the processor time of a step, without what other programs take; of the rank that takes most."""
    calls = max(3, min(100, int(0.2 / seconds)))
    started = time.process_time()
    for _ in range(calls):
        step()
    return 1e3 * max(bench.world.allgather((time.process_time() - started) / calls))


def by_hand(bench: Bench, rows: Rows) -> Step:
    """Return a step that brings all rows to all ranks and subtracts them one after another."""
    table = np.zeros(rows.shape, np.float32)
    counts = np.array(bench.world.allgather(rows.count))
    indices = np.empty(counts.sum(), np.int64)
    values = np.empty((counts.sum(), rows.shape[1]), np.float32)
    turns = itertools.cycle(rows.turns)

    def step() -> None:
        bench.world.Allgatherv(next(turns), [indices, counts])
        bench.world.Allgatherv(rows.values, [values, counts * rows.shape[1]])
        np.add.at(table, indices, np.float32(-1e-3) * values)

    return step


def compared(bench: Bench, rows: Rows, optimizers: Sequence[str]) -> dict[str, Any]:
    """Return the figures of one table."""
    union = rows.union_bytes(bench)
    ours = {
        f"{name}, {placement}{' copied' * copied}": Ours(bench, rows, name, placement, copied=copied)
        for name in optimizers
        for copied in (False, True)
        for placement in ("sharded", "replica")
    }
    steps: dict[str, Step] = dict(ours)
    steps["mpi4py"] = by_hand(bench, rows)
    for name in optimizers:
        steps[f"{name}, dense"] = Ours(bench, rows, name, "sharded", dense="in place")
        steps[f"{name}, dense copied"] = Ours(bench, rows, name, "sharded", dense="copied")
        steps[f"{name}, dense replica"] = Ours(bench, rows, name, "replica", dense="in place")
    seconds = bench.seconds(steps)
    figures = {}
    for name, times in seconds.items():
        own = name.partition(",")[0]
        dense = seconds[f"{own if own in optimizers else optimizers[0]}, dense"]
        figures[name] = {
            "ms": 1e3 * statistics.median(times),
            "cpu": cpu_ms(bench, steps[name], min(times)),
            "dense": statistics.median(d / t for d, t in zip(dense, times, strict=True)),
            "mpi4py": statistics.median(m / t for m, t in zip(seconds["mpi4py"], times, strict=True)),
            "moved": ours[name].moved(bench) / union if name in ours else None,
        }
    return figures


def inside(options: argparse.Namespace) -> None:
    """Run as one rank; rank 0 prints the figures as JSON."""
    bench = Bench(options.rounds)
    rows = Rows(bench, int(options.rows), options.width, options.share, options.turns)
    figures = compared(bench, rows, options.optimizers)
    bench.say(json.dumps(figures))
    bench.comm.finish()


def show(figures: dict[str, Any]) -> None:
    """Print what one job found."""
    print(f"{'':>24} {'ms':>9} {'cpu, ms':>9} {'dense takes':>12} {'mpi4py takes':>13} {'moved':>7}")
    for name, row in figures.items():
        moved = "" if row["moved"] is None else f"{row['moved']:.2f}"
        ratios = f"{row['dense']:>12.2f} {row['mpi4py']:>13.2f}"
        print(f"{name:>24} {row['ms']:>9.2f} {row['cpu']:>9.2f} {ratios} {moved:>7}")
    sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Print all comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=float, default=1e6)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--share", type=float, default=0.01, help="of the rows, on each rank")
    parser.add_argument("--turns", type=int, default=TURNS, help="draws of rows, in turns")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--optimizers", nargs="*", choices=list(OPTIMIZERS), default=list(OPTIMIZERS))
    parser.add_argument("--slots", nargs="*", default=["2", "1,1"], help="ranks of each host, such as 2,2")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.inside:
        inside(options)
        return 0
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    own = Path(sys.executable).parent / "mpirun"
    launcher = str(own) if own.exists() else shutil.which("mpirun")
    if launcher is None:
        sys.exit("no mpirun; pip install 'distopt[mpi]'")
    for slots in options.slots:
        counts = [int(count) for count in slots.split(",")]
        command = [sys.executable, "-m", "benchmarks.sparse_rows", "--inside"]
        for name in ("rows", "width", "share", "turns", "rounds"):
            command += [f"--{name}", str(getattr(options, name))]
        command += ["--optimizers", *options.optimizers]
        print(
            f"\n{options.rows:,.0f} x {options.width}, {options.share:.2%} of the rows a rank, ranks of hosts {slots}"
        )
        if len(counts) == 1:
            found = _run([launcher, "--oversubscribe", "-n", slots, *command], environment)
        elif trouble := why_not():
            print(trouble)
            continue
        else:
            with emulated_hosts(len(counts)) as hosts:
                found = _run(hosts.mpirun(counts, command), environment)
        show(json.loads(found.splitlines()[-1]))
    return 0


def _run(command: Sequence[str], environment: dict[str, str]) -> str:
    found = subprocess.run(
        command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=1200, check=True
    )
    return found.stdout


if __name__ == "__main__":
    sys.exit(main())
