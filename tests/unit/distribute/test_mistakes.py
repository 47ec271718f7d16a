"""The catalogue of mistakes: each is caught by its own error, and what is right is let through.

One test for each error, marked with it by :func:`catches`; the last tests check that none is missing, here or in
docs/mistakes.md.
"""

from __future__ import annotations

import re
import runpy
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import ml_dtypes
import numpy as np
import pytest

import distopt as tf
from distopt import errors
from distopt.aggregation import Mean, Median, Sum, TrimmedMean
from distopt.clipping import clip_by_global_norm
from distopt.comm.communicator import Communicator
from distopt.distribute import (
    Checks,
    MirroredStrategy,
    MultiWorkerMirroredStrategy,
    PerReplica,
    multi_worker,
)
from distopt.distribute.inspector import LOOKS_AT_LOSSES, are_finite
from distopt.errors import MistakeError
from distopt.testing import run_replicas, run_strategy

PAGE = Path(__file__).resolve().parents[3] / "docs" / "mistakes.md"
Test = TypeVar("Test", bound=Callable[..., Any])
tests: dict[type[MistakeError], str] = {}


def catches(error: type[MistakeError]) -> Callable[[Test], Test]:
    """Note which mistake a test is about; there is one test for each."""

    def note(test: Test) -> Test:
        assert error not in tests, f"{error.__name__} has a test already: {tests[error]}"
        tests[error] = test.__name__
        return test

    return note


@pytest.fixture
def strategy() -> MirroredStrategy:
    return MirroredStrategy(2)


def replica_id() -> int:
    context = tf.distribute.get_replica_context()
    assert context is not None
    return context.replica_id_in_sync_group


def all_reduce(operation: str, value: Any) -> Any:
    context = tf.distribute.get_replica_context()
    assert context is not None
    return context.all_reduce(operation, value)


def variable(name: str = "w", value: Any = (0.0, 0.0)) -> tf.Variable:
    return tf.Variable(np.float32(value), name=name)


def gradient(*values: float) -> tf.Tensor:
    return tf.Tensor(np.float32(values))


def apply(optimizer: Any, *pairs: Any, **options: Any) -> None:
    """Apply ``pairs`` on the calling replica."""
    optimizer.apply_gradients(list(pairs), **options)


# ---------------------------------------------------------------- from which side


@catches(errors.OutsideReplicaError)
def test_apply_gradients_outside_of_run_is_refused(strategy: MirroredStrategy) -> None:
    w, optimizer = variable(), tf.keras.optimizers.SGD(1.0)
    with strategy.scope(), pytest.raises(errors.OutsideReplicaError, match=r"apply_gradients.*strategy\.run"):
        apply(optimizer, (gradient(1, 1), w))
    assert w.numpy().tolist() == [0.0, 0.0]


@catches(errors.InsideReplicaError)
def test_reduce_inside_of_run_is_refused(strategy: MirroredStrategy) -> None:
    with pytest.raises(errors.InsideReplicaError, match=r"strategy\.reduce.*all_reduce"):
        strategy.run(lambda: strategy.reduce("SUM", 1.0, axis=None))


# ---------------------------------------------------------------- meeting


@catches(errors.UnequalMergeCallsError)
def test_reduction_that_one_replica_leaves_out_is_refused(strategy: MirroredStrategy) -> None:
    with pytest.raises(errors.UnequalMergeCallsError, match="1 of 2 replicas"):
        strategy.run(lambda: all_reduce("SUM", gradient(1)) if replica_id() else None)


@catches(errors.MergeOrderError)
def test_reducing_first_on_one_replica_and_applying_first_on_the_other_is_refused(strategy: MirroredStrategy) -> None:
    w, optimizer = variable(), tf.keras.optimizers.SGD(1.0)

    def step() -> None:
        if replica_id() == 0:
            all_reduce("SUM", gradient(1, 1))
        apply(optimizer, (gradient(1, 1), w))
        if replica_id() == 1:
            all_reduce("SUM", gradient(1, 1))

    with pytest.raises(errors.MergeOrderError, match="same order"):
        strategy.run(step)
    assert w.numpy().tolist() == [0.0, 0.0]


def test_merging_with_closures_of_one_function_is_not_refused(strategy: MirroredStrategy) -> None:
    def replica() -> Any:
        context = tf.distribute.get_replica_context()
        assert context is not None
        return context.merge_call(lambda _, value: value, (replica_id(),))

    assert strategy.experimental_local_results(strategy.run(replica)) == (0, 1)


# ---------------------------------------------------------------- the same variables


@catches(errors.DifferentVariablesError)
def test_gradients_of_different_variables_are_refused(strategy: MirroredStrategy) -> None:
    w, b, optimizer = variable("w"), variable("b"), tf.keras.optimizers.SGD(1.0)
    with pytest.raises(errors.DifferentVariablesError, match=r"to w:0, .* to b:0"):
        strategy.run(lambda: apply(optimizer, (gradient(1, 1), [w, b][replica_id()])))
    assert (w.numpy().tolist(), b.numpy().tolist()) == ([0.0, 0.0], [0.0, 0.0])


@catches(errors.VariableOrderError)
def test_variables_in_another_order_are_refused(strategy: MirroredStrategy) -> None:
    w, b, optimizer = variable("w"), variable("b"), tf.keras.optimizers.SGD(1.0)
    pairs = [(gradient(1, 1), w), (gradient(2, 2), b)]
    with pytest.raises(errors.VariableOrderError, match=r"w:0, b:0, .* b:0, w:0"):
        strategy.run(lambda: apply(optimizer, *pairs[:: 1 - 2 * replica_id()]))


@catches(errors.MissingGradientError)
def test_gradient_that_is_none_on_one_replica_is_refused(strategy: MirroredStrategy) -> None:
    w, b, optimizer = variable("w"), variable("b"), tf.keras.optimizers.SGD(1.0)
    with pytest.raises(errors.MissingGradientError, match="position 1 has no gradient for b:0"):
        strategy.run(lambda: apply(optimizer, (gradient(1, 1), w), (None if replica_id() else gradient(1, 1), b)))


def test_gradient_that_is_none_on_all_replicas_is_left_out(strategy: MirroredStrategy) -> None:
    w, b, optimizer = variable("w"), variable("b"), tf.keras.optimizers.SGD(1.0)
    strategy.run(lambda: apply(optimizer, (gradient(1, 1), w), (None, b)))
    assert (w.numpy().tolist(), b.numpy().tolist()) == ([-2.0, -2.0], [0.0, 0.0])


