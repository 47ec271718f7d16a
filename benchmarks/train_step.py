"""What a whole training step costs on one host: ``python -m benchmarks.train_step``.

A perceptron 784-2048-2048-10 (5.8 million parameters, relu, softmax cross-entropy) trained by Adam in float32, batch 64
a rank, one thread a rank. A step: forward, backward, sum over the ranks, update.

``gradient``      the gradient alone, written by hand in NumPy: no sum over ranks, no update. Its matrix products are
                  written into arrays that exist (``out=``), which is the fastest way that we know
``plain``         the same as one would write it at first, each array made anew
``sharded``       ours, placement ``sharded``: a ``keras.Sequential``, a tape, ``apply_gradients``, in ``strategy.run``
``replica``       the same with placement ``replica``
``ddp``           PyTorch: ``DistributedDataParallel`` over gloo and its fused Adam; left out where there is no PyTorch
``tensorflow``    TensorFlow: ``tf.keras.Sequential``, ``tf.function``, ``MultiWorkerMirroredStrategy``; where
                  ``--tensorflow`` names a Python that has it, or this one does
``..., clip``     with ``global_clipnorm``; ``clip_grad_norm_`` for PyTorch

All take turns within one job (:mod:`benchmarks.ranks`), TensorFlow's steps in processes of its own, one beside each
rank, which wait for their turn. Then, without TensorFlow: how the cost grows with the parameters, by the width of the
hidden layers, and with the number of ranks.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import distopt as tf
from benchmarks import plots
from benchmarks.ranks import ROOT, Ranks, Seconds, Step, about, column, launch, medians_ms, ratio, torch
from distopt.types import Array

INPUTS, CLASSES, WIDTH, BATCH = 784, 10, 2048, 64
LEARNING_RATE, CLIP = 1e-3, 1.0
SIZES = (10**4, 10**5, 10**6, 10**7, 10**8)
RANKS = (1, 2, 4, 8, 16)
NUM_BATCHES = 8


def layers_of(width: int) -> list[tuple[int, int]]:
    """Return inputs and outputs of each layer."""
    return [(INPUTS, width), (width, width), (width, CLASSES)]


def num_parameters(width: int) -> int:
    """Return how many there are.

    >>> num_parameters(2048)
    5824522
    """
    return sum(inputs * outputs + outputs for inputs, outputs in layers_of(width))


def width_for(parameters: int) -> int:
    """Return the width that comes closest to so many parameters."""
    return min(range(1, 12_000), key=lambda width: abs(num_parameters(width) - parameters))


class Data:
    """Batches of one rank, which its contenders go through in turn."""

    def __init__(self, rank: int) -> None:
        rng = np.random.default_rng(rank)
        self._batches = [
            (rng.random((BATCH, INPUTS), np.float32), rng.integers(0, CLASSES, BATCH)) for _ in range(NUM_BATCHES)
        ]
        self._next = 0

    def next(self) -> tuple[Array, Array]:
        """Return inputs and labels."""
        self._next = (self._next + 1) % NUM_BATCHES
        return self._batches[self._next]


class ByHand:
    """The gradient, written by hand; ``in_place``: into arrays that exist."""

    def __init__(self, width: int, data: Data, *, in_place: bool) -> None:
        rng = np.random.default_rng(0)
        self.weights = [
            rng.standard_normal(shape, np.float32) * np.float32(np.sqrt(2 / shape[0])) for shape in layers_of(width)
        ]
        self.biases = [np.zeros(outputs, np.float32) for _, outputs in layers_of(width)]
        self.gradients: list[Array] = []
        self._into: list[Any] = [np.empty_like(w) if in_place else None for w in self.weights]
        self._data = data
        self.loss = 0.0

    def step(self) -> None:
        """Compute loss and gradients for one batch."""
        x, labels = self._data.next()
        inputs = [x]
        for weights, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            hidden = inputs[-1] @ weights
            hidden += bias
            np.maximum(hidden, 0, out=hidden)
            inputs.append(hidden)
        logits = inputs[-1] @ self.weights[-1]
        logits += self.biases[-1]
        logits -= logits.max(axis=1, keepdims=True)
        back = np.exp(logits)
        total = back.sum(axis=1, keepdims=True)
        at = np.arange(BATCH)
        self.loss = float((np.log(total[:, 0]) - logits[at, labels]).sum() / np.float32(BATCH))
        back /= total
        back[at, labels] -= 1
        back /= np.float32(BATCH)
        self.gradients = []
        for layer in reversed(range(len(self.weights))):
            self.gradients += [back.sum(axis=0), np.matmul(inputs[layer].T, back, out=self._into[layer])]
            if layer:
                back = back @ self.weights[layer].T
                back *= inputs[layer] > 0


def by_hand(width: int, data: Data, *, in_place: bool) -> Step:
    """Return a step of the gradient alone."""
    return ByHand(width, data, in_place=in_place).step


def ours(bench: Ranks, width: int, data: Data, placement: str, clip: float | None = None) -> Step:
    """Return a step of ours, as a user would write it."""
    strategy = tf.distribute.MultiWorkerMirroredStrategy(placement=placement, communicator=bench.comm)
    with strategy.scope():
        model = tf.keras.Sequential(
            [
                tf.keras.Input(shape=(INPUTS,)),
                tf.keras.layers.Dense(width, activation="relu"),
                tf.keras.layers.Dense(width, activation="relu"),
                tf.keras.layers.Dense(CLASSES),
            ]
        )
        optimizer = tf.keras.optimizers.Adam(LEARNING_RATE, global_clipnorm=clip)
    loss_of = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")
    global_batch = BATCH * bench.comm.size

    def replica_step(x: Array, y: Array) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.nn.compute_average_loss(loss_of(y, model(x, training=True)), global_batch_size=global_batch)
        variables = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    return lambda: strategy.run(replica_step, args=data.next()) and None


def ddp(width: int, data: Data, clip: float | None = None) -> Step:
    """Return a step of PyTorch's."""
    nn = torch.nn
    layers: list[Any] = []
    for inputs, outputs in layers_of(width):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    model = nn.parallel.DistributedDataParallel(nn.Sequential(*layers[:-1]))
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
    loss_of = nn.CrossEntropyLoss()

    def step() -> None:
        x, y = map(torch.from_numpy, data.next())
        optimizer.zero_grad()
        loss_of(model(x), y).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()

    return step


