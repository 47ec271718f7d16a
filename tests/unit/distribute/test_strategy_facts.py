"""What TensorFlow's strategies do, as facts: the numbers are those that TensorFlow 2.21 computed (F095 to F113)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import distopt as tf
from distopt.distribute import MirroredStrategy, PerReplica
from distopt.errors import ReplicaContextError


@pytest.fixture
def strategy() -> MirroredStrategy:
    return MirroredStrategy(["/cpu:0", "/cpu:1"])


def float32(values: Any) -> tf.Tensor:
    return tf.Tensor(np.asarray(values, np.float32))


def replica_id() -> int:
    context = tf.distribute.get_replica_context()
    assert context is not None
    return context.replica_id_in_sync_group


def copies(variable: tf.Variable) -> list[list[float]]:
    if not variable.is_split:
        return [variable.numpy().tolist()] * 2
    return [variable.copy_of(0).tolist(), variable.copy_of(1).tolist()]


def test_contexts_are_those_of_the_table(strategy: MirroredStrategy) -> None:
    """F095."""
    assert (tf.distribute.get_strategy().num_replicas_in_sync, strategy.num_replicas_in_sync) == (1, 2)
    assert not tf.distribute.has_strategy()
    assert not tf.distribute.in_cross_replica_context()
    with strategy.scope():
        assert tf.distribute.has_strategy()
        assert tf.distribute.in_cross_replica_context()
        assert tf.distribute.get_replica_context() is None
        assert tf.distribute.get_strategy() is strategy
    assert strategy.experimental_local_results(strategy.run(tf.distribute.in_cross_replica_context)) == (False,)


def test_apply_gradients_sums_over_replicas_and_counts_one_step(strategy: MirroredStrategy) -> None:
    """F096."""
    variable = tf.Variable(np.zeros(2, np.float32))
    optimizer = tf.keras.optimizers.SGD(1.0)
    strategy.run(lambda: optimizer.apply_gradients([(float32([1.0 + replica_id()] * 2), variable)]))
    assert variable.numpy().tolist() == [-3.0, -3.0]
    assert int(optimizer.iterations.numpy()) == 1


def test_apply_gradients_without_aggregation_lets_copies_diverge(strategy: MirroredStrategy) -> None:
    """F097, and slots go with the copies."""
    variable = tf.Variable(np.zeros(2, np.float32))
    optimizer = tf.keras.optimizers.SGD(1.0, momentum=0.5)

    def step() -> None:
        pairs = [(float32([1.0 + replica_id()] * 2), variable)]
        optimizer.apply_gradients(pairs, experimental_aggregate_gradients=False)

    strategy.run(step)
    assert copies(variable) == [[-1.0, -1.0], [-2.0, -2.0]]
    strategy.run(step)
    assert copies(variable) == [[-2.5, -2.5], [-5.0, -5.0]]
    assert copies(optimizer.get_slot(variable, "momentum")) == [[-1.5, -1.5], [-3.0, -3.0]]
    assert int(optimizer.iterations.numpy()) == 2
    read = strategy.run(lambda: float(variable[0]))
    assert strategy.experimental_local_results(read) == (-2.5, -5.0)


def test_gradients_reduced_by_hand_and_applied_unaggregated_leave_one_value(strategy: MirroredStrategy) -> None:
    variable = tf.Variable(np.zeros(2, np.float32))
    optimizer = tf.keras.optimizers.SGD(1.0)

    def step() -> None:
        context = tf.distribute.get_replica_context()
        assert context is not None
        total = context.all_reduce("SUM", float32([1.0 + replica_id()] * 2))
        optimizer.apply_gradients([(total, variable)], experimental_aggregate_gradients=False)

    strategy.run(step)
    assert not variable.is_split
    assert variable.numpy().tolist() == [-3.0, -3.0]


def test_clipnorm_clips_the_sum(strategy: MirroredStrategy) -> None:
    """F098."""
    variable = tf.Variable(np.zeros(2, np.float32))
    optimizer = tf.keras.optimizers.SGD(1.0, clipnorm=1.0)
    strategy.run(lambda: optimizer.apply_gradients([(float32(np.float32([3, 4]) * (1 + replica_id())), variable)]))
    np.testing.assert_allclose(variable.numpy(), [-0.6, -0.8], rtol=1e-6)


def test_row_sparse_gradients_of_replicas_are_concatenated_then_summed(strategy: MirroredStrategy) -> None:
    """F100's gradients, with an optimizer of this release: rows [0, 0] and [0, 1] with values [1, 2] each."""
    variable = tf.Variable(np.zeros((3, 1), np.float32))
    optimizer = tf.keras.optimizers.SGD(1.0, momentum=0.5)

    def step() -> None:
        rows = [[0, 0], [0, 1]][replica_id()]
        optimizer.apply_gradients([(tf.IndexedSlices(np.float32([[1], [2]]), rows, (3, 1)), variable)])

    strategy.run(step)
    assert variable.numpy().tolist() == [[-4.0], [-2.0], [0.0]]
    strategy.run(step)
    assert variable.numpy().tolist() == [[-10.0], [-5.0], [0.0]]


