"""One training trace, any number of workers: variables and slots have the bits of one process.

Gradients differ between replicas, steps and magnitudes, so that any other order of additions would show; and they lie
in memory in several ways.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import distopt as tf
from distopt.aggregation import Aggregator, LocalSteps, Mean
from distopt.comm.communicator import Communicator
from distopt.distribute import MirroredStrategy, MultiWorkerMirroredStrategy, Strategy
from distopt.types import Array
from tests.conftest import Run
from tests.hooks import MedianOfReplicas, unit_length_before_sum
from tests.memory_layouts import LAYOUTS

STEPS = 4
SHAPES = ((70, 90), (90,), (), (5000,))
"""More than one norm block, a scalar, and a length that no number of workers divides."""


def sgd(**options: Any) -> Any:
    return tf.keras.optimizers.SGD(tf.keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.9), 0.9, **options)


def adam(**options: Any) -> Any:
    return tf.keras.optimizers.Adam(0.01, amsgrad=True, **options)


OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "sgd": sgd,
    "adam": adam,
    "nesterov-mean": lambda: tf.keras.optimizers.SGD(0.1, 0.9, nesterov=True, gradient_aggregator=Mean()),
    "global-clip": lambda: adam(global_clipnorm=0.3),
    "clip-value-and-norm": lambda: sgd(clipvalue=0.5, clipnorm=0.7),
    "median": lambda: adam(gradient_aggregator=MedianOfReplicas()),
    "whole-gradients": lambda: sgd(gradient_aggregator=unit_length_before_sum),
    "lamb": lambda: tf.keras.optimizers.Lamb(0.1, weight_decay=0.01),
    "adafactor": lambda: tf.keras.optimizers.Adafactor(0.1),
    "muon-local-clip": lambda: tf.keras.optimizers.Muon(0.1, global_clipnorm=0.3),
    "features": lambda: tf.keras.optimizers.AdamW(
        0.1, gradient_accumulation_steps=2, use_ema=True, ema_overwrite_frequency=2, clipnorm=0.4, loss_scale_factor=8.0
    ),
    "transformer": lambda: sgd(gradient_transformers=[lambda pairs: [(g * 0.5, v) for g, v in pairs]]),
}


def gradient(step: int, replica: int, shape: tuple[int, ...]) -> tf.Tensor:
    rng = np.random.default_rng([step, replica, *shape])
    values = rng.standard_normal(shape) * 10.0 ** rng.integers(-6, 3, shape)
    lay = list(LAYOUTS.values())[(step + replica) % len(LAYOUTS)]
    return tf.Tensor(lay(np.asarray(values, np.float32)))


def rows(step: int, replica: int) -> tf.IndexedSlices:
    rng = np.random.default_rng([99, step, replica])
    count = 1 + (replica + step) % 4
    return tf.IndexedSlices(rng.standard_normal((count, 3)).astype(np.float32), rng.integers(0, 6, count), (6, 3))


def trace(strategy: Strategy, make: Callable[[], Any], sparse: bool = False, aggregate: bool = True) -> list[bytes]:
    """Return the bytes of variables and slots after some steps."""
    with strategy.scope():
        variables = [tf.Variable(np.full(shape, 0.5, np.float32)) for shape in SHAPES]
        if sparse:
            variables.append(tf.Variable(np.ones((6, 3), np.float32)))
    optimizer = make()

    def replica_step(step: int) -> None:
        context = tf.distribute.get_replica_context()
        assert context is not None
        me = context.replica_id_in_sync_group
        gradients: list[Any] = [gradient(step, me if aggregate else 0, shape) for shape in SHAPES]
        if sparse:
            gradients.append(rows(step, me))
        optimizer.apply_gradients(zip(gradients, variables, strict=True), experimental_aggregate_gradients=aggregate)

    for step in range(STEPS):
        if step == STEPS - 1:
            optimizer.complete_accumulation()
        strategy.run(replica_step, args=(step,))
    return [array.tobytes() for array in (*(v.numpy() for v in variables), *optimizer.get_weights())]


def expected(replicas: int, make: Callable[[], Any], **options: bool) -> list[bytes]:
    return trace(MirroredStrategy(replicas), make, **options)


def on_workers(run: Run, replicas: int, body: Callable[[Strategy], Any]) -> list[Any]:
    def worker(comm: Communicator) -> Any:
        return body(MultiWorkerMirroredStrategy(replicas=replicas, communicator=comm))

    return run(worker)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("replicas", [2, 5, 8])
def test_training_has_the_bits_of_one_process(run: Run, replicas: int, name: str) -> None:
    make = OPTIMIZERS[name]
    want = expected(replicas, make)
    for got in on_workers(run, replicas, lambda strategy: trace(strategy, make)):
        assert got == want


@pytest.mark.parametrize("replicas", [1, 3, 8])
def test_training_with_row_sparse_gradients_has_the_bits_of_one_process(run: Run, replicas: int) -> None:
    want = expected(replicas, sgd, sparse=True)
    for got in on_workers(run, replicas, lambda strategy: trace(strategy, sgd, sparse=True)):
        assert got == want


def test_equal_unaggregated_gradients_keep_one_value(run: Run) -> None:
    want = expected(5, adam, aggregate=False)
    for got in on_workers(run, 5, lambda strategy: trace(strategy, adam, aggregate=False)):
        assert got == want


@pytest.mark.parametrize("options", [{"gradient_aggregator": LocalSteps(Mean(), every=2)}, {"aggregate": False}])
def test_gradients_that_replicas_keep_to_themselves_are_not_accumulated(run: Run, options: dict[str, Any]) -> None:
    def body(strategy: Strategy) -> None:
        with strategy.scope():
            variable = tf.Variable(np.float32(0))
        aggregate = options.get("aggregate", True)
        hooks = {"gradient_aggregator": options["gradient_aggregator"]} if aggregate else {}
        optimizer = tf.keras.optimizers.SGD(1.0, gradient_accumulation_steps=2, **hooks)

        def step() -> None:
            context = tf.distribute.get_replica_context()
            assert context is not None
            gradient = tf.Tensor(np.float32(context.replica_id_in_sync_group))
            optimizer.apply_gradients([(gradient, variable)], experimental_aggregate_gradients=aggregate)

        with pytest.raises(ValueError, match="they apply different ones without aggregating them"):
            strategy.run(step)
        assert float(variable.numpy()) == 0.0

    body(MirroredStrategy(5))
    on_workers(run, 5, body)


def test_aggregator_of_ones_own_sees_one_row_a_replica(run: Run) -> None:
    class Spread(Aggregator):
        name = "spread"

        def combine(self, contributions: Array) -> Array:
            spread: Array = contributions.max(axis=0) - contributions.min(axis=0)
            return spread

    def body(strategy: Strategy) -> float:
        variable = tf.Variable(np.float32(0))
        optimizer = tf.keras.optimizers.SGD(1.0, gradient_aggregator=Spread())

        def step() -> None:
            context = tf.distribute.get_replica_context()
            assert context is not None
            value = np.float32(context.replica_id_in_sync_group**2)
            optimizer.apply_gradients([(tf.Tensor(value), variable)])

        strategy.run(step)
        return float(variable.numpy())

    assert set(on_workers(run, 5, body)) == {-16.0}


@pytest.mark.parametrize("replicas", [1, 3, 5])
def test_reduce_of_uneven_batches_is_the_same_everywhere(run: Run, replicas: int) -> None:
    data = np.random.default_rng(7).standard_normal((11, 3)).astype(np.float32)

    def body(strategy: Strategy) -> tuple[bytes, bytes, int]:
        (batch,) = strategy.experimental_distribute_dataset(tf.data.Dataset.from_tensor_slices(data).batch(11))
        total = strategy.reduce("SUM", batch, axis=0)
        mean = strategy.reduce("MEAN", batch, axis=0)
        counts = strategy.run(lambda x: tf.Tensor(np.asarray(len(x), np.int64)), args=(batch,))
        return total.numpy().tobytes(), mean.numpy().tobytes(), int(strategy.reduce("SUM", counts, axis=None))

    want = body(MirroredStrategy(replicas))
    np.testing.assert_allclose(np.frombuffer(want[0], np.float32), data.sum(axis=0), rtol=1e-5)
    np.testing.assert_allclose(np.frombuffer(want[1], np.float32), data.mean(axis=0), rtol=1e-5)
    assert want[2] == 11
    for got in on_workers(run, replicas, body):
        assert got == want


def test_trainable_variables_start_with_the_value_of_rank_0(run: Run) -> None:
    def worker(comm: Communicator) -> list[float]:
        strategy = MultiWorkerMirroredStrategy(replicas=comm.size, communicator=comm)
        with strategy.scope():
            mine = tf.Variable(np.float32([comm.rank + 1.5]))
            outside_of_training = tf.Variable(np.float32([comm.rank]), trainable=False)
        return [float(mine.numpy()[0]), float(outside_of_training.numpy()[0]) - comm.rank]

    assert run(worker) == [[1.5, 0.0]] * len(run(worker))


def test_callable_hypers_are_those_of_the_host_of_replica_0(run: Run) -> None:
    def body(strategy: Strategy) -> float:
        variable = tf.Variable(np.float32(0))
        optimizer = tf.keras.optimizers.SGD(lambda: 1.0 + strategy.extended.rank)
        strategy.run(lambda: optimizer.apply_gradients([(tf.Tensor(np.float32(1)), variable)]))
        return float(variable.numpy())

    assert set(on_workers(run, 5, body)) == {-5.0}


def test_aggregated_assignment_reaches_workers_without_replicas(run: Run) -> None:
    def body(strategy: Strategy) -> float:
        variable = tf.Variable(np.float32(0), aggregation=tf.VariableAggregation.SUM)

        def step() -> None:
            context = tf.distribute.get_replica_context()
            assert context is not None
            variable.assign_add(tf.Tensor(np.float32(context.replica_id_in_sync_group + 1)))

        strategy.run(step)
        return float(variable.numpy())

    assert set(on_workers(run, 2, body)) == {3.0}
    assert set(on_workers(run, 1, body)) == {1.0}


def test_reduce_of_what_is_equal_everywhere_takes_part_on_every_worker(run: Run) -> None:
    def body(strategy: Strategy) -> float:
        return float(strategy.reduce("MEAN", strategy.run(lambda: 7), axis=None))

    assert set(on_workers(run, 3, body)) == {7.0}
