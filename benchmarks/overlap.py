"""What it brings to send gradients between hosts while backward goes on: ``python -m benchmarks.overlap``.

Two emulated hosts of one rank each (:mod:`benchmarks.emulated_hosts`, as root). Each has a perceptron, and owns half of
it. A step: forward and backward; each sends the other the half of its gradient that the other owns, adds up its own
half, takes a step of SGD with it, and sends that back. What is sent and computed is the same in all contenders, which
differ in when the gradients leave. Ours are whole steps: a tape, and ``apply_gradients`` with placement ``sharded``:

``off``      when ``apply_gradients`` is called
``on``       the same with ``CommunicationOptions(overlap=True)``; its ratio is to ``off``

The others show what is in it. Their gradient is written by hand in NumPy:

``after``    when backward has ended
``polled``   when a layer's is there; MPI, which moves data only while it is called, is called after each layer
``thread``   when a layer's is there; a thread calls MPI all the time, sleeping between

``batch 0``  stands for hosts with cores of their own, which emulated ones have not: instead of each product of matrices
             the rank sleeps for ``--product-ms``, and the cores are free to carry packets

and two of the parts: ``gradient`` alone, ``wire``: the exchange without it. ``bound`` is what ``after`` would take if
the shorter of backward (two thirds of ``gradient``) and half of ``wire`` cost nothing. Medians over rounds in which all
take turns; ratios are medians over rounds, those of the others to ``after``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from autograd.extend import defvjp, primitive

import distopt as tf
from benchmarks.emulated_hosts import Link, emulated_hosts, why_not
from benchmarks.ranks import ROOT, Ranks, ratio
from distopt.distribute import CommunicationOptions, MultiWorkerMirroredStrategy
from distopt.ops.dense import dense, dense_layers
from distopt.tensor import call
from distopt.types import Array

LINKS = {"full": None, "1gbit": Link(1e9, 1.0), "200mbit": Link(2e8, 1.0)}
"""At 1 Gbit/s the program that emulates the link, and TCP, take a good part of the cores; at 200 Mbit/s little."""
CHUNK = 1 << 17
"""Elements of a message."""
PAUSE_S = 3e-4
"""How long the thread sleeps between two calls of MPI."""


class Model:
    """Layers of equal width, relu between them, and the half of each that this rank owns."""

    def __init__(self, bench: Ranks, width: int, depth: int, batch: int, product_s: float) -> None:
        self.product_s = 0.0 if batch else product_s
        batch = batch or 1
        rng = np.random.default_rng(bench.comm.rank)
        self.world, self.mpi = bench.world, bench.mpi
        self.x = rng.standard_normal((batch, width), np.float32)
        self.weights = [np.full((width, width), 1e-3, np.float32) for _ in range(depth)]
        self.gradients = [np.zeros_like(w) for w in self.weights]
        self.received = [np.zeros(width * width // 2, np.float32) for _ in self.weights]
        own, other = slice(0, width // 2), slice(width // 2, width)
        self.own, self.other = (own, other) if bench.comm.rank == 0 else (other, own)
        self.peer = 1 - bench.comm.rank

    def forward(self) -> list[Array]:
        """Return what goes into each layer, and the result."""
        values = [self.x]
        for weights in self.weights:
            hidden = values[-1] @ weights
            time.sleep(self.product_s)
            values.append(np.maximum(hidden, 0, out=hidden))
        return values

    def backward(self, values: list[Array], layer_is_done: Callable[[int], None] | None = None) -> None:
        """Write the gradients, those of the last layer first."""
        back = values[-1]
        for layer in reversed(range(len(self.weights))):
            back = back * (values[layer + 1] > 0)
            np.matmul(values[layer].T, back, out=self.gradients[layer])
            time.sleep(self.product_s)
            if layer_is_done is not None:
                layer_is_done(layer)
            if layer:
                back = back @ self.weights[layer].T
                time.sleep(self.product_s)

    def chunks(self, array: Array) -> list[Array]:
        """Return the parts of an array that are messages."""
        flat = array.reshape(-1)
        return [flat[start : start + CHUNK] for start in range(0, flat.size, CHUNK)]

    def send(self, layer: int) -> list[object]:
        """Begin to send the gradient of a layer and to receive the peer's."""
        receives = [self.world.Irecv(chunk, self.peer, layer) for chunk in self.chunks(self.received[layer])]
        sends = [self.world.Isend(c, self.peer, layer) for c in self.chunks(self.gradients[layer][self.other])]
        return receives + sends

    def wait(self, requests: list[object]) -> None:
        """Return when all are done."""
        while not self.mpi.Request.Testall(requests):
            time.sleep(1e-4)

    def update(self) -> None:
        """Add up the own halves, change the variables, and tell the peer."""
        requests = []
        for layer, weights in enumerate(self.weights):
            requests += [self.world.Irecv(c, self.peer, 100 + layer) for c in self.chunks(weights[self.other])]
        for layer, (weights, gradient) in enumerate(zip(self.weights, self.gradients, strict=True)):
            total = gradient[self.own] + self.received[layer].reshape(-1, weights.shape[1])
            weights[self.own] -= np.float32(1e-9) * total
            requests += [self.world.Isend(c, self.peer, 100 + layer) for c in self.chunks(weights[self.own])]
        self.wait(requests)

    def gradient(self) -> None:
        """Compute the gradient alone."""
        self.backward(self.forward())

    def wire(self) -> None:
        """Exchange alone."""
        self.wait([request for layer in range(len(self.weights)) for request in self.send(layer)])
        self.update()

    def after(self) -> None:
        """Make a step; send when backward has ended."""
        self.gradient()
        self.wire()

    def polled(self) -> None:
        """Make a step; send what is there, and call MPI after each layer."""
        requests: list[object] = []

        def layer_is_done(layer: int) -> None:
            requests.extend(self.send(layer))
            self.mpi.Request.Testsome(requests)

        self.backward(self.forward(), layer_is_done)
        self.wait(requests)
        self.update()

    def thread(self) -> None:
        """Make a step; send what is there, and let a thread call MPI."""
        requests: list[object] = []
        ended = threading.Event()

        def progress() -> None:
            while not ended.wait(PAUSE_S):
                self.world.Iprobe(self.mpi.ANY_SOURCE, 999)

        values = self.forward()
        worker = threading.Thread(target=progress)
        worker.start()
        self.backward(values, lambda layer: requests.extend(self.send(layer)))
        ended.set()
        worker.join()
        self.wait(requests)
        self.update()


