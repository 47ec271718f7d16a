"""What a step costs between hosts, against what MPI takes for the bytes alone: ``python -m benchmarks.hosts``.

Hosts are emulated on this machine (:mod:`benchmarks.emulated_hosts`), which takes root; all of them share its cores and
its memory, so ratios mean something and absolute times little. In one job the contenders take turns in blocks of steps;
a figure is the median over blocks, a ratio the median of the blocks' ratios. float32, one gradient a rank.

``mpi``       ``Reduce_scatter`` and ``Allgather`` of the same bytes, with mpi4py's buffers, and no update
``mpi block`` ``Reduce_scatter_block`` and ``Allgather``; ratios are to the faster of the two
``sharded``   ours, placement ``sharded``: a whole step of ``apply_gradients`` with plain SGD
``adam``      the same with Adam
``all-reduce`` ours, placement ``replica``: the aggregate of the gradients alone, without the update
``replica``   a whole step of SGD with placement ``replica``

``bytes``: sent by the host that sends most, a step, over ``2 (H - 1) / H`` times the bytes of the variables; from our
own counters, without what ranks of one host read of each other, and, ``wire``, from those of its network card, which
count headers and what MPI itself sends.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import distopt as tf
from benchmarks import plots
from benchmarks.emulated_hosts import Link, emulated_hosts, why_not
from distopt import threads
from distopt.comm.mpi import MpiCommunicator
from distopt.comm.mpi_start import load_mpi
from distopt.distribute import MultiWorkerMirroredStrategy

ROOT = Path(__file__).resolve().parent.parent
LINKS = {"full": None, "1gbit": Link(1e9, 1.0)}
SIZES = (10**6, 10**7)
SLOTS = ("1,1", "2,2", "1,1,1")
BLOCKS = 5
BLOCK_S = 0.3


def contenders(size: int, world: Any, mpi: Any, comm: MpiCommunicator) -> dict[str, tuple[Callable[[], None], Any]]:
    """Return one step of each, and the layout of its variables."""
    rng = np.random.default_rng(comm.rank)
    gradient = rng.standard_normal(size, np.float32)
    padded = -(-size // comm.size) * comm.size
    whole, part = np.zeros(padded, np.float32), np.empty(padded // comm.size, np.float32)
    whole[:size] = gradient

    def raw() -> None:
        world.Reduce_scatter(whole, part, [len(part)] * comm.size, mpi.SUM)
        world.Allgather(part, whole)

    def raw_block() -> None:
        world.Reduce_scatter_block(whole, part, mpi.SUM)
        world.Allgather(part, whole)

    def step(placement: str, optimizer: Any) -> tuple[Callable[[], None], Any]:
        strategy = MultiWorkerMirroredStrategy(communicator=comm, placement=placement)
        with strategy.scope():
            variable = tf.Variable(np.zeros(size, np.float32))
        (array,) = strategy.extended.gradient_arrays(optimizer, [variable])
        array[...] = gradient

        def replica() -> None:
            optimizer.apply_gradients([(array, variable)])

        return lambda: strategy.run(replica) and None, optimizer.layout([variable])

    class Stop(tf.keras.optimizers.SGD):  # type: ignore[misc]
        """Aggregates, and makes no update."""

        def finish(self, layout: Any, flat: Any, hypers: Any) -> None:  # noqa: ARG002
            self.advance(hypers)

        def takes_terms(self, layout: Any) -> bool:  # noqa: ARG002
            return False

    return {
        "mpi": (raw, None),
        "mpi block": (raw_block, None),
        "sharded": step("sharded", tf.keras.optimizers.SGD(0.01)),
        "adam": step("sharded", tf.keras.optimizers.Adam(0.01)),
        "all-reduce": step("replica", Stop(0.01)),
        "replica": step("replica", tf.keras.optimizers.SGD(0.01)),
    }


def card_bytes() -> int:
    """Return what the network card of this host has sent."""
    return int(Path("/sys/class/net/eth0/statistics/tx_bytes").read_text())


def work(size: int) -> None:
    """One rank of the job; rank 0 prints the figures as JSON."""
    mpi = load_mpi()
    world = mpi.COMM_WORLD
    comm = MpiCommunicator(timeout_s=120.0)
    threads.set_num_threads(1)
    steps = contenders(size, world, mpi, comm)
    hosts = comm.host_group.hosts
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    ours: dict[str, list[float]] = {name: [] for name in steps}
    wire: dict[str, list[float]] = {name: [] for name in steps}
    counts = {}
    for name, (step, _) in steps.items():
        step()
        world.Barrier()
        started = time.perf_counter()
        step()
        step()
        counts[name] = world.bcast(max(2, min(100, int(2 * BLOCK_S / (time.perf_counter() - started)))))
    for _ in range(BLOCKS):
        for name, (step, layout) in steps.items():
            world.Barrier()
            sent, card = comm.traffic.bytes_sent, card_bytes()
            started = time.perf_counter()
            for _ in range(counts[name]):
                step()
            world.Barrier()
            taken = (time.perf_counter() - started) / counts[name]
            kept = None if layout is None else layout.kept  # None: so few that they are sent whole
            local = 0 if kept is None else kept.paths.num_bytes_told
            told = world.allgather((comm.traffic.bytes_sent - sent) / counts[name] - local)
            cards = world.allgather((card_bytes() - card) / counts[name])
            seconds[name].append(taken)
            ours[name].append(max(sum(told[rank] for rank in ranks) for ranks in hosts))
            wire[name].append(max(cards))
    if comm.rank == 0:
        bound = 2 * (len(hosts) - 1) / len(hosts) * 4 * size
        raw = list(map(min, seconds["mpi"], seconds["mpi block"]))
        rows = {
            name: {
                "ms": statistics.median(seconds[name]) * 1e3,
                "ratio": statistics.median(a / b for a, b in zip(seconds[name], raw, strict=True)),
                "bytes": statistics.median(ours[name]) / bound,
                "wire": statistics.median(wire[name]) / bound,
            }
            for name in steps
        }
        sys.stdout.write(json.dumps(rows) + "\n")
    comm.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print a table for each number of hosts and kind of link."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--work", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--sizes", type=int, nargs="*", default=list(SIZES))
    parser.add_argument("--slots", nargs="*", default=list(SLOTS), help="ranks of each host, such as 2,2")
    parser.add_argument("--links", nargs="*", choices=list(LINKS), default=list(LINKS))
    plots.add_option(parser)
    options = parser.parse_args(argv)
    if options.work is not None:
        work(options.work)
        return 0
    if trouble := why_not():
        sys.stderr.write(f"{trouble}\n")
        return 1
    plots.check(options.plot)
    measured: dict[tuple[str, str, int], dict[str, Any]] = {}
    environment = {
        **os.environ,
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    for name, slots in itertools.product(options.links, options.slots):
        counts = [int(count) for count in slots.split(",")]
        with emulated_hosts(len(counts), LINKS[name]) as hosts:
            for size in options.sizes:
                command = [sys.executable, "-m", "benchmarks.hosts", "--work", str(size)]
                found = subprocess.run(
                    hosts.mpirun(counts, command),
                    env=environment,
                    cwd=ROOT,
                    capture_output=True,
                    text=True,
                    timeout=600,
                    check=False,
                )
                if found.returncode:
                    sys.stderr.write(found.stdout + found.stderr)
                    return 1
                sys.stdout.write(f"\n{LINKS[name] or 'full speed'}, ranks of hosts {slots}, {size:,} parameters\n")
                rows = json.loads(found.stdout.splitlines()[-1])
                sys.stdout.write(f"{'':12}{'ms':>9}{'of mpi':>9}{'bytes':>9}{'wire':>9}\n")
                for contender, row in rows.items():
                    sys.stdout.write(
                        f"{contender:12}{row['ms']:9.1f}{row['ratio']:9.2f}{row['bytes']:9.3f}{row['wire']:9.3f}\n"
                    )
                sys.stdout.flush()
                measured[name, slots, size] = rows
    if options.plot:
        draw(options.plot, measured)
    return 0


def draw(folder: Path, measured: dict[tuple[str, str, int], dict[str, Any]]) -> None:
    """Write a plot for each link and size: times of all contenders, by the ranks of the hosts."""
    for link, size in sorted({(link, size) for link, _, size in measured}):
        found = {slots: rows for (own, slots, own_size), rows in measured.items() if (own, own_size) == (link, size)}
        heights = {name: [rows[name]["ms"] for rows in found.values()] for name in next(iter(found.values()))}
        title = f"A step between hosts, {LINKS[link] or 'full speed'}, {size:,} parameters, by ranks of each host"
        plots.bars(folder / f"hosts_{link}_{size}.png", title, "ms", list(found), heights)


if __name__ == "__main__":
    sys.exit(main())
