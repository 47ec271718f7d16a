"""Variables made in ``strategy.run``: one for all replicas, as TensorFlow 2.21 has it; what it mixes up is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import distopt as tf
from distopt.comm.communicator import Communicator, Hosting
from distopt.distribute import MirroredStrategy
from distopt.distribute.creations import LONG_BYTES
from distopt.distribute.strategy import Strategy
from distopt.errors import MergeOrderError, VariablePerReplicaError
from distopt.testing import run_replicas


def replica_id() -> int:
    context = tf.distribute.get_replica_context()
    assert context is not None
    return int(context.replica_id_in_sync_group)


@pytest.mark.parametrize("num_replicas", [1, 2, 3, 5, 8])
def test_variable_made_by_every_replica_is_one_with_the_value_of_the_first(num_replicas: int) -> None:
    strategy, asked = MirroredStrategy(num_replicas), []

    def initial_value() -> Any:
        asked.append(replica_id())
        return np.float32([1.0, 2.0])

    def replica() -> tuple[Any, Any, Any]:
        first = tf.Variable(initial_value)
        context = tf.distribute.get_replica_context()
        assert context is not None
        context.all_reduce("SUM", np.float32(1.0))
        return first, tf.Variable(10.0 + replica_id(), name="second"), tf.Variable(float(replica_id()))

    first, second, third = strategy.run(replica)
    assert all(isinstance(v, tf.Variable) for v in (first, second, third))  # the same object on all replicas
    assert asked == [0]
    assert (first.numpy().tolist(), float(second), float(third)) == ([1.0, 2.0], 10.0, 0.0)
    assert first.strategy is strategy


def test_layers_and_optimizers_made_in_replicas_train_one_model() -> None:
    rows = np.float32([[1, 2, 3], [4, 5, 6], [7, 8, 10], [2, 1, 0]])

    def trained(make_inside: bool) -> list[Any]:
        tf.random.set_seed(3)
        strategy, made = MirroredStrategy(2), {}

        def make(key: Any) -> None:
            made[key] = tf.keras.layers.Dense(2, name="layer"), tf.keras.optimizers.SGD(0.1, momentum=0.9)

        def step() -> None:
            key = replica_id() if make_inside else 0
            if key not in made:
                make(key)
            layer, optimizer = made[key]
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(layer(rows[2 * replica_id() :][:2]))
            variables = layer.trainable_variables
            optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))

        for _ in range(3):
            strategy.run(step)
        assert [int(optimizer.iterations) for _, optimizer in made.values()] == [3] * len(made)
        assert all(a is b for layer, _ in made.values() for a, b in zip(layer.weights, made[0][0].weights, strict=True))
        assert len({id(optimizer.weights[1]) for _, optimizer in made.values()}) == 1
        return [*made[0][0].get_weights(), *made[0][1].get_weights(), tf.random.normal([3]).numpy()]

    for inside, outside in zip(trained(True), trained(False), strict=True):
        np.testing.assert_array_equal(inside, outside)


def test_variable_that_only_the_first_replica_makes_is_found_by_the_others() -> None:
    strategy, kept = MirroredStrategy(3), {}

    def replica() -> Any:
        if "v" not in kept:
            kept["v"] = tf.Variable(5.0)
        return kept["v"], tf.Variable(7.0, name="another")

    first, another = strategy.run(replica)
    assert (float(first), float(another)) == (5.0, 7.0)
    again, new = strategy.run(replica)
    assert again is first
    assert new is not another  # each run makes its own, as without a strategy


def test_on_read_variable_and_metric_made_in_replicas_add_up_over_them() -> None:
    strategy = MirroredStrategy(3)

    def replica() -> Any:
        summed = tf.Variable(
            0.0, synchronization=tf.VariableSynchronization.ON_READ, aggregation=tf.VariableAggregation.SUM
        )
        summed.assign_add(tf.constant(1.0 + replica_id()))
        mean = tf.keras.metrics.Mean()
        mean.update_state(float(replica_id()))
        return summed, mean.total, mean.count

    summed, total, count = strategy.run(replica)
    assert (float(summed), float(total), float(count)) == (6.0, 3.0, 3.0)


def other(first: Any, second: Any) -> Any:
    return first if replica_id() == 0 else second


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tf.Variable(np.zeros(1 + replica_id())), r"'Variable' with shape \[2\], replica 0 with shape \[1\]"),
        (lambda: tf.Variable(0.0, dtype=other("float32", "float64")), "with dtype float64, replica 0 .* float32"),
        (lambda: tf.Variable(0.0, name=f"v{replica_id()}"), "'v1' in `strategy.run` where replica 0 makes none"),
        (lambda: tf.Variable(0.0, trainable=other(False, True)), "with trainable True, replica 0 with trainable False"),
        (
            lambda: tf.Variable(0.0, aggregation=other(tf.VariableAggregation.SUM, tf.VariableAggregation.MEAN)),
            "aggregation VariableAggregation.MEAN",
        ),
        (
            lambda: tf.keras.layers.Dense(2 + replica_id())(np.ones((1, 3))),
            r"'dense_\d*/kernel' with shape",
        ),
        (lambda: [tf.Variable(0.0) for _ in range(2 - replica_id())], "made 1 of the 2 variables named 'Variable'"),
        (lambda: [tf.Variable(0.0) for _ in range(1 + replica_id())], "makes none of that name"),
    ],
)
def test_replicas_that_make_different_variables_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(VariablePerReplicaError, match=message):
        MirroredStrategy(2).run(make)


def test_part_of_what_the_first_replica_made_is_refused_before_a_step_is_made_with_it() -> None:
    strategy, kept = MirroredStrategy(2), {}
    optimizer = tf.keras.optimizers.SGD(1.0)

    def replica() -> None:
        if "v" not in kept:
            kept["v"] = tf.Variable(5.0)
        unnamed = tf.Variable(7.0)  # on replica 1, TensorFlow takes the one above for it
        optimizer.apply_gradients([(np.float32(1.0), unnamed)])

    with pytest.raises(VariablePerReplicaError, match="which is which is not known"):
        strategy.run(replica)
    assert float(kept["v"]) == 5.0


def test_hypers_read_by_one_replica_alone_are_made_for_it() -> None:
    optimizer = tf.keras.optimizers.SGD(0.25)
    seen = MirroredStrategy(2).run(lambda: float(optimizer.learning_rate) if replica_id() == 1 else None)
    assert seen.values == (None, 0.25)


@pytest.mark.parametrize("num_processes", [2, 3])
def test_variables_made_in_replicas_of_several_processes_have_one_value(num_processes: int) -> None:
    def process(comm: Communicator) -> Any:
        strategy = Strategy(Hosting.contiguous(3, num_processes), comm.rank, comm)
        made = strategy.run(lambda: tf.Variable(np.float32([1.0, 2.0]) + replica_id(), name="v"))
        return made.numpy().tolist()

    assert run_replicas(process, num_processes) == [[1.0, 2.0]] * num_processes


@pytest.mark.parametrize("shape", [(3, 5), (3, LONG_BYTES // 12), (3, LONG_BYTES // 12 + 1)])
def test_processes_begin_with_the_values_of_the_first_however_long(shape: tuple[int, int]) -> None:
    def process(comm: Communicator) -> Any:
        strategy = Strategy(Hosting.contiguous(3, 3), comm.rank, comm)
        with strategy.scope():
            made = tf.Variable(np.full(shape, comm.rank + 1.5, np.float32), name="v")
        return made.shape, np.unique(made.numpy()).tolist()

    assert run_replicas(process, 3) == [(shape, [1.5])] * 3


@pytest.mark.parametrize("odd", [0, 1, 2])
def test_process_that_makes_another_variable_than_most_is_the_one_that_is_named_on_all(odd: int) -> None:
    most = next(rank for rank in range(3) if rank != odd)

    def process(comm: Communicator) -> str:
        strategy = Strategy(Hosting.contiguous(3, 3), comm.rank, comm)
        with strategy.scope(), pytest.raises(VariablePerReplicaError) as raised:
            tf.Variable(np.zeros(1 + (comm.rank == odd), np.float32), name="v")
        return str(raised.value)

    for message in run_replicas(process, 3):
        assert message.startswith(
            f"rank {most} (as 2 of 3) makes the variable v:0 float32[1] "
            f"where rank {odd} makes the variable v:0 float32[2];"
        )


@pytest.mark.parametrize("odd", [0, 2])
def test_process_that_makes_one_variable_more_is_named_on_all_with_what_the_others_do(odd: int) -> None:
    most = next(rank for rank in range(3) if rank != odd)

    def process(comm: Communicator) -> str:
        strategy = Strategy(Hosting.contiguous(3, 3), comm.rank, comm)
        with strategy.scope():
            variable = tf.Variable(np.zeros(1, np.float32), name="v")
            optimizer = tf.keras.optimizers.SGD(0.1)
        gradient = np.ones(1, np.float32)

        def step() -> None:
            if comm.rank == odd:
                tf.Variable(np.zeros(1, np.float32), name="extra")
            optimizer.apply_gradients([(gradient, variable)])

        with pytest.raises(MergeOrderError) as raised:
            strategy.run(step)
        return str(raised.value)

    for message in run_replicas(process, 3):
        assert message.startswith(
            f"rank {most} (as 2 of 3) makes its first apply call for v:0 "
            f"where rank {odd} makes the variable extra:0 float32[1];"
        )
