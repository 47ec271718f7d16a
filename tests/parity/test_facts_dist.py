"""Facts of topic ``dist``: contexts, reductions, assignments and updates under a strategy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import distopt as tf
from distopt.clipping import clip_by_norm
from distopt.distribute import MirroredStrategy, PerReplica
from tests.parity.facts import fact

Aggregation = tf.VariableAggregation
ON_READ = tf.VariableSynchronization.ON_READ


@pytest.fixture
def strategy() -> MirroredStrategy:
    return MirroredStrategy(["/cpu:0", "/cpu:1"])


def float32(values: Any) -> tf.Tensor:
    return tf.Tensor(np.asarray(values, np.float32))


def context() -> Any:
    return tf.distribute.get_replica_context()


def replica_id() -> int:
    return int(context().replica_id_in_sync_group)


def local(strategy: MirroredStrategy, value: Any) -> list[Any]:
    return [np.asarray(component).tolist() for component in strategy.experimental_local_results(value)]


def refusal(call: Any) -> str:
    """Return the name of the built-in error that ``call`` raises; our own errors are subclasses of those."""
    with pytest.raises((RuntimeError, ValueError, TypeError)) as caught:
        call()
    return next(base.__name__ for base in type(caught.value).__mro__ if base.__module__ == "builtins")


def test_contexts_are_those_of_the_table(strategy: MirroredStrategy) -> None:
    found: list[Any] = [tf.distribute.get_strategy().num_replicas_in_sync, strategy.num_replicas_in_sync]
    outside = tf.distribute.has_strategy(), tf.distribute.in_cross_replica_context()
    with strategy.scope():
        assert tf.distribute.get_strategy() is strategy
        found += [outside[0], tf.distribute.has_strategy(), outside[1], tf.distribute.in_cross_replica_context()]
        found.append(tf.distribute.get_replica_context() is None)
    assert found == fact("F095")["result"]
    assert local(strategy, strategy.run(tf.distribute.in_cross_replica_context)) == [False]


def applied(strategy: MirroredStrategy, optimizer: Any, first: Any, **options: bool) -> tf.Variable:
    """Return a variable to which replica r applied ``first * (r + 1)``."""
    with strategy.scope():
        variable = tf.Variable(np.zeros(2, np.float32))
    gradient = np.asarray(first, np.float32)
    strategy.run(lambda: optimizer.apply_gradients([(float32(gradient * (1 + replica_id())), variable)], **options))
    return variable


def test_apply_gradients_sums_over_replicas_and_counts_one_step(strategy: MirroredStrategy) -> None:
    expected = fact("F096")["result"]
    optimizer = tf.keras.optimizers.SGD(1.0)
    assert applied(strategy, optimizer, [1.0, 1.0]).numpy().tolist() == expected[0]
    v1 = tf.compat.v1.train.GradientDescentOptimizer(1.0)
    assert applied(strategy, v1, [1.0, 1.0]).numpy().tolist() == expected[1]
    assert int(optimizer.iterations.numpy()) == expected[3]


def test_apply_gradients_without_aggregation_lets_copies_diverge(strategy: MirroredStrategy) -> None:
    optimizer = tf.keras.optimizers.SGD(1.0)
    variable = applied(strategy, optimizer, [1.0, 1.0], experimental_aggregate_gradients=False)
    v1 = tf.compat.v1.train.GradientDescentOptimizer(1.0)
    variable_v1 = applied(strategy, v1, [1.0, 1.0], skip_gradients_aggregation=True)
    assert [local(strategy, variable), local(strategy, variable_v1)] == fact("F097")["result"]


def test_clipnorm_clips_the_sum(strategy: MirroredStrategy) -> None:
    variable = applied(strategy, tf.keras.optimizers.SGD(1.0, clipnorm=1.0), [3.0, 4.0])
    np.testing.assert_allclose(variable.numpy(), fact("F098")["result"], rtol=1e-6)


def test_clip_in_the_stage_before_the_aggregator_clips_what_each_replica_has(strategy: MirroredStrategy) -> None:
    class ClipsFirst(tf.keras.optimizers.SGD):
        def _transform_unaggregated_gradients(self, grads_and_vars: Any) -> Any:
            return [(clip_by_norm(gradient, 1.0), variable) for gradient, variable in grads_and_vars]

    after, before = fact("F099")["result"]
    clips_after = applied(strategy, tf.keras.optimizers.SGD(1.0, clipnorm=1.0), [3.0, 4.0])
    np.testing.assert_allclose(clips_after.numpy(), after, rtol=1e-6)
    np.testing.assert_allclose(applied(strategy, ClipsFirst(1.0), [3.0, 4.0]).numpy(), before, rtol=1e-6)


def test_row_sparse_gradients_of_replicas_are_concatenated_then_summed(strategy: MirroredStrategy) -> None:
    with strategy.scope():
        variable = tf.Variable(np.zeros((3, 1), np.float32))
        optimizer = tf.keras.optimizers.legacy.Adagrad(1.0)

    def step() -> None:
        rows = tf.IndexedSlices(np.float32([[1], [2]]), [[0, 0], [0, 1]][replica_id()], (3, 1))
        optimizer.apply_gradients([(rows, variable)])

    strategy.run(step)
    found = [variable.numpy(), optimizer.get_slot(variable, "accumulator").numpy()]
    np.testing.assert_allclose(found, fact("F100")["result"], rtol=1e-6)


def test_calls_from_the_wrong_side_are_refused(strategy: MirroredStrategy) -> None:
    variable = tf.Variable(np.zeros(1, np.float32))
    optimizer = tf.keras.optimizers.SGD(1.0)

    def apply_in_scope(optimizer: Any = optimizer) -> None:
        with strategy.scope():
            optimizer.apply_gradients([(float32([1.0]), variable)])

    def nested_scopes() -> None:
        with strategy.scope(), MirroredStrategy(1).scope():
            pass

    def unequal_merges() -> None:
        if replica_id() == 0:
            context().merge_call(lambda _: None)

    legacy, v1, reduce, args, nested, merges = fact("F101")["result"]
    assert refusal(apply_in_scope) == legacy
    assert refusal(lambda: apply_in_scope(tf.compat.v1.train.GradientDescentOptimizer(1.0))) == v1
    assert refusal(lambda: strategy.run(lambda: strategy.reduce("SUM", 1.0, axis=None))) == reduce
    assert refusal(lambda: strategy.run(lambda x: x, args=3)) == args  # type: ignore[arg-type]  # the mistake under test
    assert refusal(nested_scopes) == nested
    assert refusal(lambda: strategy.run(unequal_merges)) == merges


def test_reduce_without_axis_is_over_replicas(strategy: MirroredStrategy) -> None:
    value = strategy.run(lambda: float32(1.0 + replica_id()))
    found: list[Any] = [float(strategy.reduce(operation, value, axis=None)) for operation in ("SUM", "mean")]
    found.append(strategy.reduce(tf.distribute.ReduceOp.MEAN, 3.0, axis=None))
    found.append(refusal(lambda: strategy.reduce("SUM", 3.0, axis=None)))
    assert found == fact("F102")["result"]


def test_reduce_along_an_axis_is_the_true_mean_and_gather_keeps_replica_order(strategy: MirroredStrategy) -> None:
    value = PerReplica([float32([[1, 2], [3, 4]]), float32([[10, 20]])])
    expected = fact("F103")["result"]
    assert strategy.reduce("SUM", value, axis=0).numpy().tolist() == expected[0]
    np.testing.assert_array_equal(strategy.reduce("MEAN", value, axis=0).numpy(), np.float32(expected[1]))
    assert strategy.gather(value, axis=0).numpy().tolist() == expected[2]


def test_all_reduce_in_a_replica_and_its_gradient(strategy: MirroredStrategy) -> None:
    def step() -> tuple[tf.Tensor, ...]:
        x = float32(1.0 + replica_id())
        with tf.GradientTape() as tape:
            tape.watch(x)
            total = context().all_reduce("SUM", x * x)
        return context().all_reduce("SUM", x), context().all_reduce("MEAN", x), tape.gradient(total, x)

    assert [local(strategy, each) for each in strategy.run(step)] == fact("F104")["result"]


def test_assignment_in_a_replica_follows_the_aggregation(strategy: MirroredStrategy) -> None:
    found: list[Any] = []
    members = (Aggregation.SUM, Aggregation.MEAN, Aggregation.ONLY_FIRST_REPLICA, Aggregation.NONE)
    for aggregation in members:
        with strategy.scope():
            variable = tf.Variable(np.float32(0), aggregation=aggregation)
        strategy.run(lambda variable=variable: variable.assign(float32(1.0 + replica_id())))
        found.append(local(strategy, variable))
    with strategy.scope():
        summed = tf.Variable(np.float32(0), aggregation=Aggregation.SUM)
    found.append(refusal(lambda: strategy.run(lambda: summed.assign(7.0))))
    assert found == fact("F105")["result"]


def test_on_read_variable_sums_when_it_is_read_outside_of_replicas(strategy: MirroredStrategy) -> None:
    def made(aggregation: tf.VariableAggregation) -> tf.Variable:
        with strategy.scope():
            variable = tf.Variable(np.float32(0), synchronization=ON_READ, aggregation=aggregation)
        strategy.run(lambda: variable.assign_add(float32(1.0 + replica_id())))
        return variable

    found: list[Any] = [
        float(made(aggregation).numpy())
        for aggregation in (Aggregation.SUM, Aggregation.MEAN, Aggregation.ONLY_FIRST_REPLICA)
    ]
    found.append(refusal(made(Aggregation.NONE).numpy))
    summed = made(Aggregation.SUM)
    summed.assign(10.0)
    found.append(local(strategy, summed))
    found.append(refusal(lambda: summed.assign_add(1.0)))
    assert found == fact("F106")["result"]


def test_run_unwraps_what_is_the_same_object_everywhere(strategy: MirroredStrategy) -> None:
    ids = strategy.run(lambda: float32(replica_id()))
    mixed = strategy.run(lambda: {"id": float32(replica_id()), "five": 5})
    found = [type(ids).__name__, local(strategy, ids), strategy.run(lambda: 3), strategy.run(lambda: None)]
    assert [*found, type(mixed["id"]).__name__, mixed["five"]] == fact("F107")["result"]
