"""Compressed contributions pushed to servers as codes: the bits of one process, and the bytes of the codes alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import distopt as tf
from distopt.aggregation import Compression, Float16, GradientAggregator, Int8, Mean, Median, Sum, TopK
from distopt.arena import Span
from distopt.comm.communicator import Hosting
from distopt.comm.zmq import ServerCommunicator
from distopt.distribute import MirroredStrategy, Strategy, SyncParameterServerStrategy
from distopt.distribute.coded_pushes import pushes_codes
from distopt.distribute.served import relative_division, served
from tests.unit.comm.zmq.cluster import Cluster

pytestmark = pytest.mark.timeout(60)

SHAPES = [(90, 70), (7,), (), (5000,)]
"""Two servers have parts of a variable each, whose codes both of them get."""


def variables() -> list[Any]:
    return [tf.Variable(np.full(shape, 0.5, np.float32), name=f"v{i}") for i, shape in enumerate(SHAPES)]


def optimizer_of(aggregator: GradientAggregator, compression: Compression) -> Any:
    return tf.keras.optimizers.Adam(0.1, gradient_aggregator=aggregator.compressed(compression), global_clipnorm=0.5)


def trained(strategy: Strategy, optimizer: Any, steps: int = 2) -> list[bytes]:
    with strategy.scope():
        own = variables()

    def step(number: int) -> None:
        context = tf.distribute.get_replica_context()
        assert context is not None
        rng = np.random.default_rng([number, context.replica_id_in_sync_group])
        optimizer.apply_gradients([(rng.standard_normal(v.shape).astype(np.float32), v) for v in own])

    for number in range(steps):
        strategy.run(step, args=(number,))
    return [v.numpy().tobytes() for v in own]


def on_servers(
    aggregator: GradientAggregator, compression: Compression, replicas: int, workers: int, servers: int
) -> list[tuple[list[bytes], int]]:
    hosting = Hosting.contiguous(replicas, workers)

    def worker(comm: ServerCommunicator) -> tuple[list[bytes], int]:
        strategy = SyncParameterServerStrategy(comm, replicas=replicas)
        found = trained(strategy, optimizer_of(aggregator, compression))
        return found, sum(receipt.bytes_sent for receipt in strategy.extended.last_receipts)

    def owner(spans: tuple[Span, ...]) -> Any:
        optimizer = optimizer_of(aggregator, compression)
        return served(optimizer, optimizer.layout(variables()), spans, replicas, hosting)

    spans = relative_division(optimizer_of(aggregator, compression).layout(variables()), servers)
    return Cluster(workers, servers, worker, num_replicas=replicas, owner=owner, spans=spans).results()


@pytest.mark.parametrize(
    ("aggregator", "compression", "replicas", "workers", "servers"),
    [
        (Sum(), TopK(0.05), 5, 2, 2),
        (Mean(), Int8(100), 2, 2, 3),
        (Median(), Int8(), 5, 3, 1),
        (Sum(), Float16(), 2, 3, 2),
        (Sum(), Float16(), 8, 2, 2),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_servers_have_the_bits_of_one_process(
    aggregator: GradientAggregator, compression: Compression, replicas: int, workers: int, servers: int
) -> None:
    want = trained(MirroredStrategy(replicas), optimizer_of(aggregator, compression))
    for found, _ in on_servers(aggregator, compression, replicas, workers, servers):
        assert found == want


def test_a_worker_pushes_the_codes_of_its_replicas_and_nothing_else() -> None:
    compression = TopK(0.01)
    codes = sum(compression.num_bytes(int(np.prod(shape)), np.dtype(np.float32)) for shape in SHAPES)
    for _, sent in on_servers(Sum(), compression, 4, 2, 1):
        assert sent == 2 * codes


@pytest.mark.parametrize(
    ("aggregator", "compression", "replicas", "workers", "want"),
    [
        (Sum(), TopK(0.01), 8, 2, True),
        (Sum(), Float16(), 8, 2, False),  # four codes of a half each against one sum
        (Sum(), Float16(), 2, 2, True),
        (Median(), Float16(), 8, 2, True),  # each replica's would be pushed in any case
        (Sum(), TopK(1.0), 2, 2, False),  # indices make it longer than the gradient
    ],
)
def test_codes_are_pushed_where_they_are_shorter(
    aggregator: GradientAggregator, compression: Compression, replicas: int, workers: int, want: bool
) -> None:
    hosting = Hosting.contiguous(replicas, workers)
    assert pushes_codes(aggregator.compressed(compression), hosting, variables()) is want