def test_calls_from_the_wrong_side_are_refused(strategy: MirroredStrategy) -> None:
    """F101."""
    variable = tf.Variable(np.zeros(1, np.float32))
    optimizer = tf.keras.optimizers.SGD(1.0)
    with strategy.scope(), pytest.raises(RuntimeError, match="apply_gradients"):
        optimizer.apply_gradients([(float32([1.0]), variable)])
    with pytest.raises(RuntimeError, match=r"strategy\.reduce"):
        strategy.run(lambda: strategy.reduce("SUM", 1.0, axis=None))
    with pytest.raises(ValueError, match="args"):
        strategy.run(lambda x: x, args=3)  # type: ignore[arg-type]  # the mistake under test
    with strategy.scope(), pytest.raises(ReplicaContextError, match="scope"), MirroredStrategy(1).scope():
        pass

    def unequal_merges() -> None:
        if replica_id() == 0:
            context = tf.distribute.get_replica_context()
            assert context is not None
            context.merge_call(lambda _: None)

    with pytest.raises(RuntimeError, match="1 of 2 replicas"):
        strategy.run(unequal_merges)


def test_reduce_without_axis_is_over_replicas(strategy: MirroredStrategy) -> None:
    """F102."""
    value = strategy.run(lambda: float32(1.0 + replica_id()))
    assert float(strategy.reduce("SUM", value, axis=None)) == 3.0
    assert float(strategy.reduce("mean", value, axis=None)) == 1.5
    assert strategy.reduce(tf.distribute.ReduceOp.MEAN, 3.0, axis=None) == 3.0
    with pytest.raises(ValueError, match="not a per-replica value"):
        strategy.reduce("SUM", 3.0, axis=None)


def test_reduce_along_an_axis_of_uneven_batches_is_the_true_mean(strategy: MirroredStrategy) -> None:
    """F103."""
    value = PerReplica([float32([[1, 2], [3, 4]]), float32([[10, 20]])])
    assert strategy.reduce("SUM", value, axis=0).numpy().tolist() == [14.0, 26.0]
    np.testing.assert_array_equal(strategy.reduce("MEAN", value, axis=0).numpy(), np.float32([14, 26]) / np.float32(3))


def test_all_reduce_in_a_replica_and_its_gradient(strategy: MirroredStrategy) -> None:
    """F104."""

    def step() -> tuple[float, float, float]:
        context = tf.distribute.get_replica_context()
        assert context is not None
        x = float32(1.0 + replica_id())
        with tf.GradientTape() as tape:
            tape.watch(x)
            total = context.all_reduce("SUM", x * x)
        gradient = tape.gradient(total, x)
        return float(context.all_reduce("SUM", x)), float(context.all_reduce("MEAN", x)), float(gradient)

    sums, means, gradients = (strategy.experimental_local_results(v) for v in strategy.run(step))
    assert (sums, means, gradients) == ((3.0, 3.0), (1.5, 1.5), (4.0, 8.0))


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [("SUM", [3.0, 3.0]), ("MEAN", [1.5, 1.5]), ("ONLY_FIRST_REPLICA", [1.0, 1.0]), ("NONE", [1.0, 2.0])],
)
def test_assignment_in_a_replica_goes_by_the_aggregation(
    strategy: MirroredStrategy, aggregation: str, expected: list[float]
) -> None:
    """F105."""
    variable = tf.Variable(np.float32(0), aggregation=tf.VariableAggregation[aggregation])
    strategy.run(lambda: variable.assign(float32(replica_id() + 1.0)))
    assert copies(variable) == expected


def test_number_assigned_to_a_sum_variable_in_a_replica_is_refused(strategy: MirroredStrategy) -> None:
    """F105."""
    variable = tf.Variable(np.float32(0), aggregation=tf.VariableAggregation.SUM)
    with pytest.raises(ValueError, match="SUM"):
        strategy.run(lambda: variable.assign(7.0))


