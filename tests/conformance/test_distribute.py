"""What replicas exchange, and what their variables hold, is the same over every transport as in one process.

A body returns what its process's replicas saw, by replica id; of a process that hosts none, that is nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import distopt as tf
from distopt.comm.communicator import Communicator
from distopt.distribute import (
    InputContext,
    InputOptions,
    InputReplicationMode,
    MirroredStrategy,
    MultiWorkerMirroredStrategy,
    Strategy,
    SyncParameterServerStrategy,
)
from distopt.nest import map_structure
from tests.conftest import RunReplicas

Seen = dict[int, Any]
Body = Callable[[Strategy], Seen]


def plain(value: Any) -> Any:
    """Return ``value`` with tensors as lists, so that it can be compared bit by bit."""
    if isinstance(value, tf.IndexedSlices):
        return ("rows", value.values.numpy().tolist(), value.indices.tolist(), value.dense_shape)
    if isinstance(value, tf.Tensor | tf.Variable | np.ndarray):
        return (np.asarray(value).dtype.name, np.asarray(value).tolist())
    return value


def by_replica(strategy: Strategy, value: Any) -> Seen:
    local = strategy.experimental_local_results(value)
    return {r: map_structure(plain, each) for r, each in zip(strategy.extended.hosted, local, strict=True)}


def each_replica(step: Callable[[Any], Any]) -> Body:
    """Return a body that runs ``step(replica context)``."""

    def body(strategy: Strategy) -> Seen:
        # A tuple keeps results apart that are the same object on all replicas.
        results = strategy.run(lambda: _Boxed(step(tf.distribute.get_replica_context())))
        local = strategy.experimental_local_results(results)
        return {r: map_structure(plain, box.value) for r, box in zip(strategy.extended.hosted, local, strict=True)}

    return body


class _Boxed:
    def __init__(self, value: Any) -> None:
        self.value = value


def strategy_over(comm: Communicator, replicas: int) -> Strategy:
    if hasattr(comm, "num_servers"):
        return SyncParameterServerStrategy(comm, replicas=replicas, placement="replica")
    return MultiWorkerMirroredStrategy(replicas=replicas, communicator=comm)


def assert_same_everywhere(run: RunReplicas, replicas: int, body: Body) -> Seen:
    want = body(MirroredStrategy(replicas))
    assert sorted(want) == list(range(replicas))
    for seen in run(lambda comm: body(strategy_over(comm, replicas)), replicas):
        assert seen == {r: want[r] for r in seen}
    return want


def values_of(replica: int, *shape: int) -> Any:
    rng = np.random.default_rng([replica, *shape])
    return tf.Tensor(np.asarray(rng.standard_normal(shape) * 10.0 ** rng.integers(-6, 3, shape), np.float32))


@pytest.mark.parametrize("operation", ["SUM", "MEAN"])
@pytest.mark.parametrize("replicas", [1, 3, 5])
def test_all_reduce_of_a_structure(run_everywhere: RunReplicas, replicas: int, operation: str) -> None:
    def step(context: Any) -> Any:
        me = context.replica_id_in_sync_group
        rows = tf.IndexedSlices(values_of(me, me + 1, 2), [7] * me + [me], (9, 2))
        value = {"dense": [values_of(me, 4, 3), np.float64(me + 0.5)], "rows": rows, "count": np.int64(me)}
        return context.all_reduce(operation, value)

    seen = assert_same_everywhere(run_everywhere, replicas, each_replica(step))
    kind, values, indices, shape = seen[0]["rows"]
    assert kind == "rows"
    assert indices == [i for me in range(replicas) for i in [7] * me + [me]], "duplicates are kept, in replica order"
    assert shape == (9, 2)
    stored = np.concatenate([values_of(me, me + 1, 2).numpy() for me in range(replicas)])
    np.testing.assert_array_equal(np.float32(values), stored / np.float32(replicas if operation == "MEAN" else 1))


def rows_of(replica: int, *, known_length: bool = True) -> tf.IndexedSlices:
    shape = (9, 2) if known_length else None
    return tf.IndexedSlices(values_of(replica, replica + 1, 2), [7] * replica + [replica], shape)


@pytest.mark.parametrize("operation", ["SUM", "MEAN"])
@pytest.mark.parametrize("dense", ["first", "last", "middle", "all but one"])
def test_all_reduce_of_rows_that_are_dense_on_some_replicas_is_dense_everywhere(
    run_everywhere: RunReplicas, dense: str, operation: str
) -> None:
    are_dense = {"first": {0}, "last": {4}, "middle": {2}, "all but one": {0, 2, 3, 4}}[dense]

    def step(context: Any) -> Any:
        me = context.replica_id_in_sync_group
        mixed = values_of(me, 9, 2) if me in are_dense else rows_of(me)
        whole = tf.IndexedSlices(np.int32([[me, 1]]), [me], (9, 2))
        counts = np.ones((9, 2), np.int32) if me in are_dense else whole
        found = [context.all_reduce(operation, value) for value in (mixed, {"a": rows_of(me), "b": mixed}, counts)]
        # Rows everywhere, then again as before; and of a table of unknown length.
        found += [context.all_reduce(operation, value) for value in (rows_of(me), mixed)]
        return [*found, context.all_reduce(operation, rows_of(me, known_length=False))]

    seen = assert_same_everywhere(run_everywhere, 5, each_replica(step))
    first, nested, counts, rows, again, unknown = seen[0]
    values = [values_of(r, 9, 2).numpy() if r in are_dense else rows_of(r).to_dense() for r in range(5)]
    total = ((values[0] + values[1]) + (values[2] + values[3])) + values[4]
    np.testing.assert_array_equal(np.float32(first[1]), total / np.float32(5) if operation == "MEAN" else total)
    assert counts[0] == ("float64" if operation == "MEAN" else "int32")
    assert first == again == nested["b"]
    assert rows == nested["a"]
    assert unknown == (*rows[:3], None)


def test_values_that_are_dense_for_a_while_may_become_rows(run_everywhere: RunReplicas) -> None:
    def body(strategy: Strategy) -> Seen:
        seen: Seen = {r: [] for r in strategy.extended.hosted}
        for step in range(6):

            def replica(step: int = step) -> Any:
                context = tf.distribute.get_replica_context()
                assert context is not None
                me = context.replica_id_in_sync_group
                return _Boxed(context.all_reduce("SUM", rows_of(me) if me < step - 1 else values_of(me, 9, 2)))

            local = strategy.experimental_local_results(strategy.run(replica))
            for r, box in zip(strategy.extended.hosted, local, strict=True):
                seen[r].append(plain(box.value))
        return seen

    seen = assert_same_everywhere(run_everywhere, 3, body)
    assert [value[0] for value in seen[0]] == ["float32"] * 4 + ["rows"] * 2


@pytest.mark.parametrize(
    ("value", "match"), [(None, "zeros"), ("a", "zeros"), ([None, 1.0], "zeros"), (np.ones(2, np.bool_), "integers")]
)
def test_what_cannot_be_added_is_refused_before_anything_is_exchanged(
    run_everywhere: RunReplicas, value: Any, match: str
) -> None:
    def body(strategy: Strategy) -> Seen:
        with pytest.raises(TypeError, match=match):
            each_replica(lambda context: context.all_reduce("SUM", value))(strategy)
        return each_replica(lambda context: float(context.all_reduce("SUM", 1.0)))(strategy)

    assert assert_same_everywhere(run_everywhere, 3, body) == dict.fromkeys(range(3), 3.0)


@pytest.mark.parametrize("replicas", [1, 3, 5])
def test_gathered_values_of_uneven_lengths_and_their_gradient(run_everywhere: RunReplicas, replicas: int) -> None:
    def step(context: Any) -> Any:
        me = context.replica_id_in_sync_group
        x = values_of(me, 2, me)
        with tf.GradientTape() as tape:
            tape.watch(x)
            everything = context.all_gather(x * x, axis=1)
            loss = tf.reduce_sum(everything * float(me + 1))
        return everything, tape.gradient(loss, x)

    seen = assert_same_everywhere(run_everywhere, replicas, each_replica(step))
    factor = sum(range(1, replicas + 1))
    for me in range(replicas):
        everything, gradient = seen[me]
        want = np.concatenate([values_of(r, 2, r).numpy() ** 2 for r in range(replicas)], axis=1)
        np.testing.assert_array_equal(np.float32(everything[1]), want)
        np.testing.assert_allclose(gradient[1], 2 * factor * values_of(me, 2, me).numpy(), rtol=1e-6)


@pytest.mark.parametrize("replicas", [1, 3, 5])
def test_gather_keeps_the_order_of_replicas(run_everywhere: RunReplicas, replicas: int) -> None:
    data = np.arange(22, dtype=np.float32).reshape(11, 2)

    def body(strategy: Strategy) -> Seen:
        dataset = tf.data.Dataset.from_tensor_slices(data).batch(11)
        (batch,) = strategy.experimental_distribute_dataset(dataset)
        return dict.fromkeys(strategy.extended.hosted, strategy.gather(batch, axis=0).numpy().tolist())

    assert assert_same_everywhere(run_everywhere, replicas, body)[0] == data.tolist()


AGGREGATIONS = [tf.VariableAggregation.SUM, tf.VariableAggregation.MEAN, tf.VariableAggregation.ONLY_FIRST_REPLICA]


@pytest.mark.parametrize("aggregation", AGGREGATIONS, ids=lambda a: a.name)
@pytest.mark.parametrize("replicas", [1, 3, 5])
def test_on_read_variable(run_everywhere: RunReplicas, replicas: int, aggregation: tf.VariableAggregation) -> None:
    def body(strategy: Strategy) -> Seen:
        with strategy.scope():
            variable = tf.Variable(
                np.zeros(3, np.float32),
                synchronization=tf.VariableSynchronization.ON_READ,
                aggregation=aggregation,
            )

        def step() -> None:
            context = tf.distribute.get_replica_context()
            assert context is not None
            variable.assign_add(values_of(context.replica_id_in_sync_group, 3))

        strategy.run(step)
        read, own = plain(variable), by_replica(strategy, variable)
        variable.assign([3.0, 1.0, 0.3])
        return {r: (read, own[r], by_replica(strategy, variable)[r]) for r in own}

    assert_same_everywhere(run_everywhere, replicas, body)


@pytest.mark.parametrize("aggregation", AGGREGATIONS, ids=lambda a: a.name)
@pytest.mark.parametrize("replicas", [1, 3, 5])
def test_mirrored_variable_written_in_replicas(
    run_everywhere: RunReplicas, replicas: int, aggregation: tf.VariableAggregation
) -> None:
    def body(strategy: Strategy) -> Seen:
        with strategy.scope():
            whole = tf.Variable(np.ones(3, np.float32), aggregation=aggregation)
            rows = tf.Variable(np.ones((4, 2), np.float32), aggregation=aggregation)

        def step() -> None:
            context = tf.distribute.get_replica_context()
            assert context is not None
            me = context.replica_id_in_sync_group
            whole.assign_sub(values_of(me, 3))
            rows.scatter_add(tf.IndexedSlices(values_of(me, 2, 2), [me % 4, 1], (4, 2)))

        strategy.run(step)
        return {r: (plain(whole), plain(rows)) for r in strategy.extended.hosted}

    assert_same_everywhere(run_everywhere, replicas, body)


@pytest.mark.parametrize("replicas", [1, 3, 5])
def test_update_runs_on_every_copy(run_everywhere: RunReplicas, replicas: int) -> None:
    def body(strategy: Strategy) -> Seen:
        with strategy.scope():
            variable = tf.Variable(np.zeros(2, np.float32))
        own = strategy.experimental_distribute_values_from_function(lambda c: values_of(c.replica_id_in_sync_group, 2))
        alike = strategy.extended.reduce_to("SUM", own, variable)
        strategy.extended.update(variable, lambda copy, value: copy.assign_add(value), args=(alike,))
        assert not variable.is_split, "copies that are alike are one value"
        strategy.extended.update(variable, lambda copy, value: copy.assign_sub(value), args=(own,))
        return by_replica(strategy, variable)

    assert_same_everywhere(run_everywhere, replicas, body)


@pytest.mark.parametrize("replicas", [1, 3, 5])
def test_dataset_a_replica_does_not_depend_on_who_hosts_it(run_everywhere: RunReplicas, replicas: int) -> None:
    def dataset(context: InputContext) -> tf.data.Dataset:
        mine = tf.data.Dataset.range(20).shard(context.num_input_pipelines, context.input_pipeline_id)
        return mine.take(2 + context.input_pipeline_id).batch(2)

    def body(strategy: Strategy) -> Seen:
        options = InputOptions(experimental_replication_mode=InputReplicationMode.PER_REPLICA)
        seen: Seen = {r: [] for r in strategy.extended.hosted}
        for batch in strategy.distribute_datasets_from_function(dataset, options):
            for r, part in by_replica(strategy, batch).items():
                seen[r].append(part)
        return seen

    seen = assert_same_everywhere(run_everywhere, replicas, body)
    lengths = {len(parts) for parts in seen.values()}
    assert len(lengths) == 1, "all replicas make the same number of steps"
