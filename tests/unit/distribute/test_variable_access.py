"""The table of variable writes: synchronization x aggregation x context; values as TensorFlow 2.21 gives them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import distopt as tf
from distopt.distribute import MirroredStrategy, OneDeviceStrategy
from distopt.errors import ReplicaContextError

Aggregation = tf.VariableAggregation
Synchronization = tf.VariableSynchronization
SUM, MEAN, FIRST, NONE = Aggregation.SUM, Aggregation.MEAN, Aggregation.ONLY_FIRST_REPLICA, Aggregation.NONE


@pytest.fixture
def strategy() -> MirroredStrategy:
    return MirroredStrategy(2)


def replica_id() -> int:
    context = tf.distribute.get_replica_context()
    assert context is not None
    return int(context.replica_id_in_sync_group)


def tensor(*values: float) -> tf.Tensor:
    return tf.Tensor(np.asarray(values, np.float32))


def made(strategy: Any, values: Any, **options: Any) -> tf.Variable:
    with strategy.scope():
        return tf.Variable(np.asarray(values, np.float32), **options)


def local(strategy: Any, value: Any) -> list[Any]:
    return [np.asarray(component).tolist() for component in strategy.experimental_local_results(value)]


def row(value: float) -> tf.IndexedSlices:
    return tf.IndexedSlices(np.float32([value]), [1], (3,))


SCATTERED: dict[str, dict[Aggregation, Any]] = {
    "scatter_add": {NONE: [3, 4], SUM: [6, 6], MEAN: [3.5, 3.5], FIRST: [3, 3]},
    "scatter_sub": {NONE: [-1, -2], SUM: [-4, -4], MEAN: [-1.5, -1.5], FIRST: [-1, -1]},
    "scatter_mul": {NONE: [2, 3], SUM: [6, 6], MEAN: [1.5, 1.5], FIRST: [2, 2]},
    "scatter_div": {NONE: [1 / 2, 1 / 3], SUM: [1 / 6, 1 / 6], MEAN: [1 / 1.5, 1 / 1.5], FIRST: [1 / 2, 1 / 2]},
    "scatter_min": {NONE: [1, 1], SUM: None, MEAN: None, FIRST: [1, 1]},
    "scatter_max": {NONE: [2, 3], SUM: None, MEAN: None, FIRST: [2, 2]},
    "scatter_update": {NONE: [2, 3], SUM: None, MEAN: None, FIRST: [2, 2]},
}
"""Row 1 on each replica, of ones that replica r scatters ``r + 2`` to; None: NotImplementedError."""


@pytest.mark.parametrize("operation", SCATTERED)
@pytest.mark.parametrize("aggregation", Aggregation)
def test_rows_scattered_in_replicas_follow_the_aggregation(
    strategy: MirroredStrategy, operation: str, aggregation: Aggregation
) -> None:
    variable = made(strategy, [1, 1, 1], aggregation=aggregation)

    def scatter() -> None:
        getattr(variable, operation)(row(2.0 + replica_id()))

    expected = SCATTERED[operation][aggregation]
    if expected is None:
        with pytest.raises(NotImplementedError, match=operation):
            strategy.run(scatter)
        with strategy.scope(), pytest.raises(NotImplementedError, match=operation):
            getattr(variable, operation)(row(2.0))
        assert variable.numpy().tolist() == [1, 1, 1]
        return
    strategy.run(scatter)
    np.testing.assert_allclose(local(strategy, variable), [[1, x, 1] for x in expected], rtol=1e-6)


def test_rows_scattered_outside_of_replicas_change_every_copy(strategy: MirroredStrategy) -> None:
    variable = made(strategy, [1, 1, 1])
    strategy.run(lambda: variable.assign(tensor(*[1.0 + replica_id()] * 3)))
    variable.scatter_add(row(2.0))
    assert local(strategy, variable) == [[1, 3, 1], [2, 4, 2]]


@pytest.mark.parametrize(
    ("slices", "error", "message"),
    [
        (tensor(1.0), TypeError, "IndexedSlices"),
        (tf.IndexedSlices(np.float32([1.0]), [3]), ValueError, "no row 3"),
        (tf.IndexedSlices(np.float64([1.0]), [0]), ValueError, "float64"),
        (tf.IndexedSlices(np.float32([[1.0]]), [0]), ValueError, "do not fit"),
    ],
)
def test_rows_that_do_not_fit_are_refused(slices: Any, error: type[Exception], message: str) -> None:
    variable = tf.Variable(np.zeros(3, np.float32))
    with pytest.raises(error, match=message):
        variable.scatter_add(slices)
    assert variable.numpy().tolist() == [0, 0, 0]


@pytest.mark.parametrize("aggregation", [SUM, MEAN, FIRST])
def test_reads_of_an_on_read_variable_outside_of_replicas_aggregate(
    strategy: MirroredStrategy, aggregation: Aggregation
) -> None:
    variable = made(strategy, [0, 0], synchronization=Synchronization.ON_READ, aggregation=aggregation)
    inside = strategy.run(lambda: variable.assign_add(tensor(1.0 + replica_id(), 1.0)).numpy())
    assert local(strategy, inside) == [[1, 1], [2, 1]]
    expected = {SUM: [3, 2], MEAN: [1.5, 1], FIRST: [1, 1]}[aggregation]
    assert variable.numpy().tolist() == expected
    assert (variable + 1.0).numpy().tolist() == [x + 1 for x in expected]
    with strategy.scope():
        assert variable.value().numpy().tolist() == expected
    assert strategy.extended.read_var(variable).numpy().tolist() == expected
    with tf.GradientTape():
        assert (variable * 2.0).numpy().tolist() == [2 * x for x in expected]
    assert local(strategy, variable) == [[1, 1], [2, 1]]


def test_on_read_variable_assigned_outside_of_replicas_holds_the_value_or_its_shares(
    strategy: MirroredStrategy,
) -> None:
    for aggregation in (MEAN, FIRST):
        variable = made(strategy, [0, 0], synchronization=Synchronization.ON_READ, aggregation=aggregation)
        variable.assign([10.0, 4.0])
        variable.assign_add([1.0, 1.0])
        assert local(strategy, variable) == [[11, 5], [11, 5]]
    summed = made(strategy, [0, 0], synchronization=Synchronization.ON_READ, aggregation=SUM)
    with strategy.scope():
        summed.assign([10.0, 4.0])
    assert local(strategy, summed) == [[5, 2], [5, 2]]
    for write in (summed.assign_add, summed.assign_sub):
        with pytest.raises(ValueError, match="would count once a replica"):
            write([1.0, 1.0])
    with strategy.scope():
        whole = tf.Variable(0, synchronization=Synchronization.ON_READ, aggregation=SUM)
    whole.assign(5)
    assert local(strategy, whole) == [2, 2]


def test_on_read_variable_offers_no_scatter(strategy: MirroredStrategy) -> None:
    variable = made(strategy, [0, 0, 0], synchronization=Synchronization.ON_READ, aggregation=SUM)
    with pytest.raises(NotImplementedError, match="ON_READ"):
        strategy.run(lambda: variable.scatter_add(row(1.0)))
    with pytest.raises(NotImplementedError, match="ON_READ"):
        variable.scatter_update(row(1.0))


def test_synchronization_none_says_nothing_under_a_strategy(strategy: MirroredStrategy) -> None:
    with pytest.raises(ValueError, match="synchronization NONE"):
        made(strategy, 0.0, synchronization=Synchronization.NONE)
    assert float(tf.Variable(1.0, synchronization=Synchronization.NONE).numpy()) == 1.0


@pytest.mark.parametrize("value", [7.0, [7.0], (7.0,)])
def test_numbers_for_a_sum_variable_in_a_replica_are_refused(strategy: MirroredStrategy, value: Any) -> None:
    variable = made(strategy, [0], aggregation=SUM)
    with pytest.raises(ValueError, match="would add it up 2 times"):
        strategy.run(lambda: variable.assign(value))


@pytest.mark.parametrize("value", [tensor(1.0, 2.0), np.float64([1.0])])
def test_value_that_does_not_fit_is_refused_before_replicas_meet(strategy: MirroredStrategy, value: Any) -> None:
    variable = made(strategy, [0], aggregation=MEAN)
    with pytest.raises((ValueError, TypeError)):
        strategy.run(lambda: variable.assign(tf.Tensor(value)))
    assert variable.numpy().tolist() == [0]


def test_one_replica_has_the_same_rules() -> None:
    strategy = OneDeviceStrategy("/cpu:0")
    variable = made(strategy, [1], synchronization=Synchronization.ON_READ, aggregation=SUM)
    strategy.run(lambda: variable.assign_add(tensor(2.0)))
    assert variable.numpy().tolist() == [3]
    variable.assign([5.0])
    assert local(strategy, variable) == [[5]]


def uses(variable: tf.Variable) -> list[Callable[[], Any]]:
    optimizer = tf.keras.optimizers.SGD(1.0)
    return [
        lambda: optimizer.apply_gradients([(tensor(1.0), variable)]),
        lambda: optimizer.apply_gradients([(tensor(1.0), variable)], experimental_aggregate_gradients=False),
        lambda: variable.assign(tensor(1.0)),
        lambda: variable.numpy(),
    ]


@pytest.mark.parametrize("use", range(4))
def test_variable_with_copies_of_one_strategy_is_refused_by_another(strategy: MirroredStrategy, use: int) -> None:
    variable = tf.Variable(np.zeros(1, np.float32))
    strategy.run(lambda: variable.assign(tensor(float(replica_id()))))
    other = MirroredStrategy(2)
    with pytest.raises((ValueError, ReplicaContextError), match=r"Variable.*MirroredStrategy"):
        other.run(uses(variable)[use])
    assert local(strategy, variable) == [[0], [1]]
    with pytest.raises(ReplicaContextError, match="read of"), other.scope():
        variable.numpy()


def test_variable_made_in_another_strategys_scope_cannot_be_updated(strategy: MirroredStrategy) -> None:
    variable = made(strategy, [0])
    with pytest.raises(ValueError, match="was created under MirroredStrategy"):
        MirroredStrategy(3).run(uses(variable)[0])
    assert variable.numpy().tolist() == [0]


def test_deep_copy_of_a_split_variable_has_its_copies(strategy: MirroredStrategy) -> None:
    variable = made(strategy, [0, 0], synchronization=Synchronization.ON_READ, aggregation=SUM)
    strategy.run(lambda: variable.assign(tensor(1.0 + replica_id(), 5.0)))
    twin = copy.deepcopy(variable)
    strategy.run(lambda: variable.assign(tensor(0.0, 0.0)))
    assert twin.numpy().tolist() == [3, 10]
    assert twin.strategy is strategy


def test_repr_of_a_variable_with_copies_asks_no_other_process(strategy: MirroredStrategy) -> None:
    variable = made(strategy, [0], synchronization=Synchronization.ON_READ, aggregation=NONE)
    strategy.run(lambda: variable.assign(tensor(1.0 + replica_id())))
    assert "copies={0: array([1.], dtype=float32), 1: array([2.], dtype=float32)}" in repr(variable)


@pytest.mark.parametrize(("aggregation", "copies"), [(SUM, [[1.5, 4], [1.5, 4]]), (MEAN, [[1.5, 4], [1.5, 4]])])
def test_checkpoint_holds_what_copies_come_to_and_gives_each_its_share(
    strategy: MirroredStrategy, aggregation: Aggregation, copies: Any, tmp_path: Path
) -> None:
    variable = made(strategy, [0, 0], synchronization=Synchronization.ON_READ, aggregation=aggregation)
    strategy.run(lambda: variable.assign(tensor(1.0 + replica_id(), 4.0)))
    before = variable.numpy().tolist()
    checkpoint = tf.train.Checkpoint(variable=variable)
    path = checkpoint.save(str(tmp_path / "checkpoint"))
    variable.assign([0.0, 0.0])
    checkpoint.restore(path)
    assert variable.numpy().tolist() == before
    assert local(strategy, variable) == copies