def test_run_unwraps_what_is_the_same_object_everywhere(strategy: MirroredStrategy) -> None:
    """F107."""
    ids = strategy.run(lambda: float32(replica_id()))
    assert isinstance(ids, PerReplica)
    assert [float(i) for i in ids.values] == [0.0, 1.0]
    assert strategy.run(lambda: 3) == 3
    assert strategy.run(lambda: None) is None
    mixed = strategy.run(lambda: {"id": float32(replica_id()), "five": 5})
    assert isinstance(mixed["id"], PerReplica)
    assert mixed["five"] == 5


def test_loss_divided_by_the_global_batch_gives_the_global_mean(strategy: MirroredStrategy) -> None:
    """F113."""
    for mean_by_hand, expected in ((True, -1.0), (False, -3.5)):
        weight = tf.Variable(np.float32(1.0))
        optimizer = tf.keras.optimizers.SGD(1.0)

        def step(x: tf.Tensor, weight: Any = weight, optimizer: Any = optimizer, by_hand: bool = mean_by_hand) -> None:
            with tf.GradientTape() as tape:
                per_example = weight * x
                loss = (
                    tf.nn.compute_average_loss(per_example, global_batch_size=3)
                    if by_hand
                    else tf.reduce_mean(per_example)
                )
            optimizer.apply_gradients([(tape.gradient(loss, weight), weight)])

        strategy.run(step, args=(PerReplica([float32([1, 2]), float32([3])]),))
        assert float(weight.numpy()) == expected


def test_custom_aggregator_and_transformers_run_in_order_on_each_replica(strategy: MirroredStrategy) -> None:
    variable = tf.Variable(np.float32(0))
    seen: list[tuple[str, int, float]] = []

    def note(name: str, pairs: Any) -> list[tuple[Any, Any]]:
        pairs = list(pairs)
        seen.append((name, replica_id(), float(pairs[0][0])))
        return pairs

    def doubled_sum(pairs: Any) -> list[tuple[Any, Any]]:
        context = tf.distribute.get_replica_context()
        assert context is not None
        return [(context.all_reduce("SUM", g) * 2.0, v) for g, v in note("aggregator", pairs)]

    optimizer = tf.keras.optimizers.SGD(
        1.0, gradient_aggregator=doubled_sum, gradient_transformers=[lambda p: [(g + 1.0, v) for g, v in note("t", p)]]
    )
    strategy.run(lambda: optimizer.apply_gradients([(float32(1.0 + replica_id()), variable)]))
    assert seen == [("aggregator", 0, 1.0), ("aggregator", 1, 2.0), ("t", 0, 6.0), ("t", 1, 6.0)]
    assert float(variable.numpy()) == -7.0


def test_devices_are_checked() -> None:
    with pytest.raises(ValueError, match="twice"):
        MirroredStrategy(["/cpu:0", "/cpu:0"])
    with pytest.raises(ValueError, match="at least 1"):
        MirroredStrategy(0)
    with pytest.raises(ValueError, match="list of device names"):
        MirroredStrategy("/cpu:0")


def test_split_variables_get_updates_of_every_kind_on_all_copies(strategy: MirroredStrategy) -> None:
    def fresh() -> tuple[tf.Variable, Any]:
        variable = tf.Variable(np.zeros((3, 1), np.float32))
        strategy.run(lambda: variable.assign(float32(np.full((3, 1), replica_id()))))
        return variable, tf.keras.optimizers.SGD(1.0)

    variable, optimizer = fresh()
    rows = tf.IndexedSlices(np.ones((1, 1), np.float32), [0], (3, 1))
    strategy.run(lambda: optimizer.apply_gradients([(rows, variable)]))
    assert copies(variable) == [[[-2.0], [0.0], [0.0]], [[-1.0], [1.0], [1.0]]]
    variable, optimizer = fresh()
    ones = float32(np.ones((3, 1)))
    strategy.run(lambda: optimizer.apply_gradients([(ones, variable), (ones, variable)]))
    assert copies(variable) == [[[-4.0]] * 3, [[-3.0]] * 3]
    variable, optimizer = fresh()
    optimizer.apply_gradients([(ones, variable)])
    assert copies(variable) == [[[-1.0]] * 3, [[0.0]] * 3]


def test_mean_of_integers_is_a_float_and_the_default_strategy_returns_the_value(strategy: MirroredStrategy) -> None:
    value = strategy.run(lambda: np.asarray(replica_id() + 1))
    assert float(strategy.reduce("MEAN", value, axis=None)) == 1.5
    assert tf.distribute.get_strategy().reduce("MEAN", 3, axis=None) == 3


def test_variable_synchronized_on_read_is_refused_under_a_strategy(strategy: MirroredStrategy) -> None:
    with strategy.scope(), pytest.raises(NotImplementedError, match="ON_READ"):
        tf.Variable(0.0, synchronization=tf.VariableSynchronization.ON_READ)
