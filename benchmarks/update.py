"""What an update costs, against PyTorch's fused optimizers: ``python -m benchmarks.update``.

Both sides make whole steps through their public interface (``apply_gradients`` and ``step``) on the same values, in the
same process and with the same number of threads; blocks of calls alternate, so that a drifting clock or a busy
neighbour hits both. A figure is the median over rounds, a ratio the median of the rounds' ratios. PyTorch is optional:
without it, its columns stay empty.

1. One variable of 1e3 to 1e8 elements, in float32, float64, bfloat16 (slots in bfloat16, rounded after every operation,
   as the reference does it) and bfloat16 with float32 slots (an option of ours). ``of roofline`` is the share of the
   bandwidth that a compiled triad, ``a[i] = b[i] + s * c[i]`` with ordinary stores, has on arrays of the same size in
   the same rounds. What must move, in units of one array: a step of a rule with k slots reads variable, gradient and
   slots and writes variable and slots, 3 + 2k; the triad reads two, writes one, and an ordinary store first reads the
   line that it writes to: 4.
2. 300 variables of mixed sizes, 2.5e7 elements together.
3. 10 variables of 100 elements: what a call costs beside its arithmetic.
4. The first use of a rule in a process: compiled anew, and loaded from the directory of kernels.
"""

from __future__ import annotations

import argparse
import gc
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

import distopt as tf
from benchmarks.yogi import Yogi
from distopt import kernels, threads
from distopt.arena import aligned_zeros
from distopt.types import Array

try:
    import torch
except ImportError:
    torch = None

SIZES = (10**3, 10**4, 10**5, 10**6, 10**7, 25 * 10**6, 10**8)
BLOCK_S = 0.02
"""Seconds of calls of one contender before it is the next one's turn."""
MIXED_ELEMENTS = 25 * 10**6


class Rule(NamedTuple):
    """One row: our optimizer, PyTorch's, and how many arrays must move."""

    ours: Callable[..., Any]
    theirs: Callable[..., Any] | None
    foreach: Callable[..., Any] | None
    slots: int

    @property
    def moved(self) -> int:
        """Arrays that a step must move."""
        return 3 + 2 * self.slots


def _rules() -> dict[str, Rule]:
    optimizers: Any = tf.keras.optimizers
    optim: Any = torch and torch.optim
    rules = {
        "SGD, momentum": Rule(
            lambda **more: optimizers.SGD(1e-3, momentum=0.9, **more),
            torch and (lambda p: optim.SGD(p, lr=1e-3, momentum=0.9, fused=True)),
            None,
            1,
        ),
        "Adam": Rule(
            lambda **more: optimizers.Adam(1e-3, **more),
            torch and (lambda p: optim.Adam(p, lr=1e-3, fused=True)),
            torch and (lambda p: optim.Adam(p, lr=1e-3, foreach=True)),
            2,
        ),
        "AdamW": Rule(
            lambda **more: optimizers.AdamW(1e-3, weight_decay=0.01, **more),
            torch and (lambda p: optim.AdamW(p, lr=1e-3, weight_decay=0.01, fused=True)),
            torch and (lambda p: optim.AdamW(p, lr=1e-3, weight_decay=0.01, foreach=True)),
            2,
        ),
        "Adagrad": Rule(
            lambda **more: optimizers.Adagrad(1e-3, **more),
            torch and (lambda p: optim.Adagrad(p, lr=1e-3, fused=True)),
            None,
            1,
        ),
        "Yogi, a user's": Rule(lambda **more: Yogi(1e-3, **more), None, None, 2),
    }
    missing = [name for name in ("AdamW", "Adagrad") if not hasattr(optimizers, name)]
    for name in missing:
        print(f"{name} is not there yet and is left out")
        del rules[name]
    return rules


class Precision(NamedTuple):
    """A dtype of variables, and what our optimizers are told about their slots."""

    dtype: np.dtype[Any]
    options: dict[str, Any]


PRECISIONS = {
    "float32": Precision(np.dtype(np.float32), {}),
    "float64": Precision(np.dtype(np.float64), {}),
    "bfloat16": Precision(np.dtype(ml_dtypes.bfloat16), {}),
    "bfloat16, float32 slots": Precision(np.dtype(ml_dtypes.bfloat16), {"slot_dtype": "float32"}),
}


def values(size: int, dtype: np.dtype[Any], seed: int) -> Array:
    """Return ``size`` aligned numbers of about one; a short random part is repeated."""
    array = aligned_zeros(size, dtype)
    part = np.random.default_rng(seed).standard_normal(min(size, 2**20)).astype(dtype)
    for start in range(0, size, len(part)):
        array[start : start + len(part)] = part[: size - start]
    return array