@primitive  # type: ignore[untyped-decorator]  # autograd is untyped
def _pause(value: Array, forward_s: float, backward_s: float) -> Array:
    del backward_s
    time.sleep(forward_s)
    return value


def _pause_backward(_result: Any, _value: Any, _forward_s: float, backward_s: float) -> Callable[[Any], Any]:
    def backward(gradient: Any) -> Any:
        time.sleep(backward_s)
        return gradient

    return backward


defvjp(_pause, _pause_backward, None, None)


class Ours:
    """The same perceptron, on a tape; where a product is a pause, the layers are operations of their own."""

    def __init__(self, bench: Ranks, width: int, depth: int, batch: int, product_s: float, overlap: bool) -> None:
        self.product_s = 0.0 if batch else product_s
        options = CommunicationOptions(overlap=overlap)
        self.strategy = MultiWorkerMirroredStrategy(None, options, communicator=bench.comm, placement="sharded")
        self.x = np.random.default_rng(bench.comm.rank).standard_normal((batch or 1, width), np.float32)
        with self.strategy.scope():
            self.weights = [tf.Variable(np.full((width, width), 1e-3, np.float32)) for _ in range(depth)]
        self.optimizer = tf.keras.optimizers.SGD(1e-9)

    def loss(self) -> Any:
        """Return the sum of what comes out."""
        if not self.product_s:
            layers = [weight for kernel in self.weights for weight in (kernel, None)]
            return tf.reduce_sum(dense_layers(self.x, layers, ("relu",) * len(self.weights)))
        value: Any = self.x
        for weights in self.weights:
            value = call(_pause, dense(value, weights, None, "relu"), self.product_s, 2 * self.product_s)
        return tf.reduce_sum(value)

    def replica(self) -> None:
        """Take the gradient, and apply it."""
        with tf.GradientTape() as tape:
            loss = self.loss()
        self.optimizer.apply_gradients(zip(tape.gradient(loss, self.weights), self.weights, strict=True))

    def step(self) -> None:
        """Make a step."""
        self.strategy.run(self.replica)


def work(width: int, depth: int, batch: int, product_s: float, rounds: int) -> None:
    """One rank of the job; rank 0 prints the figures as JSON."""
    bench = Ranks(rounds, block_s=0.4)
    model = Model(bench, width, depth, batch, product_s)
    contenders = {name: getattr(model, name) for name in ("gradient", "wire", "after", "polled", "thread")}
    for name, overlap in (("off", False), ("on", True)):
        contenders[name] = Ours(bench, width, depth, batch, product_s, overlap).step
    seconds = bench.seconds(contenders)
    if bench.comm.rank == 0:
        sys.stderr.write(f"{bench.comm.traffic.early_bytes:,} bytes left early\n")
        sys.stdout.write(json.dumps(seconds) + "\n")
    bench.comm.finish()


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print a table for each kind of link."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--links", nargs="*", choices=list(LINKS), default=list(LINKS))
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--batches", type=int, nargs="*", default=[0, 64, 256, 1024])
    parser.add_argument("--product-ms", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--work", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.work is not None:
        work(options.width, options.depth, options.work, options.product_ms / 1e3, options.rounds)
        return 0
    if trouble := why_not():
        sys.stderr.write(f"{trouble}\n")
        return 1
    environment = {
        **os.environ,
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    print(f"{options.depth} layers of {options.width} x {options.width}, two hosts of one rank")
    print(
        f"{'link':>8} {'batch':>6} {'gradient':>9} {'wire':>7} {'after':>7} ms {'bound':>7} {'polled':>7} {'thread':>7}"
        f" {'off':>7} ms {'on':>7}"
    )
    for link, batch in itertools.product(options.links, options.batches):
        with emulated_hosts(2, LINKS[link]) as hosts:
            command = [sys.executable, "-m", "benchmarks.overlap", "--work", str(batch)]
            command += ["--width", str(options.width), "--depth", str(options.depth), "--rounds", str(options.rounds)]
            command += ["--product-ms", str(options.product_ms)]
            found = subprocess.run(
                hosts.mpirun([1, 1], command),
                env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
            )  # fmt: skip
        if found.returncode:
            sys.stderr.write(found.stdout + found.stderr)
            return 1
        seconds = json.loads(found.stdout.splitlines()[-1])
        ms = {name: 1e3 * statistics.median(times) for name, times in seconds.items()}
        bound = (ms["after"] - min(ms["gradient"] * 2 / 3, ms["wire"] / 2)) / ms["after"]
        print(
            f"{link:>8} {batch:>6} {ms['gradient']:>9.1f} {ms['wire']:>7.1f} {ms['after']:>7.1f} ms {bound:>7.2f} "
            f"{ratio(seconds, 'polled', 'after'):>7.2f} {ratio(seconds, 'thread', 'after'):>7.2f} "
            f"{ms['off']:>7.1f} ms {ratio(seconds, 'on', 'off'):>7.2f}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
