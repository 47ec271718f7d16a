"""Losses per example, their reductions, and their scale under replicas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from distopt import losses
from distopt.autodiff.tape import GradientTape
from distopt.distribute import MirroredStrategy
from distopt.losses import Reduction
from distopt.tensor import Tensor
from distopt.types import Array

ONE_HOT = np.eye(3, dtype=np.float32)[[0, 2]]
LABELS = np.array([0, 2])
LOGITS = np.array([[2.0, -1.0, 0.5], [0.1, 0.2, 0.3]], np.float32)


def softmax(logits: Array) -> Array:
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


# ---------------------------------------------------------------- per example


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (losses.mean_squared_error, [2.5, 4.5]),
        (losses.mean_absolute_error, [1.5, 1.5]),
        (losses.huber, [(0.5 + 1.5) / 2, 2.5 / 2]),
    ],
)
def test_regression_loss_is_a_mean_over_the_last_axis(function: Callable[..., Any], expected: list[float]) -> None:
    result = function([[1, 3], [5, 7]], np.array([[2.0, 5.0], [5.0, 4.0]], np.float32))
    np.testing.assert_allclose(result.numpy(), expected)
    assert result.dtype == np.float32


def test_regression_loss_with_labels_lacking_the_last_axis_does_not_broadcast() -> None:
    result = losses.mean_squared_error(np.array([1.0, 2.0, 4.0]), np.zeros((3, 1), np.float32))
    np.testing.assert_array_equal(result.numpy(), [1.0, 4.0, 16.0])


@pytest.mark.parametrize("labels", [LABELS, LABELS[:, np.newaxis], LABELS.astype(np.float32), LABELS.tolist()])
def test_sparse_categorical_crossentropy_is_minus_the_log_of_the_softmax(labels: Any) -> None:
    expected = -np.log(softmax(LOGITS)[[0, 1], LABELS])
    result = losses.sparse_categorical_crossentropy(labels, LOGITS, from_logits=True)
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-6)


def test_crossentropies_agree_between_logits_and_probabilities() -> None:
    expected = -np.log(softmax(LOGITS)[[0, 1], LABELS])
    for result in (
        losses.sparse_categorical_crossentropy(LABELS, softmax(LOGITS)),
        losses.categorical_crossentropy(ONE_HOT, LOGITS, from_logits=True),
        losses.categorical_crossentropy(ONE_HOT, 3 * softmax(LOGITS)),
    ):
        np.testing.assert_allclose(result.numpy(), expected, rtol=1e-5)


def test_categorical_crossentropy_smooths_labels() -> None:
    expected = -np.sum((ONE_HOT * 0.7 + 0.1) * np.log(softmax(LOGITS)), axis=-1)
    result = losses.categorical_crossentropy(ONE_HOT, LOGITS, from_logits=True, label_smoothing=0.3)
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("from_logits", [False, True])
def test_binary_crossentropy_is_the_closed_form(from_logits: bool) -> None:
    x, y = np.array([[0.3, -2.0], [0.0, 4.0]], np.float32), np.array([[1, 0], [0, 1]])
    p = 1 / (1 + np.exp(-x))
    expected = -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean(axis=-1)
    result = losses.binary_crossentropy(y, x if from_logits else p, from_logits=from_logits)
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("x", [-200.0, -1.0, 0.0, 1.0, 200.0])
def test_binary_crossentropy_from_logits_has_the_derivative_of_the_closed_form(x: float) -> None:
    logits = Tensor(np.array([[x]]))
    with GradientTape() as tape:
        tape.watch(logits)
        loss = losses.binary_crossentropy(np.array([[1.0]]), logits, from_logits=True)
    np.testing.assert_allclose(tape.gradient(loss, logits).numpy(), [[1 / (1 + np.exp(-x)) - 1]], atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "function",
    [
        losses.mean_squared_error,
        losses.mean_absolute_error,
        losses.huber,
        losses.binary_crossentropy,
        losses.categorical_crossentropy,
    ],
)
def test_loss_has_the_dtype_of_the_predictions_and_takes_zero_rows(function: Callable[..., Any], dtype: Any) -> None:
    result = function(np.zeros((0, 3)), np.zeros((0, 3), dtype))
    assert result.dtype == dtype
    assert result.shape == (0,)


# ---------------------------------------------------------------- reductions


@pytest.mark.parametrize(
    ("reduction", "expected"), [("none", [1.0, 4.0]), ("sum", 5.0), ("sum_over_batch_size", 2.5), ("auto", 2.5)]
)
def test_loss_reduction_is_tensorflows(reduction: str, expected: Any) -> None:
    loss = losses.MeanSquaredError(reduction=reduction)
    np.testing.assert_array_equal(loss([[1.0], [2.0]], [[2.0], [4.0]]).numpy(), expected)


@pytest.mark.parametrize("weights", [[0.5, 0.25], [[0.5], [0.25]]])
def test_loss_weights_do_not_enter_the_divisor(weights: Any) -> None:
    result = losses.MeanSquaredError()([[1.0], [2.0]], [[2.0], [4.0]], sample_weight=weights)
    assert result.numpy() == np.float32(0.75)


def test_loss_unknown_reduction_is_refused() -> None:
    with pytest.raises(ValueError, match="'mean'"):
        losses.MeanSquaredError(reduction="mean")


@pytest.mark.parametrize("reduction", list(Reduction))
def test_loss_under_a_strategy_refuses_to_divide_by_its_own_examples(reduction: Reduction) -> None:
    loss = losses.MeanSquaredError(reduction=reduction)
    with MirroredStrategy(2).scope():
        if reduction in (Reduction.NONE, Reduction.SUM):
            assert loss([[1.0]], [[2.0]]).numpy() == np.float32(1.0)
        else:
            with pytest.raises(ValueError, match="compute_average_loss"):
                loss([[1.0]], [[2.0]])


# ---------------------------------------------------------------- scaling


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (([1, 2, 3],), 2.0),
        (([1.0, 2.0, 3.0], None, 6), 1.0),
        (([1.0, 2.0, 3.0], [1.0, 0.5, 0.0], 6), 0.33333334),
        (([1.0, 2.0, 3.0], None, 0), 0.0),
        (([[1.0, 2.0], [3.0, 4.0]],), 5.0),
    ],
)
def test_compute_average_loss_divides_by_the_global_batch(arguments: tuple[Any, ...], expected: float) -> None:
    result = losses.compute_average_loss(*arguments)
    assert result.numpy() == np.float32(expected)
    assert result.dtype == np.float32


def test_compute_average_loss_in_a_replica_counts_all_replicas() -> None:
    results = MirroredStrategy(2).run(lambda: losses.compute_average_loss([1.0, 2.0, 3.0]))
    assert [float(result) for result in results.values] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("loss", "size", "error"),
    [
        (1.0, None, ValueError),
        ([1.0], 2.0, TypeError),
        ([1.0], [2], ValueError),
        ([1.0], -2, ValueError),
    ],
)
def test_compute_average_loss_wrong_argument_is_refused(loss: Any, size: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        losses.compute_average_loss(loss, global_batch_size=size)


def test_compute_average_loss_in_cross_replica_context_needs_a_size() -> None:
    with MirroredStrategy(2).scope():
        assert losses.compute_average_loss([1.0, 2.0], global_batch_size=2).numpy() == np.float32(1.5)
        with pytest.raises(RuntimeError, match="cross-replica"):
            losses.compute_average_loss([1.0, 2.0])


def test_scale_regularization_loss_divides_by_the_number_of_replicas() -> None:
    strategy = MirroredStrategy(2)
    assert losses.scale_regularization_loss([1.0, 2.0]).numpy() == np.float32(3.0)
    parts = strategy.run(lambda: losses.scale_regularization_loss([1.0, 2.0]))
    assert [float(part) for part in parts.values] == [1.5, 1.5]
    with strategy.scope(), pytest.raises(RuntimeError, match="cross-replica"):
        losses.scale_regularization_loss([1.0, 2.0])
