"""What it costs a step that a lost rank can be survived: ``python -m benchmarks.survival``.

Aggregate-and-apply of Adam on float32, two ranks of this host, one replica each, gradients at hand; with and without,
taking turns in the same job, as in ``benchmarks/ranks.py``. With placement ``replica`` every rank has everything, so
survival costs an apply call nothing, and what differs is noise; it is there to show that. With ``sharded`` an owner
updates its spans one after another and saves each before. ``in place``: the gradients lie where their owners read them,
and are not copied first. The last column is how many times as long a step takes.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import numpy as np

from benchmarks import ranks
from benchmarks.checks import NO_CHECKS
from benchmarks.ranks import Ranks, medians_ms, ratio
from distopt.comm.communicator import Communicator
from distopt.comm.mpi import MpiCommunicator
from distopt.distribute import MultiWorkerMirroredStrategy
from distopt.keras.optimizers import Adam
from distopt.variable import Variable

SHAPES: dict[str, list[tuple[int, ...]]] = {
    "1,000 x 100": [(100,)] * 1000,
    "MLP, 5.8e6": [(784, 2048), (2048,), (2048, 2048), (2048,), (2048, 10), (10,)],
    "25 x 1e6": [(1_000_000,)] * 25,
}


def step_of(
    placement: str, communicator: Communicator, shapes: list[tuple[int, ...]], *, in_place: bool
) -> Callable[[], None]:
    """Return a step that aggregates gradients of ``shapes`` and applies them."""
    strategy = MultiWorkerMirroredStrategy(placement=placement, communicator=communicator)
    rng = np.random.default_rng(communicator.rank)
    variables = [Variable(np.zeros(shape, np.float32)) for shape in shapes]
    gradients = [rng.standard_normal(shape, np.float32) for shape in shapes]
    optimizer = Adam(1e-3)
    if in_place:
        places = strategy.extended.gradient_arrays(optimizer, variables)
        for place, gradient in zip(places, gradients, strict=True):
            place[...] = gradient
        gradients = places
    strategy.extended.checks = NO_CHECKS  # the same gradients are applied again and again

    def apply() -> None:
        optimizer.apply_gradients(zip(gradients, variables, strict=True))

    return lambda: strategy.run(apply)


def inside(rounds: int, figures_file: str) -> None:
    """Run one rank."""
    job = Ranks(rounds)
    communicators = {
        "without": MpiCommunicator(timeout_s=120.0),
        "with": MpiCommunicator(timeout_s=120.0, survives_losses=True),
    }
    job.say(f"{'':<14}{'placement':<19}{'without':>10}{'with':>10}   with / without")
    for name, shapes in SHAPES.items():
        for placement, in_place in (("replica", False), ("sharded", False), ("sharded", True)):
            contenders = {
                which: step_of(placement, communicator, shapes, in_place=in_place)
                for which, communicator in communicators.items()
            }
            title = f"{placement}, in place" if in_place else placement
            seconds = job.seconds(contenders)
            ms = medians_ms(seconds)
            factor = ratio(seconds, "with", "without")
            spread = sorted(t / o for t, o in zip(seconds["with"], seconds["without"], strict=True))
            job.say(
                f"{name:<14}{title:<19}{ms['without']:>7.2f} ms{ms['with']:>7.2f} ms   {factor:.3f} "
                f"(rounds {spread[0]:.2f} to {spread[-1]:.2f})"
            )
            job.figures.append({"shapes": name, "placement": title, "ratio": statistics.median(spread), **ms})
    for communicator in communicators.values():
        communicator.finish()
    job.finish(figures_file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--inside", metavar="FILE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        inside(options.rounds, options.inside)
        return
    print(ranks.about(), flush=True)
    ranks.launch("benchmarks.survival", options.ranks, ["--rounds", str(options.rounds)])


if __name__ == "__main__":
    main()
