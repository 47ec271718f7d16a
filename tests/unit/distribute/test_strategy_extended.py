"""What library code calls as ``strategy.extended.<name>``, strategies of one place, and choices without effect."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest

import distopt as tf
from distopt.comm.communicator import Communicator
from distopt.distribute import MirroredStrategy, MultiWorkerMirroredStrategy, OneDeviceStrategy, PerReplica
from distopt.distribute.cluster import ClusterSpec
from distopt.distribute.cluster_resolver import SimpleClusterResolver
from distopt.distribute.experimental import CentralStorageStrategy
from distopt.errors import PlacementError, ReplicaContextError, UnaggregatedGradientsError
from distopt.testing import run_replicas


@pytest.fixture
def strategy() -> MirroredStrategy:
    return MirroredStrategy(2)


def float32(*values: float) -> tf.Tensor:
    return tf.Tensor(np.asarray(values, np.float32))


def replica_id() -> int:
    context = tf.distribute.get_replica_context()
    assert context is not None
    return int(context.replica_id_in_sync_group)


def made(strategy: Any, *values: float, **options: Any) -> tf.Variable:
    with strategy.scope():
        return tf.Variable(np.asarray(values, np.float32), **options)


def test_update_calls_the_function_for_every_copy_in_a_cross_replica_context(strategy: MirroredStrategy) -> None:
    variable = made(strategy, 1.0, 2.0)
    seen: list[Any] = []

    def add(copy_: tf.Variable, value: Any) -> Any:
        distribute = tf.distribute
        seen.append((distribute.has_strategy(), distribute.in_cross_replica_context(), copy_.numpy().tolist()))
        copy_.assign_add(value)
        return copy_.numpy()

    own = PerReplica([float32(1.0, 1.0), float32(5.0, 5.0)])
    results = strategy.extended.update(variable, add, args=(own,), group=False)
    assert [result.tolist() for result in results] == [[2.0, 3.0], [6.0, 7.0]]
    assert seen == [(True, True, [1.0, 2.0])] * 2
    assert [c.numpy().tolist() for c in strategy.experimental_local_results(variable)] == [[2.0, 3.0], [6.0, 7.0]]
    assert strategy.extended.update(variable, lambda _: 3) == 3
    assert strategy.extended.update(variable, lambda _: 3, group=False) == (3,)


def test_update_in_replicas_meets_them_first(strategy: MirroredStrategy) -> None:
    variable = made(strategy, 0.0)
    calls: list[float] = []

    def add(copy_: tf.Variable, value: Any) -> None:
        calls.append(float(value[0]))
        copy_.assign_add(value)

    strategy.run(lambda: strategy.extended.update(variable, add, args=(float32(1.0 + replica_id()),)))
    assert calls == [1.0, 2.0]
    assert [c.numpy().tolist() for c in strategy.experimental_local_results(variable)] == [[1.0], [2.0]]


def test_update_that_fails_on_one_copy_leaves_them_apart(strategy: MirroredStrategy) -> None:
    variable = made(strategy, 0.0)
    seen: list[int] = []

    def second_fails(copy_: tf.Variable) -> None:
        seen.append(1)
        if len(seen) == 2:
            raise ArithmeticError("the second one")
        copy_.assign_add([1.0])

    with pytest.raises(ArithmeticError, match="the second one"):
        strategy.extended.update(variable, second_fails)
    assert [c.numpy().tolist() for c in strategy.experimental_local_results(variable)] == [[1.0], [0.0]]


def test_update_of_a_foreign_variable_is_refused(strategy: MirroredStrategy) -> None:
    with pytest.raises(ValueError, match="belongs to"):
        MirroredStrategy(2).extended.update(made(strategy, 0.0), lambda v: v.assign([1.0]))


def test_reductions_to_destinations_are_mirrored(strategy: MirroredStrategy) -> None:
    variable = made(strategy, 0.0)
    value = strategy.run(lambda: float32(1.0 + replica_id()))
    total = strategy.extended.reduce_to("SUM", value, variable)
    assert isinstance(total, tf.distribute.Mirrored)
    assert np.asarray(total).tolist() == [3.0]
    means = strategy.extended.batch_reduce_to("MEAN", [(value, variable), (value, variable)])
    assert [np.asarray(mean).tolist() for mean in means] == [[1.5], [1.5]]
    assert np.asarray(strategy.extended.broadcast_to(float32(4.0), variable)).tolist() == [4.0]
    calls = (
        lambda: strategy.extended.reduce_to("SUM", value, variable),
        lambda: strategy.extended.batch_reduce_to("SUM", [(value, variable)]),
        lambda: strategy.extended.broadcast_to(value, variable),
        lambda: strategy.gather(value, 0),
        lambda: strategy.extended.call_for_each_replica(lambda: None),
    )
    for call in calls:
        with pytest.raises(RuntimeError, match="inside a replica"):
            strategy.run(call)


def test_other_names_of_the_extended_interface(strategy: MirroredStrategy) -> None:
    extended = strategy.extended
    variable = made(strategy, 1.0)
    outside = tf.Variable(1.0)
    default = tf.distribute.get_strategy().extended
    assert (extended.variable_created_in_scope(variable), extended.variable_created_in_scope(outside)) == (True, False)
    assert (default.variable_created_in_scope(outside), default.variable_created_in_scope(variable)) == (True, False)
    assert len(extended.worker_devices) == len(extended.parameter_devices) == 2
    assert extended.should_checkpoint
    assert extended.should_save_summary
    assert not extended.experimental_require_static_shapes
    devices = extended.non_slot_devices([variable])
    assert extended.update_non_slot(devices, lambda x: x, args=(1,), group=False) == (1,)
    each = extended.call_for_each_replica(lambda x: x + replica_id(), args=(10,))
    assert each.values == (10, 11)


def test_variables_are_colocated_with_those_of_the_scope_alone(strategy: MirroredStrategy) -> None:
    variable = made(strategy, 1.0)
    with strategy.scope(), strategy.extended.colocate_vars_with(variable):
        assert tf.Variable(1.0).strategy is strategy
    foreign = tf.Variable(1.0)
    with strategy.scope(), pytest.raises(ValueError, match="no variable that was created"):
        strategy.extended.colocate_vars_with(foreign).__enter__()
    with pytest.raises(ReplicaContextError, match="inside the scope"):
        strategy.extended.colocate_vars_with(variable).__enter__()


def test_values_from_a_function_are_always_per_replica(strategy: MirroredStrategy) -> None:
    def value(context: Any) -> tuple[int, int]:
        return context.replica_id_in_sync_group, context.num_replicas_in_sync

    ids, counts = strategy.experimental_distribute_values_from_function(value)
    assert (ids.values, counts.values) == ((0, 1), (2, 2))
    (alone, _) = OneDeviceStrategy("/cpu:0").experimental_distribute_values_from_function(value)
    assert isinstance(alone, PerReplica)


def test_gather_refuses_what_has_no_axis_or_no_dense_shape(strategy: MirroredStrategy) -> None:
    rows = tf.IndexedSlices(np.float32([1]), [0], (3,))
    with pytest.raises(NotImplementedError, match="IndexedSlices"):
        strategy.gather(rows, axis=0)
    with pytest.raises(NotImplementedError, match="IndexedSlices"):
        strategy.run(lambda: tf.distribute.get_replica_context().all_gather(rows, 0))  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="scalars"):
        strategy.gather(strategy.run(lambda: tf.Tensor(np.float32(replica_id()))), axis=0)
    with pytest.raises(ValueError, match="no axis 1"):
        strategy.gather(PerReplica([float32(1.0), float32(2.0)]), axis=1)
    with pytest.raises(ValueError, match=r"float32\[1\], float32\[1, 1\]"):
        strategy.gather(PerReplica([float32(1.0), tf.Tensor(np.ones((1, 1), np.float32))]), axis=0)


def test_default_strategy_merges_in_a_cross_replica_context_of_its_own() -> None:
    context = tf.distribute.get_replica_context()
    assert context is not None
    found = context.merge_call(lambda s, x: (s, x, tf.distribute.in_cross_replica_context()), args=(5,))
    assert found == (tf.distribute.get_strategy(), 5, True)
    assert not context.merge_call(lambda _: tf.distribute.has_strategy())
    assert float(context.all_gather(float32(2.0), 0)[0]) == 2.0


def test_strategy_can_be_set_for_good_outside_of_scopes(strategy: MirroredStrategy) -> None:
    tf.distribute.experimental_set_strategy(strategy)
    try:
        assert tf.distribute.get_strategy() is strategy
        assert tf.Variable(1.0).strategy is strategy
        tf.distribute.experimental_set_strategy(MirroredStrategy(3))
        assert tf.distribute.get_strategy().num_replicas_in_sync == 3
    finally:
        tf.distribute.experimental_set_strategy(None)
    assert not tf.distribute.has_strategy()
    with strategy.scope(), pytest.raises(ReplicaContextError, match="inside the scope"):
        tf.distribute.experimental_set_strategy(strategy)


def test_strategies_are_shared_by_deep_copies_and_not_copied(strategy: MirroredStrategy) -> None:
    assert copy.deepcopy(strategy) is strategy
    with pytest.raises(RuntimeError, match="cannot be copied"):
        copy.copy(strategy)


def test_central_storage_sums_and_refuses_values_of_single_replicas() -> None:
    strategy = CentralStorageStrategy(2)
    variable = made(strategy, 0.0)
    optimizer = tf.keras.optimizers.SGD(1.0)

    def step(**options: bool) -> None:
        optimizer.apply_gradients([(float32(1.0 + replica_id()), variable)], **options)

    strategy.run(step)
    assert variable.numpy().tolist() == [-3.0]
    for error in (UnaggregatedGradientsError, NotImplementedError):
        with pytest.raises(error, match="one value for all"):
            strategy.run(step, kwargs={"experimental_aggregate_gradients": False})
    with pytest.raises(PlacementError, match="an unaggregated write"):
        strategy.run(lambda: variable.assign(float32(1.0)))
    clipping = tf.keras.optimizers.SGD(1.0, clipvalue=1.0)
    with pytest.raises(ValueError, match="no clip options"):
        strategy.run(lambda: clipping.apply_gradients([(float32(1.0), variable)]))
    assert variable.numpy().tolist() == [-3.0]


@pytest.mark.parametrize("device", [None, "", 3])
def test_one_device_strategy_needs_a_device(device: Any) -> None:
    with pytest.raises(ValueError, match="name of a device"):
        OneDeviceStrategy(device)


CHOICES = [
    None,
    tf.distribute.ReductionToOneDevice(),
    tf.distribute.NcclAllReduce(num_packs=2),
    tf.distribute.HierarchicalCopyAllReduce(num_packs=0),
]


@pytest.mark.parametrize("choice", CHOICES, ids=lambda c: type(c).__name__)
def test_every_choice_of_cross_device_ops_gives_the_canonical_sum(choice: Any) -> None:
    rng = np.random.default_rng(3)
    parts = np.float32(rng.standard_normal((5, 40)) * 10.0 ** rng.integers(-6, 6, (5, 40)))
    strategy = MirroredStrategy(5, cross_device_ops=choice)
    value = PerReplica([tf.Tensor(part) for part in parts])
    total = strategy.reduce("SUM", value, axis=None).numpy()
    assert total.tobytes() == MirroredStrategy(5).reduce("SUM", value, axis=None).numpy().tobytes()
    if choice is not None:
        assert np.asarray(choice.reduce("SUM", value, value)).tobytes() == total.tobytes()
        (mean,) = choice.batch_reduce("MEAN", [(value, value)])
        assert np.asarray(mean).tobytes() == (total / np.float32(5)).tobytes()
        assert len(choice.broadcast(total, value).values) == 5


def test_cross_device_ops_concatenate_rows_and_refuse_sums_of_plain_values() -> None:
    ops = tf.distribute.ReductionToOneDevice()
    rows = PerReplica([tf.IndexedSlices(np.float32([[i]]), [2], (3, 1)) for i in (1, 2)])
    mean = ops.reduce("MEAN", rows, rows).values[0]
    assert (mean.values.numpy().tolist(), mean.indices.tolist()) == ([[0.5], [1.0]], [2, 2])
    assert ops.reduce("MEAN", 3.0, None).values == (3.0,)
    with pytest.raises(ValueError, match="no per-replica value"):
        ops.reduce("SUM", 3.0, None)


def test_choices_that_would_change_the_sum_are_refused() -> None:
    class Own(tf.distribute.CrossDeviceOps):
        """A reduction of the user's."""

    with pytest.raises(ValueError, match="Own would reduce in a way of its own"):
        MirroredStrategy(2, cross_device_ops=Own())
    with pytest.raises(TypeError, match="CrossDeviceOps"):
        MirroredStrategy(2, cross_device_ops="nccl")
    with pytest.raises(ValueError, match="accumulation_fn"):
        tf.distribute.ReductionToOneDevice(accumulation_fn=sum)
    with pytest.raises(ValueError, match="num_packs"):
        tf.distribute.NcclAllReduce(num_packs=-1)