@catches(errors.VariablePerReplicaError)
def test_replicas_that_train_variables_of_their_own_are_refused(strategy: MirroredStrategy) -> None:
    optimizer, own = tf.keras.optimizers.SGD(1.0), [variable("w"), variable("w")]
    with pytest.raises(errors.VariablePerReplicaError, match=r"scope\(\)"):
        strategy.run(lambda: apply(optimizer, (gradient(1, 1), own[replica_id()])))
    with pytest.raises(errors.VariablePerReplicaError, match=r"'w1' .* where replica 0 makes none"):
        strategy.run(lambda: variable(f"w{replica_id()}"))


# ---------------------------------------------------------------- the same shapes, dtypes and operations


@catches(errors.UnequalShapesError)
def test_reducing_different_shapes_is_refused(strategy: MirroredStrategy) -> None:
    with pytest.raises(errors.UnequalShapesError, match=r"\[1\], \[2\]"):
        strategy.run(lambda: all_reduce("SUM", gradient(*[1.0] * (1 + replica_id()))))


@catches(errors.UnequalDtypesError)
def test_reducing_different_dtypes_is_refused(strategy: MirroredStrategy) -> None:
    with pytest.raises(errors.UnequalDtypesError, match="float32, float64"):
        strategy.run(lambda: all_reduce("SUM", np.ones(2, [np.float32, np.float64][replica_id()])))


@catches(errors.UnequalReduceOpsError)
def test_sum_on_one_replica_and_mean_on_the_other_is_refused(strategy: MirroredStrategy) -> None:
    with pytest.raises(errors.UnequalReduceOpsError, match="SUM and MEAN"):
        strategy.run(lambda: all_reduce(["SUM", "MEAN"][replica_id()], gradient(1)))


@catches(errors.GradientShapeError)
@pytest.mark.parametrize("wrong", [gradient(1), gradient(1, 1, 1), tf.IndexedSlices(np.ones(1, np.float32), [2], (2,))])
def test_gradient_that_does_not_fit_its_variable_is_refused(strategy: MirroredStrategy, wrong: Any) -> None:
    w, optimizer = variable(), tf.keras.optimizers.SGD(1.0)
    with pytest.raises(errors.GradientShapeError, match="w:0"):
        strategy.run(lambda: apply(optimizer, (wrong if replica_id() else gradient(1, 1), w)))
    assert int(optimizer.iterations.numpy()) == 0


@catches(errors.GradientDtypeError)
def test_gradient_of_another_dtype_is_refused(strategy: MirroredStrategy) -> None:
    w, optimizer = variable(), tf.keras.optimizers.SGD(1.0)
    with pytest.raises(errors.GradientDtypeError, match="float64"):
        strategy.run(lambda: apply(optimizer, (np.ones(2), w)))


# ---------------------------------------------------------------- reduced once, and once only


@catches(errors.ReducedByHandError)
@pytest.mark.parametrize("operation", ["SUM", "MEAN"])
def test_gradients_reduced_by_hand_and_aggregated_again_are_refused(strategy: MirroredStrategy, operation: str) -> None:
    w, optimizer = variable(), tf.keras.optimizers.SGD(1.0)
    with pytest.raises(errors.ReducedByHandError, match=rf"w:0 .*all_reduce\({operation}\).*=False"):
        strategy.run(lambda: apply(optimizer, (all_reduce(operation, gradient(1, 2)), w)))
    assert w.numpy().tolist() == [0.0, 0.0]


def test_gradients_reduced_and_clipped_by_hand_and_aggregated_again_are_refused(strategy: MirroredStrategy) -> None:
    w, optimizer = variable(), tf.keras.optimizers.SGD(1.0)

    def step() -> None:
        (clipped,), _ = clip_by_global_norm([all_reduce("SUM", gradient(3, 4))], 1.0)
        apply(optimizer, (clipped, w))

    with pytest.raises(errors.ReducedByHandError):
        strategy.run(step)


def test_gradients_reduced_outside_of_run_and_aggregated_again_are_refused(strategy: MirroredStrategy) -> None:
    w, optimizer = variable(), tf.keras.optimizers.SGD(1.0)
    total = strategy.reduce("SUM", strategy.run(lambda: gradient(1, replica_id())), axis=None)
    with pytest.raises(errors.ReducedByHandError):
        strategy.run(lambda: apply(optimizer, (total, w)))


def test_reducing_a_copy_for_a_log_and_applying_the_gradient_is_not_refused(strategy: MirroredStrategy) -> None:
    w, optimizer = variable(), tf.keras.optimizers.SGD(1.0)

    def step() -> None:
        own = gradient(1, 2)
        all_reduce("MEAN", own)
        apply(optimizer, (own, w))

    strategy.run(step)
    assert w.numpy().tolist() == [-2.0, -4.0]


def test_one_replica_may_reduce_by_hand_and_aggregate() -> None:
    w, optimizer, alone = variable(), tf.keras.optimizers.SGD(1.0), MirroredStrategy(1)
    alone.run(lambda: apply(optimizer, (all_reduce("SUM", gradient(1, 2)), w)))
    assert w.numpy().tolist() == [-1.0, -2.0]


@catches(errors.AggregatedTwiceError)
def test_hook_that_reduces_before_the_aggregator_is_refused(strategy: MirroredStrategy) -> None:
    class ReducesTooEarly(tf.keras.optimizers.SGD):
        def _transform_unaggregated_gradients(self, grads_and_vars: Any) -> Any:
            return [(all_reduce("SUM", g), v) for g, v in grads_and_vars]

    w, optimizer = variable(), ReducesTooEarly(1.0)
    with pytest.raises(errors.AggregatedTwiceError, match=r"'sum'.*all_reduce\(SUM\)"):
        strategy.run(lambda: apply(optimizer, (gradient(1, 1), w)))
    assert w.numpy().tolist() == [0.0, 0.0]


def test_hook_that_reduces_in_place_of_the_aggregator_is_not_refused(strategy: MirroredStrategy) -> None:
    w = variable()
    optimizer = tf.keras.optimizers.SGD(
        1.0, gradient_aggregator=lambda pairs: [(all_reduce("SUM", g), v) for g, v in pairs]
    )
    strategy.run(lambda: apply(optimizer, (gradient(1, 1), w)))
    assert w.numpy().tolist() == [-2.0, -2.0]


