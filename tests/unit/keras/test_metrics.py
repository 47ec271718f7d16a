"""Metrics are means over examples; losses and metrics are found by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import distopt as tf
from distopt import losses as foundation_losses
from distopt.distribute import MirroredStrategy, Strategy
from distopt.keras import losses, metrics
from distopt.testing import run_strategy

SCORES = np.array([[0.1, 0.7, 0.2], [0.6, 0.3, 0.1], [0.2, 0.3, 0.5]], np.float32)


@pytest.mark.parametrize(
    ("metric", "labels", "predictions", "expected"),
    [
        (metrics.SparseCategoricalAccuracy(), [1, 0, 0], SCORES, 2 / 3),
        (metrics.SparseCategoricalAccuracy(), [[1], [0], [0]], SCORES, 2 / 3),
        (metrics.CategoricalAccuracy(), np.eye(3)[[1, 1, 2]], SCORES, 2 / 3),
        (metrics.BinaryAccuracy(), [1, 0, 1], [[0.9], [0.2], [0.4]], 2 / 3),
        (metrics.BinaryAccuracy(), [[1, 0]], [[0.9, 0.8]], 1 / 2),
        (metrics.FittingAccuracy(), [1, 0, 0], SCORES, 2 / 3),
        (metrics.FittingAccuracy(), np.eye(3)[[1, 1, 2]], SCORES, 2 / 3),
        (metrics.FittingAccuracy(), [1, 0, 1], [[0.9], [0.2], [0.4]], 2 / 3),
        (metrics.MeanSquaredError(), [[1.0], [2.0]], [[2.0], [4.0]], 2.5),
        (metrics.MeanAbsoluteError(), [[1.0], [2.0]], [[2.0], [4.0]], 1.5),
    ],
)
def test_metric_is_the_mean_over_examples(metric: Any, labels: Any, predictions: Any, expected: float) -> None:
    assert float(metric(labels, predictions)) == pytest.approx(expected)


def test_metric_goes_on_over_batches_until_it_is_reset() -> None:
    metric = metrics.SparseCategoricalAccuracy()
    metric.update_state([1], SCORES[:1])
    metric.update_state([2, 1], SCORES[1:])
    assert float(metric.result()) == pytest.approx(1 / 3)
    metric.reset_state()
    assert float(metric.result()) == 0.0


def test_metric_counts_examples_by_their_weight() -> None:
    metric = metrics.SparseCategoricalAccuracy()
    assert float(metric([1, 1, 1], SCORES, sample_weight=[3.0, 1.0, 0.0])) == 0.75


def test_metric_of_no_examples_is_zero() -> None:
    assert float(metrics.FittingAccuracy()(np.zeros(0, int), np.zeros((0, 3)))) == 0.0


def test_get_metric_by_name_function_or_object() -> None:
    assert metrics.get("acc").name == "acc"
    assert metrics.get(foundation_losses.huber).name == "huber"
    metric = metrics.Accuracy()
    assert metrics.get(metric) is metric


def test_get_loss_by_name_class_name_function_or_object() -> None:
    assert isinstance(losses.get("mse"), losses.MeanSquaredError)
    assert isinstance(losses.get("BinaryCrossentropy"), losses.BinaryCrossentropy)
    loss = losses.get(lambda y_true, y_pred: y_true * y_pred)
    assert loss(2.0, np.float32(3.0)).numpy() == np.float32(6.0)
    assert losses.get(loss) is loss


@pytest.mark.parametrize("module", [losses, metrics])
def test_get_unknown_name_or_thing_is_refused(module: Any) -> None:
    with pytest.raises(ValueError, match="unknown"):
        module.get("no_such")
    with pytest.raises(TypeError, match="not 3"):
        module.get(3)


def test_accuracy_of_class_numbers_is_how_often_they_are_equal() -> None:
    accuracy = metrics.Accuracy()
    accuracy.update_state([[1], [2], [3], [4]], [[0], [2], [3], [4]])
    assert float(accuracy.result()) == 0.75
    accuracy.reset_states()
    assert float(accuracy.result()) == 0.0
    with pytest.raises(ValueError, match="do not fit"):
        accuracy.update_state([1, 2], [[0.1, 0.9], [0.5, 0.5]])


def test_mean_weighs_the_values_it_was_given() -> None:
    mean = metrics.Mean(name="loss")
    mean.update_state([1.0, 3.0], sample_weight=[1.0, 3.0])
    assert mean.name == "loss"
    assert float(mean.result()) == 2.5
    assert float(mean(2.5)) == 2.5


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
def test_metric_made_in_a_scope_is_over_the_examples_of_all_replicas(workers: int) -> None:
    data = np.float32([[1, 2], [3, 4], [5, 6], [7, 8], [9, 30]])

    def body(strategy: Strategy) -> list[float]:
        with strategy.scope():
            error, mean, total = metrics.MeanSquaredError(), metrics.Mean(), metrics.Sum()

        def step(batch: Any) -> tf.Tensor:
            error.update_state(batch[:, :1], batch[:, 1:])
            mean.update_state(batch[:, 0], sample_weight=batch[:, 1])
            return total(batch[:, 0])

        dataset = tf.data.Dataset.from_tensor_slices(data).batch(5)
        (batch,) = strategy.experimental_distribute_dataset(dataset)
        for inside in strategy.experimental_local_results(strategy.run(step, args=(batch,))):
            assert float(inside) == 25.0, "a result inside a replica is over all of them, too"
        found = [float(metric.result()) for metric in (error, mean, total)]
        for metric in (error, mean, total):
            metric.reset_state()
            assert float(metric.result()) == 0.0
        return found

    weighted = float(np.sum(data[:, 0] * data[:, 1]) / np.sum(data[:, 1]))
    for found in run_strategy(body, num_replicas=3, num_workers=workers):
        assert found == pytest.approx([np.mean((data[:, 0] - data[:, 1]) ** 2), weighted, 25.0])


def test_metric_holds_one_value_a_replica_and_reads_as_their_sum() -> None:
    strategy = MirroredStrategy(2)
    with strategy.scope():
        mean = metrics.Mean("mean")

    def step() -> None:
        context = tf.distribute.get_replica_context()
        assert context is not None
        mean.update_state([float(context.replica_id_in_sync_group), 2.0])

    strategy.run(step)
    assert [float(each) for each in strategy.experimental_local_results(mean.total)] == [2.0, 3.0]
    assert [float(variable.numpy()) for variable in mean.variables] == [5.0, 4.0]


def test_metric_made_outside_of_scopes_counts_every_replica_once() -> None:
    mean = metrics.Mean()
    MirroredStrategy(3).run(lambda: mean.update_state([1.0, 2.0]))
    assert [float(variable.numpy()) for variable in mean.variables] == [9.0, 6.0]