class TensorFlow:
    """A process of TensorFlow's beside this rank, which makes steps when it is told to."""

    def __init__(self, python: str, bench: Ranks, width: int, clip: float | None) -> None:
        workers = [f"127.0.0.1:{port}" for port in bench.free_ports(bench.comm.size)]
        task = {"type": "worker", "index": bench.comm.rank}
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        environment |= {
            "TF_CONFIG": json.dumps({"cluster": {"worker": workers}, "task": task}),
            "TF_NUM_INTRAOP_THREADS": "1",
            "TF_NUM_INTEROP_THREADS": "2",
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "CUDA_VISIBLE_DEVICES": "-1",
            "TF_USE_LEGACY_KERAS": "1",
        }
        argv = [python, str(ROOT / "benchmarks" / "tensorflow_peer.py"), str(width), str(BATCH), str(clip or 0)]
        self._process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
        )
        self._hear()

    def step(self) -> None:
        """Make one step."""
        assert self._process.stdin is not None, "it was opened"
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        self._hear()

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()

    def _hear(self) -> None:
        assert self._process.stdout is not None, "it was opened"
        if self._process.stdout.readline().strip() != "done":
            sys.exit(f"TensorFlow's process ended with status {self._process.wait()}")


def whole_step(bench: Ranks, tensorflow: str) -> None:
    """Print what the step costs, and what it costs others."""
    data = Data(bench.comm.rank)
    contenders = {
        "gradient": by_hand(WIDTH, data, in_place=True),
        "plain": by_hand(WIDTH, data, in_place=False),
        "sharded": ours(bench, WIDTH, data, "sharded"),
        "sharded, clip": ours(bench, WIDTH, data, "sharded", CLIP),
        "replica": ours(bench, WIDTH, data, "replica"),
        "replica, clip": ours(bench, WIDTH, data, "replica", CLIP),
    }
    if bench.has_torch:
        contenders |= {"ddp": ddp(WIDTH, data), "ddp, clip": ddp(WIDTH, data, CLIP)}
    peers = []
    if tensorflow:
        peers = [TensorFlow(tensorflow, bench, WIDTH, clip) for clip in (None, CLIP)]
        contenders |= {"tensorflow": peers[0].step, "tensorflow, clip": peers[1].step}
    try:
        seconds = bench.seconds(contenders)
    finally:
        for peer in peers:
            peer.end()
    bench.say(
        f"\n784-{WIDTH}-{WIDTH}-10, {num_parameters(WIDTH):,} parameters, batch {BATCH} a rank, "
        f"{bench.comm.size} ranks\n"
        f"{'':>18} {'ms a step':>10} {'of gradient':>12} {'of ours':>8}"
    )
    for name, found in medians_ms(seconds).items():
        clipped = ", clip" if name.endswith("clip") else ""
        bench.say(
            f"{name:>18} {found:>10.2f} {ratio(seconds, name, 'gradient'):>12.2f} "
            f"{ratio(seconds, name, 'sharded' + clipped):>8.2f}"
        )
    bench.figures.append({"kind": "step", "ranks": bench.comm.size, "seconds": seconds})


