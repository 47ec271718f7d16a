"""What replicas read, beyond the recorded facts (``tests/parity/test_facts_data.py``)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import distopt as tf
from distopt.data.experimental import AutoShardPolicy
from distopt.distribute import (
    InputContext,
    InputOptions,
    InputReplicationMode,
    MirroredStrategy,
    OneDeviceStrategy,
    Strategy,
)
from distopt.testing import run_strategy


@pytest.fixture
def strategy() -> MirroredStrategy:
    return MirroredStrategy(2)


def with_policy(dataset: tf.data.Dataset, policy: AutoShardPolicy) -> tf.data.Dataset:
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = policy
    return dataset.with_options(options)


def steps(strategy: Strategy, distributed: Any) -> list[Any]:
    return [[part.tolist() for part in strategy.experimental_local_results(step)] for step in distributed]


def test_function_makes_one_dataset_a_process_whose_batches_go_to_replicas_in_turn(strategy: MirroredStrategy) -> None:
    seen: list[InputContext] = []

    def dataset(context: InputContext) -> tf.data.Dataset:
        seen.append(context)
        return tf.data.Dataset.range(10).batch(4)

    distributed = strategy.distribute_datasets_from_function(dataset)
    assert steps(strategy, distributed) == [[[0, 1, 2, 3], [4, 5, 6, 7]], [[8, 9], []]]
    assert seen == [InputContext(1, 0, 2)]


def test_processes_end_together_and_read_pipelines_of_their_own() -> None:
    def dataset(context: InputContext) -> tf.data.Dataset:
        assert (context.num_input_pipelines, context.num_replicas_in_sync) == (2, 3)
        return tf.data.Dataset.range(7).shard(2, context.input_pipeline_id).batch(1)

    def body(strategy: Strategy) -> list[Any]:
        return steps(strategy, strategy.distribute_datasets_from_function(dataset))

    # Rank 0 hosts replicas 0 and 1 and has 0, 2, 4, 6; rank 1 hosts replica 2 and has 1, 3, 5.
    assert run_strategy(body, 3, 2) == [[[[0], [2]], [[4], [6]], [[], []]], [[[1]], [[3]], [[5]]]]


def test_process_without_replicas_reads_on_until_the_others_end() -> None:
    def body(strategy: Strategy) -> int:
        def sums(batch: Any) -> Any:
            context = tf.distribute.get_replica_context()
            assert context is not None
            return context.all_reduce("SUM", tf.reduce_sum(batch))

        total = 0
        for batch in strategy.distribute_datasets_from_function(lambda _: tf.data.Dataset.range(6).batch(2)):
            (result, *_) = strategy.experimental_local_results(strategy.run(sums, (batch,))) or (0,)
            total += int(result)
        return total

    assert run_strategy(body, 1, 3) == [15, 0, 0]


def test_endless_datasets_are_read_without_asking_the_others() -> None:
    def body(strategy: Strategy) -> list[Any]:
        before = strategy.extended.communicator.traffic.bytes_sent  # type: ignore[union-attr]  # there are two workers
        dataset = strategy.distribute_datasets_from_function(lambda _: tf.data.Dataset.range(3).batch(1).repeat())
        iterator: Any = iter(dataset)
        first = next(iterator)
        asked = strategy.extended.communicator.traffic.bytes_sent - before  # type: ignore[union-attr]  # as above
        got = [int(first[0]), *(int(next(iterator)[0]) for _ in range(3))]
        assert strategy.extended.communicator.traffic.bytes_sent - before == asked  # type: ignore[union-attr]
        return got

    assert run_strategy(body, 2, 2) == [[0, 1, 2, 0]] * 2


def test_policy_off_cuts_the_stream_across_batches(strategy: MirroredStrategy) -> None:
    twice = tf.data.Dataset.range(3).batch(2).repeat(2)
    off = strategy.experimental_distribute_dataset(with_policy(twice, AutoShardPolicy.OFF))
    assert steps(strategy, off) == [[[0], [1]], [[2], [0]], [[1], [2]]]


@pytest.mark.parametrize("policy", [AutoShardPolicy.HINT, AutoShardPolicy.FILE])
def test_policies_hint_and_file_cut_as_off_does_in_one_process(
    strategy: MirroredStrategy, policy: AutoShardPolicy
) -> None:
    dataset = with_policy(tf.data.Dataset.range(10).batch(4), policy)
    assert steps(strategy, strategy.experimental_distribute_dataset(dataset))[-1] == [[8, 9], []]


def test_policy_file_over_processes_has_no_files_to_divide() -> None:
    def body(strategy: Strategy) -> None:
        dataset = with_policy(tf.data.Dataset.range(4).batch(2), AutoShardPolicy.FILE)
        with pytest.raises(FileNotFoundError, match="this dataset has none"):
            strategy.experimental_distribute_dataset(dataset)

    run_strategy(body, 2, 2)


def test_more_replicas_than_rows_leave_some_without(strategy: MirroredStrategy) -> None:
    off = with_policy(tf.data.Dataset.range(4).batch(2), AutoShardPolicy.OFF)
    many = MirroredStrategy(3)
    assert steps(many, many.experimental_distribute_dataset(off)) == [[[0], [1], []], [[2], [3], []]]


def test_next_inside_a_replica_is_refused(strategy: MirroredStrategy) -> None:
    iterator: Any = iter(strategy.experimental_distribute_dataset(tf.data.Dataset.range(4).batch(2)))
    with pytest.raises(ValueError, match="inside a replica"):
        strategy.run(lambda: next(iterator))
    assert [part.tolist() for part in iterator.get_next().values] == [[0], [1]]


def test_get_next_as_optional_says_when_there_is_nothing_left(strategy: MirroredStrategy) -> None:
    iterator: Any = iter(strategy.experimental_distribute_dataset(tf.data.Dataset.range(2).batch(2)))
    assert [part.tolist() for part in iterator.get_next_as_optional().get_value().values] == [[0], [1]]
    end = iterator.get_next_as_optional()
    assert not end.has_value()
    with pytest.raises(ValueError, match="no element"):
        end.get_value()


@pytest.mark.parametrize("policy", [AutoShardPolicy.DATA, AutoShardPolicy.OFF])
def test_dataset_that_was_not_batched_is_refused(strategy: MirroredStrategy, policy: AutoShardPolicy) -> None:
    dataset = with_policy(tf.data.Dataset.range(4), policy)
    with pytest.raises(ValueError, match="batch the dataset"):
        list(strategy.experimental_distribute_dataset(dataset))


def test_global_batches_are_not_made_a_replica_at_a_time(strategy: MirroredStrategy) -> None:
    options = InputOptions(experimental_replication_mode=InputReplicationMode.PER_REPLICA)
    with pytest.raises(NotImplementedError, match="distribute_datasets_from_function"):
        strategy.experimental_distribute_dataset(tf.data.Dataset.range(4).batch(2), options)


def test_default_strategy_leaves_datasets_alone() -> None:
    default = tf.distribute.get_strategy()
    dataset = tf.data.Dataset.range(4).batch(2)
    assert default.experimental_distribute_dataset(dataset) is dataset
    assert default.distribute_datasets_from_function(lambda c: [c]) == [InputContext(1, 0, 1)]


def test_one_replica_gets_plain_elements() -> None:
    strategy = OneDeviceStrategy("/cpu:0")
    (batch,) = strategy.experimental_distribute_dataset(tf.data.Dataset.range(3).batch(4))
    assert isinstance(batch, np.ndarray)
    assert batch.tolist() == [0, 1, 2]


def test_options_are_kept_by_what_is_made_of_a_dataset_and_overridden_by_later_ones() -> None:
    off = with_policy(tf.data.Dataset.range(8), AutoShardPolicy.OFF)
    made = off.shuffle(8, seed=1).batch(2).map(lambda x: x + 1).repeat(2).take(3).skip(1).prefetch(1)
    assert made.options().experimental_distribute.auto_shard_policy is AutoShardPolicy.OFF
    assert made.batch_size == 2
    data = with_policy(made, AutoShardPolicy.DATA)
    assert data.options().experimental_distribute.auto_shard_policy is AutoShardPolicy.DATA
    assert made.with_options(tf.data.Options()).options() == made.options()
    with pytest.raises(AttributeError):
        tf.data.Options().no_such_option = 1  # type: ignore[attr-defined]  # the mistake under test


@pytest.mark.parametrize(("shards", "index"), [(0, 0), (2, 2), (2, -1)])
def test_shard_that_does_not_exist_is_refused(shards: int, index: int) -> None:
    with pytest.raises(ValueError, match="no shard"):
        tf.data.Dataset.range(4).shard(shards, index)


def test_shards_take_every_nth_element_of_any_stream() -> None:
    shuffled = tf.data.Dataset.range(11).shuffle(3, seed=4)
    order = [int(x) for x in tf.data.Dataset.range(11).shuffle(3, seed=4)]
    assert [int(x) for x in shuffled.shard(3, 1)] == order[1::3]
    assert len(shuffled.shard(3, 2)) == 3


@pytest.mark.parametrize("num_workers", [2, 3, 5])
@pytest.mark.parametrize("empty", [0, 1])
def test_process_without_any_data_gets_elements_without_rows_as_the_others_have_them(
    num_workers: int, empty: int
) -> None:
    """Also where a process hosts no replica; three replicas make the sum of all rows exactly once."""
    rows = np.arange(1.0, 15.0).reshape(7, 2)

    def train(strategy: Strategy) -> tuple[list[Any], list[Any]]:
        def dataset(context: InputContext) -> tf.data.Dataset:
            pipeline, number = context.input_pipeline_id, context.num_input_pipelines
            fed = [p for p in range(number) if p != empty]
            own = rows[len(rows) :] if pipeline == empty else rows[fed.index(pipeline) :: len(fed)]
            halves = {"x": own.astype(np.float32), "y": (own[:, 0], own.astype(np.int16))}
            return tf.data.Dataset.from_tensor_slices(halves).batch(2)

        with strategy.scope():
            total = tf.Variable(np.zeros(2))
            sgd = tf.keras.optimizers.SGD(1.0)
        seen = []

        def step(element: Any) -> None:
            seen.append((element["x"].dtype.name, element["x"].shape[1:], element["y"][1].dtype.name))
            sgd.apply_gradients([(-np.asarray(element["x"], np.float64).sum(0), total)])

        for batch in strategy.distribute_datasets_from_function(dataset):
            strategy.run(step, args=(batch,))
        return total.numpy().tolist(), sorted(set(seen))

    for total, kinds in run_strategy(train, 3, num_workers):
        assert total == rows.sum(0).tolist()
        assert kinds == [("float32", (2,), "int16")]