def our_step(rule: Rule, shapes: Sequence[int], precision: Precision) -> Callable[[], Any]:
    """Return what makes one step of ours."""
    optimizer = rule.ours(**precision.options)
    pairs = []
    for seed, size in enumerate(shapes):
        variable = tf.Variable(values(size, precision.dtype, seed), dtype=precision.dtype)
        pairs.append((tf.Tensor(values(size, precision.dtype, seed + 1)), variable))
    return lambda: optimizer.apply_gradients(pairs)


def their_step(make: Callable[..., Any], shapes: Sequence[int], dtype: np.dtype[Any]) -> Callable[[], Any]:
    """Return what makes one step of PyTorch's."""
    parameters = []
    for seed, size in enumerate(shapes):
        parameter = torch.nn.Parameter(_tensor(values(size, dtype, seed)))
        parameter.grad = _tensor(values(size, dtype, seed + 1))
        parameters.append(parameter)
    step: Callable[[], Any] = make(parameters).step
    return step


def _tensor(array: Array) -> Any:
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


_TRIAD = '''"""Generated by distopt for a benchmark's triad; do not edit."""

from numba import njit, types

_number = types.float32


@njit([types.void(_number[::1], _number[::1], _number[::1], _number)], error_model="numpy", nogil=True, cache={cache})
def kernel(a, b, c, s):
    for i in range(a.size):
        a[i] = b[i] + s * c[i]
'''


