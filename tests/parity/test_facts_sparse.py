"""Recorded facts about row-sparse gradients, on both engines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import distopt as tf
from distopt.optimizers import set_default_engine
from tests.parity.facts import fact


@pytest.fixture(params=["numpy", "compiled"], autouse=True)
def _engine(request: pytest.FixtureRequest) -> Iterator[None]:
    set_default_engine(request.param)
    yield
    set_default_engine("compiled")


def slices(values: Any, indices: list[int], shape: tuple[int, ...] | None = None) -> tf.IndexedSlices:
    return tf.IndexedSlices(np.float32(values), indices, shape)


def test_every_occurrence_of_a_row_moves_it() -> None:
    variable = tf.Variable(np.float32([[1, 2], [3, 4], [5, 6]]))
    gradient = slices([[1, 1], [2, 2], [4, 4]], [0, 2, 0], (3, 2))
    tf.compat.v1.train.GradientDescentOptimizer(1.0).apply_gradients([(gradient, variable)])
    assert variable.numpy().tolist() == fact("F045")["result"]


def test_duplicates_are_summed_before_they_are_squared() -> None:
    variable = tf.Variable(np.zeros((1, 1), np.float32))
    optimizer = tf.keras.optimizers.legacy.Adagrad(1.0, initial_accumulator_value=0.1)
    optimizer.apply_gradients([(slices([[1], [2]], [0, 0]), variable)])
    np.testing.assert_allclose(optimizer.get_slot(variable, "accumulator").numpy(), fact("F046")["result"], rtol=1e-6)


def test_a_custom_optimizer_receives_distinct_rows_in_order_of_first_occurrence() -> None:
    seen: list[Any] = []

    class Custom(tf.keras.optimizers.legacy.Optimizer):
        def __init__(self) -> None:
            super().__init__("custom")

        def _resource_apply_sparse(self, grad: Any, var: Any, indices: Any, apply_state: Any = None) -> None:
            seen.extend([np.asarray(grad).tolist(), np.asarray(indices).tolist()])

    Custom().apply_gradients([(slices([[1], [2], [3]], [1, 0, 1]), tf.Variable(np.zeros((2, 1), np.float32)))])
    assert seen == fact("F047")["result"]


def test_clips_see_duplicate_rows_one_by_one() -> None:
    found = []
    for clip in ({"clipvalue": 3.5}, {"clipnorm": 1.0}, {"global_clipnorm": 1.0}):
        variable = tf.Variable(np.zeros(2, np.float32))
        tf.keras.optimizers.legacy.SGD(1.0, **clip).apply_gradients([(slices([3, 4], [0, 0]), variable)])
        found.append(float(variable.numpy()[0]))
    np.testing.assert_allclose(found, fact("F048")["result"], rtol=1e-6)


@pytest.mark.parametrize("aggregated", [True, False])
def test_clips_see_the_rows_of_all_replicas_one_by_one(aggregated: bool) -> None:
    """The reference concatenates the rows of all replicas before it clips, so two replicas are as two occurrences."""
    found = []
    for clip in ({"clipvalue": 3.5}, {"clipnorm": 1.0}, {"global_clipnorm": 1.0}):
        strategy = tf.distribute.MirroredStrategy(2)
        with strategy.scope():
            variable = tf.Variable(np.zeros(2, np.float32))
        optimizer = tf.keras.optimizers.legacy.SGD(1.0, momentum=0.5, **clip)

        def step(optimizer: Any = optimizer, variable: Any = variable) -> None:
            context = tf.distribute.get_replica_context()
            rows = slices([3.0 + context.replica_id_in_sync_group], [0])
            if not aggregated:
                rows = context.all_reduce("SUM", rows)
            optimizer.apply_gradients([(rows, variable)], experimental_aggregate_gradients=aggregated)

        strategy.run(step)
        found.append(float(np.asarray(variable)[0]))
    np.testing.assert_allclose(found, fact("F048")["result"], rtol=1e-6)


def test_a_row_that_does_not_exist_is_refused() -> None:
    """The reference's kernels raise InvalidArgumentError; here it is a ValueError, before anything changes."""
    assert fact("F049")["result"] == ["InvalidArgumentError"] * 3
    for momentum, row in ((0.0, 3), (0.9, 3), (0.9, -1)):
        variable = tf.Variable(np.zeros((3, 1), np.float32))
        with pytest.raises(ValueError, match=f"row {row}"):
            tf.keras.optimizers.legacy.SGD(1.0, momentum=momentum).apply_gradients([(slices([[1]], [row]), variable)])
        assert not variable.numpy().any()