def test_communication_options_merge_what_was_set() -> None:
    options = tf.distribute.experimental.CommunicationOptions
    ring = tf.distribute.experimental.CommunicationImplementation.RING
    merged = options(bytes_per_pack=8, timeout_seconds=1.0).merge(options(timeout_seconds=2.0, implementation=ring))
    assert merged == options(bytes_per_pack=8, timeout_seconds=2.0, implementation=ring)
    assert merged.merge(None) is merged
    for wrong in ({"bytes_per_pack": -1}, {"timeout_seconds": 0.0}):
        with pytest.raises(ValueError, match="must be"):
            options(**wrong)  # type: ignore[arg-type]  # the mistake under test


def resolver(tasks: int, index: int) -> SimpleClusterResolver:
    spec = ClusterSpec({"worker": [f"h{i}:1" for i in range(tasks)]})
    return SimpleClusterResolver(spec, task_type="worker", task_id=index)


def test_cluster_resolver_that_agrees_with_the_ranks_is_kept_and_another_refused() -> None:
    def worker(comm: Communicator) -> bool:
        with pytest.raises(ValueError, match=r"worker \d of 3.*mpirun -n 3"):
            MultiWorkerMirroredStrategy(resolver(3, comm.rank), communicator=comm)
        with pytest.raises(ValueError, match=r"worker \d of 2"):
            MultiWorkerMirroredStrategy(resolver(2, 1 - comm.rank), communicator=comm)
        with pytest.raises(ValueError, match="ClusterResolver"):
            MultiWorkerMirroredStrategy({"worker": []}, communicator=comm)
        with pytest.raises(ValueError, match="CommunicationOptions"):
            MultiWorkerMirroredStrategy(communication_options=3, communicator=comm)  # type: ignore[arg-type]
        agreed = resolver(2, comm.rank)
        strategy = MultiWorkerMirroredStrategy(agreed, communicator=comm)
        assert strategy.extended.should_checkpoint is agreed.is_chief
        return strategy.cluster_resolver is agreed

    assert run_replicas(worker, 2) == [True, True]


def test_process_that_tf_config_counts_among_several_is_not_left_to_train_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mpi = pytest.importorskip("distopt.comm.mpi", exc_type=ImportError)
    workers = {"worker": ["h0:1", "h1:1"]}

    def replica(comm: Communicator) -> None:
        monkeypatch.setattr(mpi, "MpiCommunicator", lambda: comm)
        monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": workers, "task": {"type": "worker", "index": 1}}))
        with pytest.raises(ValueError, match=r"one of 2 workers.*mpirun -n 2"):
            MultiWorkerMirroredStrategy()
        monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": {"worker": ["h0:1"]}, "task": {"type": "worker"}}))
        assert MultiWorkerMirroredStrategy(replicas=2).num_replicas_in_sync == 2

    run_replicas(replica, 1)
