"""What it costs to aggregate gradients and apply them, on one host: ``python -m benchmarks.aggregate_apply``.

Every rank of one MPI job has a gradient of the same variables; a step ends when all ranks have the new variables. The
contenders take turns as :mod:`benchmarks.ranks` says. float32, Adam, one thread a rank.

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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import distopt as tf
from benchmarks import plots
from benchmarks.ranks import Ranks, Step, about, column, launch, medians_ms, ratio, torch
from benchmarks.update import triad
from distopt.arena import aligned_zeros
from distopt.distribute import MultiWorkerMirroredStrategy
from distopt.types import Array

SIZES = (10**4, 10**5, 10**6, 10**7, 25 * 10**6)
SLOTS = 2
OTHERS = ("copy", "replica", "mpi4py", "gloo")


class Bench(Ranks):
    """One rank of the job, and the contenders on it."""

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


def one_variable(bench: Bench, sizes: Sequence[int], only: Sequence[str]) -> None:
    """Print what a step on one variable of each size costs; of ``only`` these beside ours and the triad."""
    ranks = bench.comm.size
    bench.say(f"\none variable, {ranks} ranks: ms a step, then how many times as long as `sharded` the others take")
    bench.say(
        f"{'elements':>10} {'sharded':>9} {'gloo':>7} {'mpi4py':>7} {'replica':>8} {'copy':>6} {'of roofline':>12} "
        f"{'copy, of roofline':>18} {'gloo/replica':>13}"
    )
    for size in sizes:
        makers: dict[str, Callable[[], Step]] = {
            "copy": lambda size=size: bench.ours([size], "sharded"),
            "replica": lambda size=size: bench.ours([size], "replica"),
            "mpi4py": lambda size=size: bench.mpi4py([size]),
        }
        if bench.has_torch:
            makers["gloo"] = lambda size=size: bench.gloo(size)
        contenders = {"sharded": bench.ours([size], "sharded", in_place=True), "triad": triad(4 * size)}
        contenders |= {name: make() for name, make in makers.items() if name in only}
        seconds = bench.seconds(contenders)
        # The triad moves 4 arrays on every rank, a step 2 + 2 * SLOTS and one for each rank, on the host.
        moved = (2 + 2 * SLOTS + ranks) / (4 * ranks)
        shares = [moved * ratio(seconds, "triad", name) for name in ("sharded", "copy")]
        ratios = [ratio(seconds, name, "sharded") for name in ("gloo", "mpi4py", "replica", "copy")]
        figures = [*ratios, *shares, ratio(seconds, "gloo", "replica")]
        row = " ".join(map(column, figures, (7, 7, 8, 6, 12, 18, 13)))
        bench.say(f"{size:>10,} {medians_ms(seconds)['sharded']:>9.3f} {row}")
        bench.figures.append({"kind": "one variable", "ranks": ranks, "elements": size, "seconds": seconds})


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
    bench.figures.append({"kind": "many variables", "ranks": bench.comm.size, "seconds": seconds})
    bench.say(f"\n{number:,} variables of {size} elements, {bench.comm.size} ranks: ms a step")
    for name, ms in medians_ms(seconds).items():
        bench.say(f"{name:>12} {ms:>9.3f}   {ratio(seconds, name, 'sharded'):.2f} of sharded")


def exchanges(bench: Bench) -> None:
    """Print what one exchange between the ranks of the host costs."""
    group, label = bench.comm.host_group, bytes(24)
    seconds = bench.seconds({"exchange": lambda: group.exchange("a benchmark", label) and None})
    bench.say(f"one exchange of {group.size} ranks: {1e3 * medians_ms(seconds)['exchange']:.1f} us")


def inside(options: argparse.Namespace) -> None:
    """Run as one rank."""
    bench = Bench(options.rounds)
    exchanges(bench)
    if "1" in options.parts:
        one_variable(bench, [int(size) for size in options.sizes], options.only)
    if "2" in options.parts:
        many_variables(bench, 1000, 100)
    bench.finish(options.inside)


def draw(folder: Path, figures: Sequence[dict[str, Any]]) -> None:
    """Write the plots: over the elements for each number of ranks, over the ranks for each number of elements."""
    found = [each for each in figures if each["kind"] == "one variable"]
    for fixed, moving in (("ranks", "elements"), ("elements", "ranks")):
        for value in sorted({each[fixed] for each in found}):
            curves: dict[str, dict[float, float]] = {}
            for each in found:
                if each[fixed] == value:
                    for name, ms in medians_ms(each["seconds"]).items():
                        curves.setdefault(name, {})[each[moving]] = ms
            if max(map(len, curves.values())) > 1:
                file = folder / f"aggregate_apply_{moving}_{value}_{fixed}.png"
                title = f"Aggregate and apply, Adam, one variable, {value:,} {fixed}"
                plots.lines(file, title, moving, "ms a step", curves, logarithmic=moving == "elements")
    for each in figures:
        if each["kind"] == "many variables":
            ms = medians_ms(each["seconds"])
            title = f"Aggregate and apply, Adam, 1,000 variables of 100 elements, {each['ranks']} ranks"
            file = folder / f"aggregate_apply_many_{each['ranks']}_ranks.png"
            plots.bars(file, title, "ms a step", list(ms), {"": list(ms.values())})


def main() -> None:
    """Print all comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2])
    parser.add_argument("--sizes", type=float, nargs="+", default=SIZES, help="elements of one variable")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--parts", default="12", help="1: one variable; 2: many small ones")
    parser.add_argument("--only", nargs="*", choices=OTHERS, default=OTHERS, help="of the others; all take 40 P memory")
    plots.add_option(parser)
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        inside(options)
        return
    plots.check(options.plot)
    print(about())
    figures = []
    for ranks in options.ranks:
        arguments = ["--rounds", str(options.rounds), "--parts", options.parts]
        arguments += ["--sizes", *map(str, options.sizes), "--only", *options.only]
        figures += launch("benchmarks.aggregate_apply", ranks, arguments)
    if options.plot:
        draw(options.plot, figures)


if __name__ == "__main__":
    main()
