"""Row-sparse gradients over any number of workers: the bits of one process, and the bytes of the rows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import distopt as tf
from distopt.comm.communicator import Communicator
from distopt.distribute import MirroredStrategy, MultiWorkerMirroredStrategy
from distopt.optimizers import set_default_engine
from tests.conftest import Run
from tests.row_sparse import HOOKS, NUMPY_TOO, OPTIMIZERS, partly_dense, rows_later, trace


@pytest.fixture(autouse=True)
def _engine() -> Iterator[None]:
    yield
    set_default_engine("compiled")


CASES = [("compiled", name) for name in (*OPTIMIZERS, *HOOKS)] + [("numpy", name) for name in NUMPY_TOO]


def on_workers(comm: Communicator, replicas: int) -> MultiWorkerMirroredStrategy:
    return MultiWorkerMirroredStrategy(replicas=replicas, communicator=comm)


@pytest.mark.parametrize(("engine", "name"), CASES)
def test_rows_have_the_bits_of_one_process(run: Run, engine: str, name: str) -> None:
    set_default_engine(engine)
    make = (OPTIMIZERS | HOOKS)[name]
    want = trace(MirroredStrategy(5), make)
    for got in run(lambda comm: trace(on_workers(comm, 5), make)):
        assert got == want


@pytest.mark.parametrize("replicas", [1, 2, 3, 8])
def test_rows_have_the_bits_of_one_process_for_any_number_of_replicas(run: Run, replicas: int) -> None:
    make = OPTIMIZERS["momentum"]
    want = trace(MirroredStrategy(replicas), make)
    for got in run(lambda comm: trace(on_workers(comm, replicas), make)):
        assert got == want


@pytest.mark.parametrize("name", ["momentum", "adam-global-clipnorm", *HOOKS])
def test_a_gradient_that_is_dense_on_some_replicas_is_dense_on_all(run: Run, name: str) -> None:
    make = (OPTIMIZERS | HOOKS)[name]
    want = trace(MirroredStrategy(5), make, partly_dense)
    for got in run(lambda comm: trace(on_workers(comm, 5), make, partly_dense)):
        assert got == want


@pytest.mark.parametrize("name", ["momentum", "adam-global-clipnorm", "momentum-mean", *HOOKS])
def test_rows_that_one_replica_has_only_later_have_the_bits_of_one_process(run: Run, name: str) -> None:
    make = (OPTIMIZERS | HOOKS)[name]
    want = trace(MirroredStrategy(5), make, rows_later)
    for got in run(lambda comm: trace(on_workers(comm, 5), make, rows_later)):
        assert got == want


def test_rows_that_one_replica_has_only_later_of_a_variable_listed_twice_have_the_bits_of_one_process(run: Run) -> None:
    def body(strategy: tf.distribute.Strategy) -> bytes:
        with strategy.scope():
            table = tf.Variable(np.zeros((4, 3), np.float32))
        optimizer = tf.keras.optimizers.SGD(0.1, 0.9)

        def step(number: int) -> None:
            context = tf.distribute.get_replica_context()
            assert context is not None
            replica = context.replica_id_in_sync_group
            rows = tf.IndexedSlices(np.full((2, 3), 0.1 + replica, np.float32), np.array([1, 1]), (4, 3))
            gradient = rows if (number, replica) == (1, 2) else rows.to_dense()
            optimizer.apply_gradients([(gradient, table), (gradient, table)])

        for number in range(3):
            strategy.run(step, args=(number,))
        return bytes(table.numpy().tobytes() + optimizer.get_weights()[1].tobytes())

    want = body(MirroredStrategy(3))
    for got in run(lambda comm: body(on_workers(comm, 3))):
        assert got == want


def test_both_engines_have_the_same_bits() -> None:
    for make in (OPTIMIZERS | HOOKS).values():
        found = []
        for engine in ("compiled", "numpy"):
            set_default_engine(engine)
            found.append(trace(MirroredStrategy(3), make))
        assert found[0] == found[1]


@pytest.mark.parametrize("clipnorm", [None, 1.0])
def test_bytes_that_cross_are_those_of_the_rows_and_not_of_the_table(run: Run, clipnorm: float | None) -> None:
    replicas, width, num_rows = 4, 16, 100_000
    occurrences, distinct = 50, 7

    def body(comm: Communicator) -> int:
        strategy = on_workers(comm, replicas)
        with strategy.scope():
            table = tf.Variable(np.zeros((num_rows, width), np.float32), trainable=False)
        optimizer = tf.keras.optimizers.SGD(0.1, 0.9, clipnorm=clipnorm)

        def step() -> None:
            context = tf.distribute.get_replica_context()
            assert context is not None
            indices = context.replica_id_in_sync_group + 1000 * (np.arange(occurrences) % distinct)
            values = np.ones((occurrences, width), np.float32)
            optimizer.apply_gradients([(tf.IndexedSlices(values, indices), table)])

        strategy.run(step)
        before = comm.traffic.bytes_sent + comm.traffic.bytes_received
        strategy.run(step)
        return comm.traffic.bytes_sent + comm.traffic.bytes_received - before

    # An index and a row for each row that a replica contributes, summed where nothing can tell.
    of_replica = (occurrences if clipnorm else distinct) * (8 + width * 4)
    # Each rank hears of every replica, and tells each other rank of its own; a message has a head of some bytes.
    at_most = replicas * run.size * (of_replica + 100) + 3000 * run.size
    for num_bytes in run(body):
        assert num_bytes <= at_most < num_rows * width * 4 // 10
        assert (num_bytes > of_replica) == (run.size > 1)