def growth(bench: Ranks, kind: str, widths: Sequence[int]) -> None:
    """Print what a step costs for each width; as part of a table, the heading of which others print."""
    for width in widths:
        data = Data(bench.comm.rank)
        contenders = {
            "gradient": by_hand(width, data, in_place=True),
            "sharded": ours(bench, width, data, "sharded"),
            "replica": ours(bench, width, data, "replica"),
        }
        if bench.has_torch:
            contenders["ddp"] = ddp(width, data)
        seconds = bench.seconds(contenders)
        bench.say(_row(bench.comm.size, width, seconds))
        bench.figures.append({"kind": kind, "ranks": bench.comm.size, "width": width, "seconds": seconds})


HEADING = (
    f"{'ranks':>6} {'width':>6} {'parameters':>11} {'gradient':>9} {'sharded':>9} {'replica':>9} {'ddp':>9} ms   "
    f"{'sharded/gradient':>17} {'replica/gradient':>17} {'ddp/sharded':>12}"
)


def _row(ranks: int, width: int, seconds: Seconds) -> str:
    ms = medians_ms(seconds)
    figures = " ".join(column(ms.get(name, math.nan), 9) for name in ("gradient", "sharded", "replica", "ddp"))
    ratios = [("sharded", "gradient", 17), ("replica", "gradient", 17), ("ddp", "sharded", 12)]
    compared = " ".join(column(ratio(seconds, other, to), places) for other, to, places in ratios)
    return f"{ranks:>6} {width:>6} {num_parameters(width):>11,} {figures} ms   {compared}"


def draw(folder: Path, figures: Sequence[dict[str, Any]]) -> None:
    """Write the plots."""
    for each in figures:
        if each["kind"] == "step":
            ms = medians_ms(each["seconds"])
            title = f"One training step, {num_parameters(WIDTH):,} parameters, {each['ranks']} ranks"
            plots.bars(folder / "train_step.png", title, "ms", list(ms), {"": list(ms.values())})
    for kind, x_title in (("parameters", "parameters"), ("ranks", "ranks, on as many cores as there are")):
        found = [each for each in figures if each["kind"] == kind]
        if not found:
            continue
        curves: dict[str, dict[float, float]] = {}
        for each in found:
            x = num_parameters(each["width"]) if kind == "parameters" else each["ranks"]
            for name, value in medians_ms(each["seconds"]).items():
                curves.setdefault(name, {})[x] = value
        title = f"A training step by {kind}"
        plots.lines(folder / f"train_step_{kind}.png", title, x_title, "ms", curves, logarithmic=kind == "parameters")


def inside(options: argparse.Namespace) -> None:
    """Run as one rank."""
    bench = Ranks(options.rounds, options.block)
    if options.parts == "1":
        whole_step(bench, options.tensorflow)
    else:
        growth(bench, "parameters" if options.parts == "2" else "ranks", options.widths)
    bench.finish(options.inside)


def main() -> None:
    """Print all comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="123", help="1: the step; 2: growth with parameters; 3: with ranks")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--block", type=float, default=0.15, help="seconds of one contender's turn")
    parser.add_argument("--ranks", type=int, default=2, help="in the first two comparisons")
    parser.add_argument("--sizes", type=float, nargs="+", default=SIZES, help="parameters, in the second")
    parser.add_argument("--numbers", type=int, nargs="+", default=RANKS, help="of ranks, in the third")
    own = sys.executable if importlib.util.find_spec("tensorflow") else ""
    parser.add_argument("--tensorflow", default=own, metavar="PYTHON", help="an interpreter that has TensorFlow")
    plots.add_option(parser)
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    parser.add_argument("--widths", type=int, nargs="*", default=[], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        inside(options)
        return
    plots.check(options.plot)
    print(about())
    module, figures = "benchmarks.train_step", []
    given = ["--rounds", str(options.rounds), "--block", str(options.block)]
    if "1" in options.parts:
        figures += launch(module, options.ranks, [*given, "--parts", "1", "--tensorflow", options.tensorflow])
    if "2" in options.parts:
        print(f"\nby parameters; growth of the two hidden layers\n{HEADING}", flush=True)
        widths = [str(width_for(int(size))) for size in options.sizes]
        figures += launch(module, options.ranks, [*given, "--parts", "2", "--widths", *widths])
    if "3" in options.parts:
        print(f"\nby ranks, all on the cores that there are; width {WIDTH}\n{HEADING}", flush=True)
        for number in options.numbers:
            figures += launch(module, number, [*given, "--parts", "3", "--widths", str(WIDTH)])
    if options.plot:
        draw(options.plot, figures)


if __name__ == "__main__":
    main()
