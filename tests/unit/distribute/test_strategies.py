"""What strategies do with gradients, hooks, copies and devices, beyond the recorded facts (``tests/parity``)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import distopt as tf
from distopt.distribute import MirroredStrategy


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


def test_copies_that_another_optimizer_has_split_accumulate_a_gradient_once_and_move_their_own_averages(
    strategy: MirroredStrategy,
) -> None:
    first, second = tf.Variable(np.zeros(2, np.float32)), tf.Variable(np.zeros(2, np.float32))
    accumulating = tf.keras.optimizers.SGD(1.0, gradient_accumulation_steps=2)
    averaging = tf.keras.optimizers.SGD(1.0, use_ema=True, ema_momentum=0.5)
    averaging.build([first, second])

    def split() -> None:
        pairs = [(float32([1.0 + replica_id()] * 2), second)]
        tf.keras.optimizers.SGD(1.0).apply_gradients(pairs, experimental_aggregate_gradients=False)

    def step() -> None:
        accumulating.apply_gradients([(float32([1.0, 1.0]), second)])
        averaging.apply_gradients([(float32([1.0, 1.0]), first)])

    strategy.run(split)
    strategy.run(step)
    assert copies(accumulating.slots.get(second, "gradient_accumulator")) == [[2.0, 2.0], [2.0, 2.0]]
    assert copies(averaging.slots.get(second, "average")) == [[-1.0, -1.0], [-2.0, -2.0]]
    late = tf.keras.optimizers.SGD(1.0, use_ema=True)
    late.build([second])
    assert copies(late.slots.get(second, "average")) == [[-1.0, -1.0], [-2.0, -2.0]]


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


def test_unaggregated_gradients_that_differ_in_the_sign_of_a_nan_leave_one_value(strategy: MirroredStrategy) -> None:
    variable = tf.Variable(np.zeros(2, np.float32))
    optimizer = tf.keras.optimizers.SGD(1.0)

    def step() -> None:
        pairs = [(float32([1.0, np.nan if replica_id() else -np.nan]), variable)]
        optimizer.apply_gradients(pairs, experimental_aggregate_gradients=False)

    strategy.run(step)
    assert not variable.is_split


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


def test_aggregator_may_drop_pairs_but_not_all_of_them(strategy: MirroredStrategy) -> None:
    kept, dropped = tf.Variable(np.zeros(1, np.float32)), tf.Variable(np.zeros(1, np.float32))
    pairs = [(float32([1.0]), kept), (float32([1.0]), dropped)]
    first_only = tf.keras.optimizers.SGD(1.0, gradient_aggregator=lambda p: [pair for pair in p if pair[1] is kept])
    strategy.run(lambda: first_only.apply_gradients(pairs))
    assert (kept.numpy().tolist(), dropped.numpy().tolist()) == ([-1.0], [0.0])
    assert int(first_only.iterations.numpy()) == 1
    nothing = tf.keras.optimizers.SGD(1.0, gradient_aggregator=lambda _: None)
    with pytest.raises(TypeError, match="returned None; an aggregator"):
        strategy.run(lambda: nothing.apply_gradients(pairs))
    assert kept.numpy().tolist() == [-1.0]
