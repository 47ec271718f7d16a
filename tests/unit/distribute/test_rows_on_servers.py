"""Row-sparse gradients pushed to servers: variables and slots have the bits of one process, the wire carries rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

import distopt as tf
from distopt.arena import Span
from distopt.comm.zmq import ServerCommunicator
from distopt.distribute import MirroredStrategy, SyncParameterServerStrategy
from distopt.distribute.row_pushes import goes_by_rows
from distopt.distribute.served import load_named_arrays, relative_division, served
from distopt.errors import PlacementError
from distopt.optimizers import rules, set_default_engine
from distopt.optimizers.pipeline import GradientPath
from tests.hooks import MedianOfReplicas
from tests.row_sparse import HOOKS, NUMPY_TOO, OPTIMIZERS, all_dense, fresh_variables, partly_dense, state, trace, train
from tests.unit.comm.zmq.cluster import Cluster

pytestmark = pytest.mark.timeout(60)

REPLICAS = 5
Make = Callable[[], Any]


@dataclass
class Job:
    """One job on servers; ``optimizers`` of the servers, and the bytes that workers exchanged."""

    make: Make
    fresh: Callable[[], list[Any]] = fresh_variables
    num_bytes: list[int] = field(default_factory=list)

    def run(self, workers: int, servers: int, body: Callable[[SyncParameterServerStrategy], Any]) -> list[Any]:
        def worker(comm: ServerCommunicator) -> Any:
            result = body(SyncParameterServerStrategy(comm, replicas=REPLICAS))
            self.num_bytes.append(comm.traffic.bytes_sent + comm.traffic.bytes_received)
            return result

        layout = self.make().layout(self.fresh())
        spans = relative_division(layout, servers)
        cluster = Cluster(workers, servers, worker, num_replicas=REPLICAS, owner=self._owner, spans=spans)
        return cluster.results()

    def _owner(self, spans: tuple[Span, ...]) -> Any:
        optimizer = self.make()
        return served(optimizer, optimizer.layout(self.fresh()), spans, REPLICAS)


def trained_on_servers(job: Job, workers: int, servers: int, gradients: Any = None) -> list[bytes]:
    def body(strategy: SyncParameterServerStrategy) -> bytes:
        variables, optimizer = train(strategy, job.make, gradients)
        pulled = [variable.numpy().tobytes() for variable in variables]
        layout = optimizer.layout(variables)
        for owned in strategy.communicator.fetch_state():
            load_named_arrays(optimizer, layout, owned.spans, dict(zip(owned.names, owned.arrays, strict=True)))
        assert pulled == [variable.numpy().tobytes() for variable in variables], "the servers hold other variables"
        return state(variables, optimizer)

    return job.run(workers, servers, body)


@pytest.fixture(autouse=True)
def _engine() -> Iterator[None]:
    yield
    set_default_engine("compiled")


def test_a_server_of_an_empty_variable_alone_takes_part_in_the_exchange_of_norms() -> None:
    set_default_engine("numpy")

    def fresh() -> list[Any]:
        return [tf.Variable(np.ones(0, np.float32)), tf.Variable(np.ones(70, np.float64))]

    job = Job(lambda: tf.keras.optimizers.SGD(0.1, global_clipnorm=0.3), fresh)

    def body(strategy: Any) -> bytes:
        with strategy.scope():
            variables, optimizer = fresh(), job.make()
        strategy.run(lambda: optimizer.apply_gradients([(np.ones(v.shape, v.dtype), v) for v in variables]))
        return bytes(variables[1].numpy().tobytes())

    assert job.run(1, 2, body) == [body(MirroredStrategy(REPLICAS))]


CASES = [("compiled", name) for name in OPTIMIZERS] + [("numpy", name) for name in NUMPY_TOO]


@pytest.mark.parametrize(("engine", "name"), CASES)
def test_rows_on_two_servers_have_the_bits_of_one_process(engine: str, name: str) -> None:
    set_default_engine(engine)
    want = trace(MirroredStrategy(REPLICAS), OPTIMIZERS[name])
    for got in trained_on_servers(Job(OPTIMIZERS[name]), 2, 2):
        assert got == want


@pytest.mark.parametrize(("workers", "servers"), [(1, 1), (3, 1), (1, 3), (3, 4), (6, 2)])
@pytest.mark.parametrize("name", ["momentum", "adam-global-clipnorm"])
def test_rows_on_any_deployment_have_the_bits_of_one_process(name: str, workers: int, servers: int) -> None:
    want = trace(MirroredStrategy(REPLICAS), OPTIMIZERS[name])
    for got in trained_on_servers(Job(OPTIMIZERS[name]), workers, servers):
        assert got == want


@pytest.mark.parametrize("name", ["momentum", "momentum-clipvalue-clipnorm-mean", "adam-global-clipnorm"])
def test_a_gradient_that_is_dense_on_some_replicas_is_dense_on_servers(name: str) -> None:
    want = trace(MirroredStrategy(REPLICAS), OPTIMIZERS[name], partly_dense)
    for workers in (2, 5):
        for got in trained_on_servers(Job(OPTIMIZERS[name]), workers, 2, partly_dense):
            assert got == want


@pytest.mark.parametrize("gradients", [None, all_dense])
def test_a_server_without_spans_has_no_part_in_clipping_by_norm(gradients: Any) -> None:
    make = OPTIMIZERS["adam-global-clipnorm"]
    want = trace(MirroredStrategy(REPLICAS), make, gradients)
    job = Job(make)
    assert () in relative_division(make().layout(fresh_variables()), 4)
    for got in trained_on_servers(job, 2, 4, gradients):
        assert got == want


@pytest.mark.parametrize("gradients", [None, partly_dense])
@pytest.mark.parametrize("name", HOOKS)
def test_hooks_over_whole_gradients_see_rows_on_one_server(name: str, gradients: Any) -> None:
    want = trace(MirroredStrategy(REPLICAS), HOOKS[name], gradients)
    for got in trained_on_servers(Job(HOOKS[name]), 2, 1, gradients):
        assert got == want


def test_an_aggregator_beyond_sums_gets_rows_as_dense_gradients() -> None:
    def make() -> Any:
        return tf.keras.optimizers.SGD(0.1, 0.9, gradient_aggregator=MedianOfReplicas())

    want = trace(MirroredStrategy(REPLICAS), make)
    for got in trained_on_servers(Job(make), 2, 2):
        assert got == want


FEATURES: dict[str, Make] = {
    "weight decay": lambda: with_features(weight_decay=0.1),
    "averages": lambda: with_features(ema_momentum=0.9),
    "averages that overwrite": lambda: with_features(ema_momentum=0.9, ema_overwrite_frequency=2),
    "accumulation": lambda: with_features(accumulation_steps=2),
}


def with_features(**features: Any) -> Any:
    optimizer = tf.keras.optimizers.SGD(0.1, 0.9)
    for name, value in features.items():
        setattr(optimizer.features, name, value)
    return optimizer


@pytest.mark.parametrize("name", FEATURES)
def test_what_is_done_around_the_rule_has_the_bits_of_one_process(name: str) -> None:
    want = trace(MirroredStrategy(REPLICAS), FEATURES[name])
    for got in trained_on_servers(Job(FEATURES[name]), 2, 2):
        assert got == want


@pytest.mark.parametrize("clipnorm", [None, 1.0])
def test_bytes_on_the_wire_are_those_of_the_rows_and_not_of_the_table(clipnorm: float | None) -> None:
    num_rows, width, occurrences, distinct = 50_000, 16, 50, 7

    def table() -> list[Any]:
        return [tf.Variable(np.zeros((num_rows, width), np.float32), trainable=False)]

    def make() -> Any:
        return tf.keras.optimizers.SGD(0.1, 0.9, clipnorm=clipnorm)

    def body(strategy: SyncParameterServerStrategy) -> None:
        with strategy.scope():
            variables = table()
        optimizer = make()

        def step() -> None:
            context = tf.distribute.get_replica_context()
            assert context is not None
            indices = context.replica_id_in_sync_group + 5000 * (np.arange(occurrences) % distinct)
            gradient = tf.IndexedSlices(np.ones((occurrences, width), np.float32), indices)
            optimizer.apply_gradients([(gradient, variables[0])])

        strategy.run(step)

    job = Job(make, table)
    job.run(2, 2, body)
    pushed = REPLICAS * (occurrences if clipnorm else distinct)
    pulled = 2 * REPLICAS * distinct
    assert max(job.num_bytes) < (pushed + pulled) * (8 + width * 4 + 16) < num_rows * width * 4 // 50
    assert min(job.num_bytes) > pulled // 2 * width * 4


def test_clipped_rows_for_a_rule_that_needs_them_whole_are_refused_by_name() -> None:
    class Whole(tf.keras.optimizers.SGD):
        @property
        def rule(self) -> Any:
            return rules.MUON

    table = tf.Variable(np.zeros((3, 2), np.float32), name="table")
    assert not goes_by_rows(GradientPath(Whole(0.1), aggregate=True), table)
    with pytest.raises(PlacementError, match=r"'table:0'.*muon"):
        goes_by_rows(GradientPath(Whole(0.1, clipvalue=1.0), aggregate=True), table)
