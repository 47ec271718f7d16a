"""What the canonical order of additions costs: ``python -m benchmarks.canonical``.

A sum over replicas has one order here (:mod:`distopt.canonical_sum`), so that its bits do not depend on who adds what;
a norm has one, too (:mod:`distopt.norms`). Each is compared with the plain order that one would write if nobody asked
for the same bits. The contenders take turns, as in ``benchmarks/update.py``; times are medians, ratios medians of the
rounds' ratios: below 1 the canonical order is slower. float32, one thread.

1. The contributions of K replicas are added and Adam is run, in one loop: along the tree, and left to right. ``two
   passes``: first the canonical sum (:func:`distopt.canonical_sum.add_nodes`), then Adam. ``of roofline``: K + 6 arrays
   move, over the bandwidth of a triad.
2. The sum alone: ``add_nodes``, and ``np.add`` of one array after another into a first.
3. The sum of squares of an array: :func:`distopt.norms.block_sums` compiled, and ``np.dot(x, x)``, as BLAS adds.
"""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.update import alternate, ratio, set_threads, triad, values
from distopt.arena import aligned_zeros
from distopt.canonical_sum import Node, SumTree, add_nodes, additions
from distopt.norms import add_sums
from distopt.optimizers import get_engine
from distopt.optimizers.rules import ADAM
from distopt.optimizers.terms import Source
from distopt.types import Array

FLOAT32 = np.dtype(np.float32)
REPLICAS = (2, 3, 4, 5, 8, 16)


def left_to_right(terms: int) -> Any:
    """Return the additions of ``((0 + 1) + 2) + ...``."""
    return functools.reduce(lambda left, right: (left, right), range(terms))


def one_loop(order: Any, arrays: Sequence[Array], terms: Sequence[Array]) -> Callable[[], Any]:
    """Return what adds up ``terms`` in ``order`` and runs Adam on variable and slots, in one loop."""
    kernel: Any = get_engine("compiled").kernel(ADAM, FLOAT32, FLOAT32, Source(order))
    scalars = [np.float32(1e-3)] * len(ADAM.scalars)
    return lambda: kernel(*arrays, *terms, *scalars)


def two_passes(tree: SumTree, arrays: Sequence[Array], terms: Sequence[Array]) -> Callable[[], Any]:
    """Return what adds up ``terms`` into memory, then runs Adam."""
    out = aligned_zeros(len(terms[0]), FLOAT32)
    update = one_loop(0, arrays, [out])
    add = canonical_sum(tree, terms, out)
    return lambda: (add(), update())


def canonical_sum(tree: SumTree, terms: Sequence[Array], out: Array) -> Callable[[], Any]:
    """Return what adds up ``terms`` along the tree."""
    sums = {Node(replica, replica + 1): term for replica, term in enumerate(terms)}
    return lambda: add_nodes(tree, sums, out=out)


def plain_sum(terms: Sequence[Array], out: Array) -> Callable[[], Any]:
    """Return what adds up ``terms`` one after another."""

    def add() -> None:
        np.add(terms[0], terms[1], out=out)
        for term in terms[2:]:
            np.add(out, term, out=out)

    return add


def sums(size: int, rounds: int) -> None:
    """Print the first two comparisons."""
    print(f"\n{size:.1e} elements: ms, and how much faster than in the other order")
    print(
        f"{'replicas':>9} {'one loop':>9} {'of plain':>9} {'of two passes':>14} {'of roofline':>12} "
        f"{'sum alone':>10} {'of plain':>9}"
    )
    arrays = [values(size, FLOAT32, seed) for seed in range(3)]
    arrays[2][...] = 1
    out = aligned_zeros(size, FLOAT32)
    roof = triad(4 * size)
    all_terms = [values(size, FLOAT32, seed) for seed in range(max(REPLICAS))]
    for replicas in REPLICAS:
        tree, terms = SumTree(replicas), all_terms[:replicas]
        canonical = additions(tree, [Node(replica, replica + 1) for replica in range(replicas)])
        seconds = alternate(
            {
                "canonical": one_loop(canonical, arrays, terms),
                "plain": one_loop(left_to_right(replicas), arrays, terms),
                "two passes": two_passes(tree, arrays, terms),
                "sum": canonical_sum(tree, terms, out),
                "plain sum": plain_sum(terms, out),
                "triad": roof,
            },
            rounds,
        )
        moved = (replicas + 6) / 4
        share = statistics.median(
            moved * t / own for t, own in zip(seconds["triad"], seconds["canonical"], strict=True)
        )
        print(
            f"{replicas:>9} {statistics.median(seconds['canonical']) * 1e3:>9.3f} "
            f"{ratio(seconds, 'plain', 'canonical'):>9} {ratio(seconds, 'two passes', 'canonical'):>14} {share:>12.2f} "
            f"{statistics.median(seconds['sum']) * 1e3:>10.3f} {ratio(seconds, 'plain sum', 'sum'):>9}",
            flush=True,
        )


def squares(sizes: Sequence[int], rounds: int) -> None:
    """Print the third comparison."""
    print(f"\nsum of squares: ms, and how much faster than np.dot\n{'elements':>9} {'ms':>9} {'of np.dot':>10}")
    engine = get_engine("compiled")
    for size in sizes:
        array = values(size, FLOAT32, 0)
        seconds = alternate(
            {
                "canonical": lambda array=array: add_sums(engine.block_sums(array)),
                "dot": lambda array=array: np.dot(array, array),
            },
            rounds,
        )
        own = statistics.median(seconds["canonical"]) * 1e3
        print(f"{size:>9.1e} {own:>9.3f} {ratio(seconds, 'dot', 'canonical'):>10}", flush=True)


def main() -> None:
    """Print all comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=float, nargs="+", default=[10**5, 10**7])
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    set_threads(1)
    sizes = [int(size) for size in options.sizes]
    for size in sizes:
        sums(size, options.rounds)
    squares(sizes, options.rounds)


if __name__ == "__main__":
    main()
