"""The catalogue of mistakes: each is caught by its own error, and what is right is let through.

One test for each error, marked with it by :func:`catches`; the last tests check that none is missing, here or in
docs/mistakes.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

import distopt as tf
from distopt import errors
from distopt.distribute import MirroredStrategy, PerReplica
from distopt.errors import MistakeError

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
def test_variable_that_every_replica_creates_is_refused(strategy: MirroredStrategy) -> None:
    optimizer = tf.keras.optimizers.SGD(1.0)
    with pytest.raises(errors.VariablePerReplicaError, match=r"scope\(\)"):
        strategy.run(lambda: apply(optimizer, (gradient(1, 1), variable())))


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


# ---------------------------------------------------------------- scaling


@catches(errors.LocalMeanLossError)
@pytest.mark.parametrize("reduction", ["auto", "sum_over_batch_size"])
def test_loss_averaged_by_the_local_batch_is_refused(strategy: MirroredStrategy, reduction: str) -> None:
    loss = tf.keras.losses.MeanSquaredError(reduction)
    with pytest.raises(errors.LocalMeanLossError, match="compute_average_loss"):
        strategy.run(lambda: loss([[1.0]], [[2.0]]))


@catches(errors.NumberToSumVariableError)
def test_number_assigned_on_every_replica_to_a_sum_variable_is_refused(strategy: MirroredStrategy) -> None:
    total = tf.Variable(np.float32(0), aggregation=tf.VariableAggregation.SUM)
    with pytest.raises(errors.NumberToSumVariableError, match="2 times"):
        strategy.run(lambda: total.assign_add(1.0))


@catches(errors.CountedManyTimesError)
def test_sum_over_replicas_of_one_value_is_refused(strategy: MirroredStrategy) -> None:
    with pytest.raises(errors.CountedManyTimesError, match="2 times"):
        strategy.reduce("SUM", 3.0, axis=None)


@catches(errors.PerReplicaAsTensorError)
def test_value_of_each_replica_used_as_a_tensor_is_refused() -> None:
    with pytest.raises(errors.PerReplicaAsTensorError, match=r"strategy\.reduce"):
        np.asarray(PerReplica([gradient(1), gradient(2)]))


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