def triad(size_bytes: int) -> Callable[[], Any]:
    """Return what makes one triad over arrays of ``size_bytes`` each, shared by as many threads as an update."""
    size = max(size_bytes // 4, 1)
    kernel = kernels.load(lambda cache: _TRIAD.format(cache=cache))
    a, b, c = (values(size, np.dtype(np.float32), seed) for seed in range(3))
    number = threads.num_threads()
    part = -(-size // (number * 4096)) * 4096
    parts = [
        (a[start : start + part], b[start : start + part], c[start : start + part], np.float32(3))
        for start in range(0, size, part)
    ]
    if len(parts) == 1:
        return lambda: kernel(*parts[0])
    return lambda: threads.run_parts(kernel, parts)


def alternate(steps: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of a call of each step, one figure a round."""
    repeats = {}
    for name, step in steps.items():
        step()  # slots are created, kernels loaded
        started = time.perf_counter()
        step()
        repeats[name] = max(1, int(BLOCK_S / max(time.perf_counter() - started, 1e-7)))
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            started = time.perf_counter()
            for _ in range(repeats[name]):
                step()
            seconds[name].append((time.perf_counter() - started) / repeats[name])
    return seconds


def ratio(seconds: dict[str, list[float]], of: str, to: str) -> str:
    """Return how many times faster ``to`` is than ``of``; a dash if ``of`` has not run."""
    if of not in seconds:
        return "-"
    return f"{statistics.median(a / b for a, b in zip(seconds[of], seconds[to], strict=True)):.2f}"


def set_threads(number: int) -> None:
    """Let both sides use ``number`` threads."""
    threads.set_num_threads(number)
    if torch is not None:
        torch.set_num_threads(number)


def contenders(rule: Rule, shapes: Sequence[int], precision: Precision) -> dict[str, Callable[[], Any]]:
    """Return the steps to compare, ours first."""
    steps = {"ours": our_step(rule, shapes, precision)}
    if rule.theirs:
        steps["fused"] = their_step(rule.theirs, shapes, precision.dtype)
    if rule.foreach:
        steps["foreach"] = their_step(rule.foreach, shapes, precision.dtype)
    return steps


def one_variable(sizes: Iterable[int], precisions: Iterable[str], numbers: Iterable[int], rounds: int) -> None:
    """Print the first comparison."""
    print("\none variable: throughput, and how many times faster than PyTorch (above 1: ours is)")
    heading = f"{'elements':>10} {'threads':>8} {'ms':>9} {'Melem/s':>9} {'GB/s':>7}"
    for name in precisions:
        precision = PRECISIONS[name]
        for title, rule in _rules().items():
            print(f"\n{title}, {name}; {rule.moved} arrays move")
            print(f"{heading} {'of fused':>9} {'of foreach':>11} {'of roofline':>12}")
            for size in sizes:
                for number in numbers:
                    set_threads(number)
                    steps = contenders(rule, [size], precision)
                    steps["triad"] = triad(size * precision.dtype.itemsize)
                    seconds = alternate(steps, rounds)
                    moved = moved_bytes(rule, size, precision)
                    ours = statistics.median(seconds["ours"])
                    # The triad's bytes a second are the roofline's.
                    roofline = statistics.median(
                        moved / a / (4 * size * precision.dtype.itemsize / b)
                        for a, b in zip(seconds["ours"], seconds["triad"], strict=True)
                    )
                    print(
                        f"{size:>10.1e} {number:>8} {ours * 1e3:>9.3f} {size / ours / 1e6:>9.0f} "
                        f"{moved / ours / 1e9:>7.1f} {ratio(seconds, 'fused', 'ours'):>9} "
                        f"{ratio(seconds, 'foreach', 'ours'):>11} {roofline:>12.2f}",
                        flush=True,
                    )
                    del steps
                    gc.collect()


def moved_bytes(rule: Rule, size: int, precision: Precision) -> int:
    """Return the bytes that a step must move."""
    slot = np.dtype(precision.options.get("slot_dtype", precision.dtype))
    return size * (3 * precision.dtype.itemsize + 2 * rule.slots * slot.itemsize)


def mixed_shapes() -> list[int]:
    """Return 300 sizes: a third of them small, as biases are, and some that hold most of the elements."""
    rng = np.random.default_rng(0)
    sizes = np.concatenate([rng.integers(10, 2000, 100), 10 ** rng.uniform(3, 6, 200)])
    return [max(1, int(size * MIXED_ELEMENTS / sizes.sum())) for size in sizes]


def many_variables(title: str, shapes: Sequence[int], numbers: Iterable[int], rounds: int) -> None:
    """Print a comparison on several variables of float32."""
    print(f"\n{title}: how many times faster than PyTorch")
    print(f"{'rule':<16} {'threads':>8} {'us':>11} {'fused, us':>11} {'of fused':>9} {'of foreach':>11}")
    for name, rule in _rules().items():
        for number in numbers:
            set_threads(number)
            seconds = alternate(contenders(rule, shapes, PRECISIONS["float32"]), rounds)
            fused = f"{statistics.median(seconds['fused']) * 1e6:.1f}" if "fused" in seconds else "-"
            print(
                f"{name:<16} {number:>8} {statistics.median(seconds['ours']) * 1e6:>11.1f} {fused:>11} "
                f"{ratio(seconds, 'fused', 'ours'):>9} {ratio(seconds, 'foreach', 'ours'):>11}",
                flush=True,
            )
            gc.collect()


_FIRST_USE = """
import sys, time
from pathlib import Path
import numpy as np
import distopt as tf
from distopt import kernels
kernels.set_cache_directory(Path(sys.argv[1]) if sys.argv[1] else None)
started = time.perf_counter()
import numba
imported = time.perf_counter()
variable = tf.Variable(np.ones(10, np.float32))
times = [imported - started]
for make in (lambda: tf.keras.optimizers.SGD(0.1, momentum=0.9), lambda: tf.keras.optimizers.Adam()):
    started = time.perf_counter()
    make().apply_gradients([(np.ones(10, np.float32), variable)])
    times.append(time.perf_counter() - started)
print(*times)
"""


def first_use() -> None:
    """Print what the first step of a process costs, whose kernel is compiled, loaded, or kept in memory alone."""
    print("\nfirst use in a process, in seconds")
    print(f"{'kernels':<34} {'import of Numba':>16} {'first rule':>11} {'second rule':>12}")
    with tempfile.TemporaryDirectory() as directory:
        for title, where in (
            ("compiled, and kept", directory + "/kernels"),
            ("loaded", directory + "/kernels"),
            ("compiled; no directory to keep them", ""),
        ):
            command = [sys.executable, "-c", _FIRST_USE, where]
            output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
            numba_s, first, second = map(float, output.split())
            print(f"{title:<34} {numba_s:>16.2f} {first:>11.2f} {second:>12.2f}")


def main() -> None:
    """Print all comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("1", "2", "3", "4"), help="only this comparison")
    parser.add_argument("--sizes", type=float, nargs="+", default=SIZES, help="elements of one variable")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    peer = f"PyTorch {torch.__version__}" if torch is not None else "no PyTorch here, so nothing to compare with"
    print(f"{platform.processor() or platform.machine()}, {threads.available_processors()} processors; {peer}")
    parts = options.part or "1234"
    if "1" in parts:
        one_variable([int(size) for size in options.sizes], options.precisions, options.threads, options.rounds)
    if "2" in parts:
        many_variables("300 variables, 2.5e7 elements", mixed_shapes(), options.threads, options.rounds)
    if "3" in parts:
        many_variables("10 variables of 100 elements", [100] * 10, options.threads[:1], 5 * options.rounds)
    if "4" in parts:
        first_use()


if __name__ == "__main__":
    main()