def unequal_and_unreduced(strategy: tf.distribute.Strategy) -> list[Any]:
    """Apply what nobody reduces; return the copies."""
    w, optimizer = variable(), tf.keras.optimizers.SGD(1.0)
    strategy.run(lambda: apply(optimizer, (gradient(1, 1 + replica_id()), w), experimental_aggregate_gradients=False))
    return [w.copy_of(replica).tolist() for replica in w.replica_ids]


@catches(errors.NeverReducedError)
@pytest.mark.parametrize("num_workers", [1, 2])
def test_unequal_gradients_that_nobody_reduces_are_refused_where_asked_for(num_workers: int) -> None:
    def worker(strategy: tf.distribute.Strategy) -> None:
        strategy.extended.checks = Checks(never_reduced="raise")
        unequal_and_unreduced(strategy)

    with pytest.raises(errors.NeverReducedError, match="w:0 drift apart"):
        run_strategy(worker, num_replicas=2, num_workers=num_workers)


def test_unequal_gradients_that_nobody_reduces_are_applied_as_in_the_reference_and_logged_once(
    strategy: MirroredStrategy, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        assert unequal_and_unreduced(strategy) == [[-1.0, -1.0], [-1.0, -2.0]]
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["NeverReducedError"]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_gradients_reduced_by_hand_and_not_aggregated_are_not_refused(num_workers: int) -> None:
    def worker(strategy: tf.distribute.Strategy) -> list[float]:
        strategy.extended.checks = Checks.strict()
        w, optimizer = variable(), tf.keras.optimizers.SGD(1.0)

        def step() -> None:
            total = all_reduce("SUM", gradient(1, replica_id()))
            apply(optimizer, (total, w), experimental_aggregate_gradients=False)

        strategy.run(step)
        values: list[float] = w.numpy().tolist()
        return values

    assert run_strategy(worker, 2, num_workers) == [[-2.0, -1.0]] * num_workers


@catches(errors.AppliedTwiceError)
def test_gradient_of_the_step_before_is_refused_where_asked_for() -> None:
    strategy = MirroredStrategy(1)
    strategy.extended.checks = Checks(applied_twice="raise")
    w, optimizer, own = variable(), tf.keras.optimizers.SGD(1.0), gradient(1, 1)
    strategy.run(lambda: apply(optimizer, (own, w)))
    with pytest.raises(errors.AppliedTwiceError, match=r"w:0.*anew"):
        strategy.run(lambda: apply(optimizer, (own, w)))
    strategy.run(lambda: apply(optimizer, (gradient(1, 1), w)))
    assert w.numpy().tolist() == [-2.0, -2.0]


# ---------------------------------------------------------------- scaling


def step_down(optimizer: Any, w: tf.Variable, loss_of: Callable[[Any], Any]) -> None:
    """Make one step down a loss of ``w * [1, 3]``, from one replica."""
    with tf.GradientTape() as tape:
        loss = loss_of(w * np.float32([1, 3]))
    apply(optimizer, (tape.gradient(loss, w), w))


def average(losses: Any) -> Any:
    return tf.nn.compute_average_loss(losses, global_batch_size=4)


@catches(errors.MeanTakenTwiceError)
def test_mean_over_replicas_of_a_loss_divided_by_the_global_batch_is_refused(strategy: MirroredStrategy) -> None:
    w, optimizer = variable(value=1.0), tf.keras.optimizers.SGD(1.0, gradient_aggregator=Mean())
    with pytest.raises(errors.MeanTakenTwiceError, match=r"'mean'.*compute_average_loss"):
        strategy.run(lambda: step_down(optimizer, w, lambda losses: average(losses) + tf.reduce_sum(losses)))
    assert float(w.numpy()) == 1.0


def test_mean_over_replicas_of_row_sparse_gradients_of_an_averaged_loss_is_refused(strategy: MirroredStrategy) -> None:
    w, optimizer = variable(value=[1.0, 2.0]), tf.keras.optimizers.SGD(1.0, gradient_aggregator=Mean())

    def step() -> None:
        with tf.GradientTape() as tape:
            loss = average(tf.gather(w, [0, 0]))
        apply(optimizer, (tape.gradient(loss, w), w))

    with pytest.raises(errors.MeanTakenTwiceError):
        strategy.run(step)


def test_mean_by_hand_of_a_loss_divided_by_the_global_batch_is_refused(strategy: MirroredStrategy) -> None:
    w, optimizer = variable(value=1.0), tf.keras.optimizers.SGD(1.0)

    def step() -> None:
        with tf.GradientTape() as tape:
            loss = average(w * np.float32([1, 3]))
        mean = all_reduce("MEAN", tape.gradient(loss, w))
        apply(optimizer, (mean, w), experimental_aggregate_gradients=False)

    with pytest.raises(errors.MeanTakenTwiceError, match=r"all_reduce\(MEAN\)"):
        strategy.run(step)


@pytest.mark.parametrize(
    ("aggregator", "loss_of", "expected"),
    [
        (Sum(), average, -1.0),
        (Mean(), tf.reduce_mean, -1.0),
        (Sum(), lambda losses: tf.reduce_mean(losses) / 2.0, -1.0),
        (Mean(), lambda losses: average(losses) * 2.0, -1.0),
        (Sum(), lambda losses: tf.reduce_sum(tf.reduce_mean(tf.reshape(losses, (2, 1)), axis=1)), -7.0),
    ],
)
def test_right_scalings_are_not_refused(
    strategy: MirroredStrategy, aggregator: Any, loss_of: Callable[[Any], Any], expected: float
) -> None:
    strategy.extended.checks = Checks.strict()
    w, optimizer = variable(value=1.0), tf.keras.optimizers.SGD(1.0, gradient_aggregator=aggregator)
    strategy.run(lambda: step_down(optimizer, w, loss_of))
    assert float(w.numpy()) == expected


def test_logged_average_beside_the_loss_is_not_refused(strategy: MirroredStrategy) -> None:
    w, optimizer = variable(value=1.0), tf.keras.optimizers.SGD(1.0, gradient_aggregator=Mean())

    def step() -> None:
        with tf.GradientTape() as tape:
            losses = w * np.float32([1, 3])
            loss, _ = tf.reduce_mean(losses), average(losses)
        apply(optimizer, (tape.gradient(loss, w), w))

    strategy.run(step)
    assert float(w.numpy()) == -1.0


@catches(errors.LocalMeanLossError)
@pytest.mark.parametrize("reduction", ["auto", "sum_over_batch_size"])
def test_loss_averaged_by_the_local_batch_is_refused(strategy: MirroredStrategy, reduction: str) -> None:
    loss = tf.keras.losses.MeanSquaredError(reduction)
    with pytest.raises(errors.LocalMeanLossError, match="compute_average_loss"):
        strategy.run(lambda: loss([[1.0]], [[2.0]]))


@pytest.mark.parametrize("loss_of", [tf.reduce_mean, lambda losses: tf.reduce_mean(losses) + average(losses)])
def test_gradients_of_a_local_mean_are_summed_as_in_the_reference_and_logged_or_refused_where_asked_for(
    strategy: MirroredStrategy, caplog: pytest.LogCaptureFixture, loss_of: Callable[[Any], Any]
) -> None:
    w, optimizer = variable(value=1.0), tf.keras.optimizers.SGD(1.0)
    strategy.run(lambda: step_down(optimizer, w, loss_of))
    assert float(w.numpy()) < -1.0
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["LocalMeanLossError"]
    strategy.extended.checks = Checks(local_mean_loss="raise")
    with pytest.raises(errors.LocalMeanLossError, match="2 replicas"):
        strategy.run(lambda: step_down(optimizer, w, loss_of))


@pytest.mark.parametrize("turns", [1, 2])
def test_a_loss_that_becomes_a_local_mean_later_is_seen_within_a_few_runs(
    strategy: MirroredStrategy, turns: int
) -> None:
    strategy.extended.checks = Checks(local_mean_loss="raise")
    w, optimizer = variable(value=1.0), tf.keras.optimizers.SGD(1.0)
    for _ in range(3 * LOOKS_AT_LOSSES + 1):
        strategy.run(lambda: step_down(optimizer, w, average))

    def later() -> None:
        for run in range(turns * LOOKS_AT_LOSSES):
            strategy.run(lambda run=run: step_down(optimizer, w, average if run % turns else tf.reduce_mean))

    with pytest.raises(errors.LocalMeanLossError, match="2 replicas"):
        later()


@catches(errors.NumberToSumVariableError)
def test_number_assigned_on_every_replica_to_a_sum_variable_is_refused(strategy: MirroredStrategy) -> None:
    total = tf.Variable(np.float32(0), aggregation=tf.VariableAggregation.SUM)
    with pytest.raises(errors.NumberToSumVariableError, match="2 times"):
        strategy.run(lambda: total.assign_add(1.0))


@catches(errors.CountedManyTimesError)
def test_sum_over_replicas_of_one_value_is_refused(strategy: MirroredStrategy) -> None:
    with pytest.raises(errors.CountedManyTimesError, match="2 times"):
        strategy.reduce("SUM", 3.0, axis=None)
    with pytest.raises(errors.CountedManyTimesError, match="the very same object"):
        strategy.reduce("SUM", strategy.run(lambda: 3), axis=None)


@catches(errors.PerReplicaAsTensorError)
def test_value_of_each_replica_used_as_a_tensor_is_refused() -> None:
    value = PerReplica([gradient(1), gradient(2)])
    uses: list[Callable[[Any], Any]] = [np.asarray, tf.reduce_sum, float, lambda v: 0.0 + v, lambda v: v / 2,
                                        lambda v: v < 1.0, lambda v: tf.constant(1.0) - v, sum]  # fmt: skip
    for use in uses:
        with pytest.raises(errors.PerReplicaAsTensorError, match=r"strategy\.reduce"):
            use([value] if use is sum else value)


# ---------------------------------------------------------------- servers, tapes


@catches(errors.VariableListChangedError)
def test_variables_that_no_server_owns_are_refused() -> None:
    from distopt.arena import Span
    from distopt.comm.zmq.client import _check_nothing_is_left, _cut

    owned, covered = [[Span(0, 0, 64)], [Span(0, 64, 128)]], [Span(0, 0, 64)]
    with pytest.raises(errors.VariableListChangedError, match="all variables"):
        _cut(owned[1], covered, 1)
    with pytest.raises(errors.VariableListChangedError, match="before the job begins"):
        _check_nothing_is_left(owned, [Span(0, 0, 128), Span(1, 0, 64)])


@catches(errors.TapeReusedError)
def test_tape_asked_for_gradients_twice_is_refused() -> None:
    w = variable()
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(w * w)
    tape.gradient(loss, w)
    with pytest.raises(errors.TapeReusedError, match="persistent"):
        tape.gradient(loss, w)


# ---------------------------------------------------------------- between processes


def across_processes(step: Callable[[int], None], num_replicas: int = 2) -> None:
    """Run ``step(rank)`` on every replica, each in a process of its own."""

    def worker(strategy: tf.distribute.Strategy) -> None:
        rank = strategy.extended.rank
        strategy.run(lambda: step(rank))

    run_strategy(worker, num_replicas, num_workers=num_replicas)


@pytest.mark.parametrize(
    ("error", "lists"),
    [
        (errors.DifferentVariablesError, (["w"], ["b"])),
        (errors.VariableOrderError, (["w", "b"], ["b", "w"])),
        (errors.VariableOrderError, (["dense/w", "dense_1/w"], ["dense_8/w", "dense_7/w"])),
        (errors.MissingGradientError, (["w", "b"], ["w"])),
    ],
)
def test_lists_of_variables_that_differ_between_processes_are_told_at_the_first_step(
    error: type[MistakeError], lists: tuple[list[str], list[str]]
) -> None:
    def step(rank: int) -> None:
        # Processes share the initial values of trainable variables, which is not what this is about.
        variables = [tf.Variable(np.zeros(2, np.float32), trainable=False, name=name) for name in lists[rank]]
        apply(tf.keras.optimizers.SGD(1.0), *((gradient(1, 1), v) for v in variables))

    with pytest.raises(error, match=r"rank 0.*rank 1|rank 1.*rank 0"):
        across_processes(step)


@pytest.mark.parametrize("odd", [0, 1, 2])
def test_process_that_differs_from_most_is_the_one_that_is_named(odd: int) -> None:
    most = next(rank for rank in range(3) if rank != odd)

    def other_variables(rank: int) -> None:
        names = ["w", "b"] if rank == odd else ["w"]
        variables = [tf.Variable(np.zeros(2, np.float32), trainable=False, name=name) for name in names]
        apply(tf.keras.optimizers.SGD(1.0), *((gradient(1, 1), v) for v in variables))

    def other_settings(rank: int) -> None:
        apply(tf.keras.optimizers.Adam(epsilon=1e-7 + (rank == odd)), (gradient(1, 1), variable()))

    with pytest.raises(
        errors.MissingGradientError, match=rf"rank {most} \(as 2 of 3\) has no gradient .* rank {odd} has"
    ):
        across_processes(other_variables, 3)
    with pytest.raises(errors.UnequalHypersError, match=rf"1e-07 on rank {most} \(as 2 of 3\) and .* on rank {odd};"):
        across_processes(other_settings, 3)

    def other_rate(rank: int) -> None:
        apply(tf.keras.optimizers.SGD(0.5 if rank == odd else 0.25), (gradient(1, 1), variable()))

    rates = rf"learning_rate is 0.25 on rank {most} \(as 2 of 3\) and 0.5 on rank {odd};"
    with pytest.raises(errors.UnequalHypersError, match=rates):
        across_processes(other_rate, 3)

    def another_step(rank: int) -> None:
        optimizer = tf.keras.optimizers.SGD(0.5)
        optimizer.iterations.assign(5 * (rank == odd))
        apply(optimizer, (gradient(1, 1), variable()))

    steps = rf"rank {most} \(as 2 of 3\) is at step 0 where rank {odd} is at step 5"
    with pytest.raises(errors.UnequalStepsError, match=steps):
        across_processes(another_step, 3)


@pytest.mark.parametrize("odd", [0, 2])
def test_process_that_changes_a_number_later_is_named_and_each_says_its_own(odd: int) -> None:
    most = next(rank for rank in range(3) if rank != odd)

    def step(rank: int) -> None:
        w, optimizer = variable(), tf.keras.optimizers.Adam(0.5)
        apply(optimizer, (gradient(1, 1), w))
        optimizer.learning_rate = 0.25 if rank == odd else 0.5
        with pytest.raises(errors.UnequalHypersError) as raised:
            apply(optimizer, (gradient(1, 1), w))
        message = str(raised.value)
        assert message.startswith(f"rank {most} (as 2 of 3) and rank {odd} have different hypers at step 1, ")
        assert f"rank {rank} has learning_rate {0.25 if rank == odd else 0.5}, " in message

    across_processes(step, 3)


@pytest.mark.parametrize("odd", [0, 2])
@pytest.mark.parametrize(
    ("name", "value", "other"), [("placement", "sharded", "replica"), ("replicas", "6", "4"), ("distopt", "1.0", "0.9")]
)
def test_strategy_that_differs_from_those_of_most_processes_is_named_with_both_values_on_all(
    name: str, value: str, other: str, odd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = next(rank for rank in range(3) if rank != odd)
    own_release = threading.local()
    monkeypatch.setattr(multi_worker, "release", lambda: own_release.text)

    def process(comm: Communicator) -> str:
        own = {"placement": "sharded", "replicas": "6", "distopt": "1.0"} | ({name: other} if comm.rank == odd else {})
        own_release.text = own["distopt"]
        comm.shares_memory = True
        with pytest.raises(ValueError, match=name) as raised:
            MultiWorkerMirroredStrategy(replicas=int(own["replicas"]), placement=own["placement"], communicator=comm)
        return str(raised.value)

    for message in run_replicas(process, 3):
        assert message.startswith(
            f"the strategies of the processes differ: {name} is {value} on rank {most} (as 2 of 3) and {other} "
            f"on rank {odd};"
        )


@pytest.mark.parametrize(("what", "most", "other"), [("blas kernel", "Haswell", "Zen"), ("numpy", "2.1.0", "2.2.0")])
def test_numerics_that_differ_between_processes_are_logged_once(
    what: str, most: str, other: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found = iter([most, other, most])
    monkeypatch.setattr(multi_worker, "numerics_fingerprint", lambda _: {what: next(found)})

    def process(comm: Communicator) -> None:
        comm.shares_memory = True
        strategy = MultiWorkerMirroredStrategy(communicator=comm)
        strategy.run(lambda: apply(tf.keras.optimizers.SGD(1.0), (gradient(1, 1), variable())))

    run_replicas(process, 3)
    (message,) = [record.getMessage() for record in caplog.records]
    assert re.search(rf"{what} is {most} on rank . \(as 2 of 3\) and {other} on rank .", message)


@pytest.mark.parametrize("placement", ["replica", "sharded"])
def test_aggregator_that_cannot_combine_so_many_replicas_is_refused_by_all_at_the_first_call(placement: str) -> None:
    """Also where that call only adds to what is accumulated, and by processes that own nothing of so short a list."""

    def process(comm: Communicator) -> None:
        strategy = MultiWorkerMirroredStrategy(replicas=2, communicator=comm, placement=placement)
        with strategy.scope():
            w, aggregator = variable(), TrimmedMean(trim=1)
            sgd = tf.keras.optimizers.SGD(0.5, gradient_accumulation_steps=2, gradient_aggregator=aggregator)
        with pytest.raises(ValueError, match="trim = 1 leaves nothing of 2 replicas"):
            strategy.run(lambda: apply(sgd, (gradient(1, 1), w)))

    run_replicas(process, 4)


@pytest.mark.parametrize("placement", ["replica", "sharded"])
def test_loss_of_a_process_is_told_with_the_step_of_the_optimizer(placement: str) -> None:
    def process(comm: Communicator) -> None:
        strategy = MultiWorkerMirroredStrategy(communicator=comm, placement=placement)
        with strategy.scope():
            w, sgd = variable(), tf.keras.optimizers.SGD(0.5)
        for _ in range(2 + comm.rank):
            strategy.run(lambda: apply(sgd, (gradient(1, 1), w)))

    with pytest.raises(errors.PeerLostError, match=r"rank 0 .* in step 2 for rank 0"):
        run_replicas(process, 2)


@pytest.mark.parametrize(
    ("error", "values"),
    [
        (errors.UnequalShapesError, (np.zeros(2), np.zeros(3))),
        (errors.UnequalDtypesError, (np.zeros(2, np.float32), np.zeros(2, np.float64))),
    ],
)
def test_variable_that_differs_between_processes_is_told_at_the_first_step(
    error: type[MistakeError], values: tuple[Any, Any]
) -> None:
    def step(rank: int) -> None:
        w = tf.Variable(values[rank], name="w", trainable=False)
        apply(tf.keras.optimizers.SGD(1.0), (np.ones_like(values[rank]), w))

    with pytest.raises(error, match=r"w:0.*rank 0.*rank 1"):
        across_processes(step)


def test_names_counted_differently_in_another_process_are_not_refused() -> None:
    def step(rank: int) -> None:
        names = ["dense/w", "dense_1/w"] if rank else ["dense_4/w", "dense_5/w"]
        apply(tf.keras.optimizers.SGD(1.0), *((gradient(1, 1), variable(name)) for name in names))

    across_processes(step)


def test_processes_that_meet_for_different_things_are_told_so() -> None:
    def step(rank: int) -> None:
        w, b, optimizer = variable("w"), variable("b"), tf.keras.optimizers.SGD(1.0)
        for v in (w, b):
            apply(optimizer, (gradient(1, 1), v))
        apply(optimizer, (gradient(1, 1), [w, b][rank]))

    with pytest.raises(errors.MergeOrderError, match=r"rank . and rank . reduce different things"):
        across_processes(step)


@pytest.mark.parametrize("placement", ["replica", "sharded"])
def test_later_call_that_meets_another_one_in_the_memory_of_a_host_is_told_so_on_all(placement: str) -> None:
    def process(comm: Communicator) -> str:
        comm.shares_memory = True
        strategy = MultiWorkerMirroredStrategy(communicator=comm, placement=placement)
        with strategy.scope():
            w, optimizer = variable(), tf.keras.optimizers.SGD(1.0)
        calls: list[Callable[[], object]] = [
            lambda: strategy.run(lambda: apply(optimizer, (gradient(1, 1), w))),
            lambda: strategy.reduce("SUM", np.ones(2), axis=None),
        ]
        for call in calls:
            call()
        with pytest.raises(errors.MergeOrderError) as raised:
            calls[comm.rank == 1]()
        return str(raised.value)

    for message in run_replicas(process, 3):
        assert message.startswith(
            "rank 0 (as 2 of 3) comes to 'apply_gradients: the gradients of all are ready' where "
        )
        assert "where rank 1 comes to 'a reduction of values: parts of 1 arrays from all replicas'; every" in message


def test_first_apply_call_that_meets_another_call_is_told_so() -> None:
    def step(rank: int) -> None:
        if rank:
            all_reduce("SUM", gradient(1, 1))
        apply(tf.keras.optimizers.SGD(1.0), (gradient(1, 1), variable()))

    with pytest.raises(errors.MergeOrderError, match="same order"):
        across_processes(step)


ROWS = tf.IndexedSlices(np.ones((1, 2), np.float32), [0])
VALUES_OF_ONE_RANK: dict[str, tuple[str, Any, type[MistakeError], str]] = {
    "operation": ("MEAN", np.ones(2), errors.UnequalReduceOpsError, "by sum where {odd} does by mean"),
    "shape": ("SUM", np.ones(3), errors.UnequalShapesError, r"float64\[2\] on {most}, float64\[3\] on {odd}"),
    "dtype": ("SUM", np.ones(2, np.int8), errors.UnequalDtypesError, r"float64\[2\] on {most}, int8\[2\] on {odd}"),
    "number": ("SUM", [np.ones(2)] * 3, errors.MergeOrderError, "1 values where {odd} reduces 3"),
    "rows": ("SUM", ROWS, errors.UnequalShapesError, r"on {most}, float32\[None, 2\] on {odd}"),
}


@pytest.mark.parametrize("odd", [0, 2])
@pytest.mark.parametrize("what", VALUES_OF_ONE_RANK)
def test_rank_that_reduces_other_values_is_named_on_all(what: str, odd: int) -> None:
    operation, value, error, text = VALUES_OF_ONE_RANK[what]
    most = r"rank 1 \(as 2 of 3\)" if odd == 0 else r"rank 0 \(as 2 of 3\)"

    def process(comm: Communicator) -> None:
        strategy = MultiWorkerMirroredStrategy(communicator=comm)
        with pytest.raises(error, match=text.format(most=most, odd=f"rank {odd}")):
            strategy.run(lambda: all_reduce(*((operation, value) if comm.rank == odd else ("SUM", np.ones(2)))))
        strategy.run(lambda: all_reduce("SUM", np.ones(2)))

    run_replicas(process, 3)


@pytest.mark.parametrize(
    ("odd", "says"),
    [
        (("MEAN", np.ones(2)), "and rank 1 .*another operation"),
        (("SUM", np.ones(3)), "and rank 1 .*values of another shape"),
        (("SUM", np.ones(4)), "comes to .* where rank 1 comes to 'it reduces values by sum'"),
    ],
)
def test_values_reduced_differently_later_are_told_so_on_all(odd: Any, says: str) -> None:
    def process(comm: Communicator) -> None:
        strategy = MultiWorkerMirroredStrategy(communicator=comm)
        for call in (("SUM", np.ones(2)), ("MEAN", np.ones(2)), ("SUM", np.ones(3))):
            strategy.run(all_reduce, call)
        with pytest.raises(errors.MergeOrderError, match=rf"rank 0 \(as 2 of 3\) {says}"):
            strategy.run(all_reduce, odd if comm.rank == 1 else ("SUM", np.ones(2)))

    run_replicas(process, 3)


def test_rows_of_tables_of_different_lengths_are_not_reduced_with_each_other(strategy: MirroredStrategy) -> None:
    def step() -> Any:
        return all_reduce("SUM", tf.IndexedSlices(np.ones((1, 2)), [0], (3 + replica_id(), 2)))

    with pytest.raises(errors.UnequalShapesError, match=r"\[3, 2\], \[4, 2\]"):
        strategy.run(step)


@catches(errors.UnequalHypersError)
def test_learning_rate_that_differs_between_processes_is_refused() -> None:
    def step(rank: int) -> None:
        w, optimizer = variable(), tf.keras.optimizers.SGD(1.0)
        apply(optimizer, (gradient(1, 1), w))
        optimizer.learning_rate = [1.0, 0.5][rank]
        apply(optimizer, (gradient(1, 1), w))

    with pytest.raises(errors.UnequalHypersError, match=r"at step 1.*learning rate"):
        across_processes(step)


def test_learning_rate_that_differs_is_refused_where_gradients_are_row_sparse() -> None:
    def step(rank: int) -> None:
        w, optimizer = variable("w", np.zeros((3, 2))), tf.keras.optimizers.SGD(1.0)
        rows = tf.IndexedSlices(np.ones((1, 2), np.float32), np.array([rank]))
        apply(optimizer, (rows, w))
        optimizer.learning_rate = [1.0, 0.5][rank]
        with pytest.raises(errors.UnequalHypersError, match=r"at step 1.*learning rate"):
            apply(optimizer, (rows, w))
        assert w.numpy().tolist() == [[-1, -1], [-1, -1], [0, 0]]

    across_processes(step)


def test_settings_that_differ_between_processes_are_named_with_both_values_at_the_first_step() -> None:
    def step(rank: int) -> None:
        optimizer = tf.keras.optimizers.Adam(0.1, epsilon=[1e-7, 0.5][rank], clipnorm=[None, 1.0][rank])
        apply(optimizer, (gradient(1, 1), variable()))

    absent = r"clipnorm is \(absent\) on rank 0 and 1\.0 on rank 1; epsilon is 1e-07 on rank 0 and 0\.5 on rank 1"
    with pytest.raises(errors.UnequalHypersError, match=absent):
        across_processes(step)


def test_optimizers_of_different_classes_are_refused_at_the_first_step() -> None:
    def step(rank: int) -> None:
        make = [tf.keras.optimizers.SGD, tf.keras.optimizers.Adam][rank]
        apply(make(0.1), (gradient(1, 1), variable()))

    with pytest.raises(errors.UnequalHypersError, match=r"class is SGD on rank 0 and Adam on rank 1"):
        across_processes(step)


@pytest.mark.parametrize("changed", ["epsilon", "clipvalue", "amsgrad"])
def test_setting_that_one_process_changes_later_is_refused_before_a_variable_changes(changed: str) -> None:
    def step(rank: int) -> None:
        w, optimizer = variable(), tf.keras.optimizers.Adam(0.1, epsilon=0.1)
        apply(optimizer, (gradient(1, 1), w))
        before = w.numpy().tolist()
        if rank:
            setattr(optimizer, changed, 0.25)
        with pytest.raises(errors.UnequalHypersError, match=r"rank . and rank . have different settings .* at step 1"):
            apply(optimizer, (gradient(1, 1), w))
        assert w.numpy().tolist() == before

    across_processes(step)


def test_setting_that_all_processes_change_alike_is_not_refused() -> None:
    def step(rank: int) -> None:
        w, optimizer = variable(), tf.keras.optimizers.Adam(0.1)
        apply(optimizer, (gradient(1, 1), w))
        optimizer.epsilon, optimizer.global_clipnorm = 0.5, 1.0
        apply(optimizer, (gradient(1, 1), w))

    across_processes(step)


class Scaled(tf.keras.optimizers.SGD):
    """Keeps a setting under another name than it has in the configuration, and a count that is no setting."""

    def __init__(self) -> None:
        super().__init__(1.0)
        self._kept, self.calls = 2.0, 0

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "scale": self._kept}


def test_settings_of_a_users_class_are_those_of_its_configuration() -> None:
    def step(rank: int) -> None:
        w, optimizer = variable(), Scaled()
        for count in range(3):
            optimizer.calls += rank
            optimizer._kept = float(count)
            apply(optimizer, (gradient(1, 1), w))
        optimizer._kept = float(rank)
        with pytest.raises(errors.UnequalHypersError, match="different settings"):
            apply(optimizer, (gradient(1, 1), w))

    across_processes(step)


def test_callable_learning_rate_of_the_first_replica_holds_for_all_processes() -> None:
    def step(rank: int) -> None:
        w = variable()
        apply(tf.keras.optimizers.SGD(lambda: [1.0, 0.5][rank]), (gradient(1, 1), w))
        assert w.numpy().tolist() == [-2.0, -2.0]

    across_processes(step)


@catches(errors.UnequalStepsError)
def test_iterations_that_differ_between_processes_are_refused() -> None:
    def step(rank: int) -> None:
        w, optimizer = variable(), tf.keras.optimizers.SGD(1.0)
        optimizer.iterations.write_all("assign", np.int64(5 * rank))
        apply(optimizer, (gradient(1, 1), w))

    with pytest.raises(errors.UnequalStepsError, match=r"at step [05].*at step [05]"):
        across_processes(step)


@catches(errors.UnequalValuesError)
def test_variable_that_begins_with_another_value_on_one_process_is_refused() -> None:
    outside = [tf.Variable(np.float32([1, 2]), name="w") for _ in range(3)]

    def first_step(strategy: tf.distribute.Strategy, w: tf.Variable) -> None:
        optimizer = tf.keras.optimizers.SGD(1.0)
        strategy.run(lambda: apply(optimizer, (gradient(1, 1), w)))

    def worker(strategy: tf.distribute.Strategy) -> None:
        rank = strategy.extended.rank
        with strategy.scope():
            shared, assigned = (variable("a", np.random.default_rng(rank).normal(size=2)) for _ in range(2))
        for ours in (outside[rank], shared, outside[rank]):
            first_step(strategy, ours)
        assigned.assign([0.0, float(rank == 1)])
        before = assigned.numpy()
        with pytest.raises(errors.UnequalValuesError, match=r"'a:0' has another.*rank 1 than.*rank 0 \(as 2 of 3\)"):
            first_step(strategy, assigned)
        assert assigned.numpy().tolist() == before.tolist()

    run_strategy(worker, 3, num_workers=3)


def test_copies_that_replicas_have_of_their_own_may_differ() -> None:
    def step(rank: int) -> None:
        w = variable()
        optimizer = tf.keras.optimizers.SGD(1.0)
        apply(optimizer, (gradient(rank, 1), w), experimental_aggregate_gradients=False)
        apply(tf.keras.optimizers.SGD(1.0), (gradient(1, 1), w))
        assert w.numpy().tolist() == [-rank - 2, -3]

    across_processes(step)


# ---------------------------------------------------------------- whose optimizer, whose variable


@catches(errors.TwoStrategiesError)
def test_optimizer_under_two_strategies_is_refused(strategy: MirroredStrategy) -> None:
    w, optimizer, other = variable(), tf.keras.optimizers.SGD(1.0), MirroredStrategy(3)
    strategy.run(lambda: apply(optimizer, (gradient(1, 1), w)))
    with pytest.raises(errors.TwoStrategiesError, match=r"2 replicas.*3 replicas"):
        other.run(lambda: apply(optimizer, (gradient(1, 1), w)))
    assert w.numpy().tolist() == [-2.0, -2.0]


def test_optimizer_may_make_steps_outside_of_strategies_and_then_under_one(strategy: MirroredStrategy) -> None:
    w, optimizer = variable(), tf.keras.optimizers.SGD(1.0)
    apply(optimizer, (gradient(1, 1), w))
    strategy.run(lambda: apply(optimizer, (gradient(1, 1), w)))
    apply(optimizer, (gradient(1, 1), w))
    assert w.numpy().tolist() == [-4.0, -4.0]


@catches(errors.ForeignVariableError)
def test_variable_of_another_strategy_is_refused(strategy: MirroredStrategy) -> None:
    other = MirroredStrategy(3)
    with other.scope():
        w = variable()
    optimizer = tf.keras.optimizers.SGD(1.0)
    with pytest.raises(errors.ForeignVariableError, match=r"w:0.*3 replicas.*2 replicas"):
        strategy.run(lambda: apply(optimizer, (gradient(1, 1), w)))


# ---------------------------------------------------------------- finite


@catches(errors.NonFiniteGradientError)
@pytest.mark.parametrize("num_replicas", [1, 2, 5])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_gradient_is_refused_with_variable_replica_and_step(num_replicas: int, value: float) -> None:
    strategy, last = MirroredStrategy(num_replicas), num_replicas - 1
    w, b, optimizer = variable("w"), variable("b"), tf.keras.optimizers.SGD(1.0)

    def step(bad: float) -> None:
        own = bad if replica_id() == last else 1.0
        apply(optimizer, (gradient(1, 1), w), (gradient(1, own), b))

    strategy.extended.checks = Checks(non_finite="raise")
    strategy.run(step, (1.0,))
    with pytest.raises(errors.NonFiniteGradientError, match=f"at step 1: b:0 on replica {last}$"):
        strategy.run(step, (value,))
    assert (w.numpy().tolist(), int(optimizer.iterations.numpy())) == ([-num_replicas] * 2, 1)


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_every_process_names_the_replica_of_a_non_finite_gradient(num_workers: int) -> None:
    def worker(strategy: tf.distribute.Strategy) -> str:
        w, optimizer = variable(), tf.keras.optimizers.SGD(1.0)
        strategy.extended.checks = Checks(non_finite="raise")
        with pytest.raises(errors.NonFiniteGradientError) as caught:
            strategy.run(lambda: apply(optimizer, (gradient(1, [1.0, np.inf][replica_id()]), w)))
        return str(caught.value)

    expected = "a gradient is infinite or not a number at step 0: w:0 on replica 1"
    assert run_strategy(worker, 2, num_workers) == [expected] * num_workers


@pytest.mark.parametrize(("aggregator", "num_workers"), [(Sum(), 1), (Median(), 1), (Sum(), 2), (Median(), 2)])
def test_non_finite_gradient_of_a_lone_replica_is_refused_too(aggregator: Any, num_workers: int) -> None:
    def worker(strategy: tf.distribute.Strategy) -> tuple[str, list[float]]:
        w, optimizer = variable(), tf.keras.optimizers.SGD(1.0, gradient_aggregator=aggregator)
        strategy.extended.checks = Checks(non_finite="raise")
        with pytest.raises(errors.NonFiniteGradientError) as caught:
            strategy.run(lambda: apply(optimizer, (gradient(1, np.inf), w)))
        return str(caught.value), w.numpy().tolist()

    expected = "a gradient is infinite or not a number at step 0: w:0 on replica 0", [0.0, 0.0]
    assert run_strategy(worker, 1, num_workers) == [expected] * num_workers


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("aggregate", [True, False])
@pytest.mark.parametrize("sparse", [True, False])
def test_step_with_a_non_finite_gradient_is_skipped_by_all(num_workers: int, aggregate: bool, sparse: bool) -> None:
    def worker(strategy: tf.distribute.Strategy) -> tuple[Any, int]:
        w, optimizer = variable(), tf.keras.optimizers.SGD(1.0, momentum=0.5)
        strategy.extended.checks = Checks(non_finite="skip", never_reduced="ignore")

        def step(value: float) -> None:
            own: Any = gradient(value if replica_id() else 1.0, 1.0)
            own = tf.IndexedSlices(own.numpy(), [0, 1], (2,)) if sparse else own
            apply(optimizer, (own, w), experimental_aggregate_gradients=aggregate)

        for value in (1.0, np.nan, 1.0):
            strategy.run(step, (value,))
        return w.numpy().tolist(), int(optimizer.iterations.numpy())

    expected = [-5.0, -5.0] if aggregate else [-2.5, -2.5]
    assert run_strategy(worker, 2, num_workers) == [(expected, 2)] * num_workers


def test_non_finite_gradient_is_applied_as_in_the_reference_unless_asked_for(strategy: MirroredStrategy) -> None:
    w, optimizer = variable(), tf.keras.optimizers.SGD(1.0)
    strategy.run(lambda: apply(optimizer, (gradient(np.nan, 1), w)))
    np.testing.assert_array_equal(w.numpy(), [np.nan, -2.0])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_finite_numbers_whose_sum_overflows_are_finite(dtype: Any) -> None:
    largest = ml_dtypes.finfo(dtype).max
    assert are_finite([np.full(3, largest, dtype)])
    assert not are_finite([np.array([1, np.inf, -np.inf], dtype)])
    assert not are_finite([tf.IndexedSlices(np.array([[np.nan]], dtype), [0], (1, 1))])


def test_checks_refuse_what_they_do_not_know() -> None:
    with pytest.raises(ValueError, match=r"non_finite.*raise, skip, ignore.*'warn'"):
        Checks(non_finite="warn")  # type: ignore[arg-type]  # the mistake under test


# ---------------------------------------------------------------- the catalogue


def leaves(error: type[MistakeError]) -> Iterator[type[MistakeError]]:
    for subclass in error.__subclasses__():
        yield subclass
        yield from leaves(subclass)


def test_every_mistake_has_one_test() -> None:
    assert set(tests) == set(leaves(MistakeError))
    assert len(tests) >= 15


def test_page_lists_every_mistake_once_and_says_what_else_it_is() -> None:
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in PAGE.read_text().splitlines()]
    rows = [row for row in rows if len(row) == 4 and row[2].startswith("`")]
    listed = [match.groups() for row in rows if (match := re.fullmatch(r"`(\w+)`(?: \((\w+)\))?", row[2]))]
    assert sorted(name for name, _ in listed) == sorted(error.__name__ for error in tests)
    for name, other in listed:
        kinds = {kind.__name__ for kind in getattr(errors, str(name)).__mro__}
        assert other is None or other in kinds, f"{name} is no {other}"
    assert all(all(row) for row in rows), "a cell is empty"


def test_tree_of_errors_names_every_mistake() -> None:
    tree = errors.__doc__ or ""
    assert [name for name in (error.__name__ for error in tests) if f"── {name} (" not in tree] == []


def test_code_of_the_page_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    (tmp_path / "page.py").write_text("".join(blocks))
    runpy.run_path(str(tmp_path / "page.py"))
    said = re.findall(r"^print.*\n# (.*)$", "".join(blocks), flags=re.MULTILINE)
    assert capsys.readouterr().out.splitlines() == said
