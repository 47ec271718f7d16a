"""The names of ``tf.nn``."""

from __future__ import annotations

import numpy as np
import pytest

from distopt import nn, random
from distopt.autodiff.tape import GradientTape
from distopt.indexed_slices import IndexedSlices
from distopt.variable import Variable

LOGITS = np.array([[2.0, -1.0, 0.5], [0.1, 0.2, 0.3]], np.float32)


def test_cross_entropies_of_class_numbers_and_of_one_hot_rows_agree() -> None:
    labels = np.array([2, 0])
    sparse = nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=LOGITS)
    dense = nn.softmax_cross_entropy_with_logits(labels=np.eye(3, dtype=np.float32)[labels], logits=LOGITS)
    np.testing.assert_allclose(sparse.numpy(), dense.numpy(), rtol=1e-6)


def test_softmax_cross_entropy_over_another_axis_is_refused() -> None:
    with pytest.raises(ValueError, match="last axis"):
        nn.softmax_cross_entropy_with_logits(LOGITS, LOGITS, axis=0)


def test_l2_loss_is_half_the_sum_of_squares() -> None:
    assert float(nn.l2_loss(np.array([3.0, 4.0]))) == 12.5


def test_embedding_lookup_has_a_row_sparse_gradient() -> None:
    table = Variable(np.arange(6.0).reshape(3, 2))
    with GradientTape() as tape:
        rows = nn.embedding_lookup(table, [2, 0, 2])
    np.testing.assert_array_equal(rows.numpy(), [[4, 5], [0, 1], [4, 5]])
    gradient = tape.gradient(rows, table)
    assert isinstance(gradient, IndexedSlices)
    assert np.asarray(gradient.indices).tolist() == [2, 0, 2]


def test_dropout_zeroes_its_share_and_scales_the_rest() -> None:
    random.set_seed(2)
    x = Variable(np.ones((50, 40), np.float32))
    with GradientTape() as tape:
        y = nn.dropout(x, 0.25)
    values = y.numpy()
    assert set(np.unique(values).tolist()) == {0.0, np.float32(4 / 3)}
    assert abs((values == 0).mean() - 0.25) < 0.05
    np.testing.assert_array_equal(tape.gradient(y, x).numpy(), values)


def test_dropout_with_a_noise_shape_decides_for_whole_rows() -> None:
    values = nn.dropout(np.ones((64, 3), np.float32), 0.5, noise_shape=[64, 1], seed=1).numpy()
    assert (values == values[:, :1]).all()
    assert len(np.unique(values)) == 2


def test_dropout_of_rate_zero_is_the_input_and_of_one_is_refused() -> None:
    assert float(nn.dropout(3.0, 0)) == 3.0
    with pytest.raises(ValueError, match="below 1, not 1"):
        nn.dropout(LOGITS, 1)


def test_moments_are_mean_and_variance() -> None:
    mean, variance = nn.moments(LOGITS, [0], keepdims=True)
    np.testing.assert_allclose(mean.numpy(), LOGITS.mean(0, keepdims=True), rtol=1e-6)
    np.testing.assert_allclose(variance.numpy(), LOGITS.var(0, keepdims=True), rtol=1e-6)


def test_images_with_channels_first_and_biases_that_do_not_fit_are_refused() -> None:
    images = np.ones((1, 2, 2, 1), np.float32)
    for call in (
        lambda: nn.conv2d(images, images, 1, "VALID", data_format="NCHW"),
        lambda: nn.max_pool2d(images, 2, 2, "VALID", data_format="NCHW"),
        lambda: nn.avg_pool2d(images, 2, 2, "VALID", data_format="NCHW"),
        lambda: nn.bias_add(images, [1.0], data_format="NCHW"),
    ):
        with pytest.raises(ValueError, match="channels last"):
            call()
    with pytest.raises(ValueError, match="does not fit a value"):
        nn.bias_add(images, [1.0, 2.0])
    with pytest.raises(ValueError, match="max_norm"):
        nn.embedding_lookup(images, [0], max_norm=1.0)


def test_images_through_the_names_of_nn() -> None:
    image = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
    assert nn.max_pool2d(image, 2, 2, "VALID").numpy().ravel().tolist() == [5, 7, 13, 15]
    assert nn.avg_pool2d(image, 2, 2, "VALID").numpy().ravel().tolist() == [2.5, 4.5, 10.5, 12.5]
    kernel = np.ones((2, 2, 1, 1), np.float32)
    assert nn.conv2d(image, kernel, 2, "VALID").numpy().ravel().tolist() == [10, 18, 42, 50]
    assert nn.conv2d(image, kernel, 1, "VALID", dilations=3).numpy().ravel().tolist() == [30]


def test_sigmoid_cross_entropy_of_large_logits_is_finite() -> None:
    found = nn.sigmoid_cross_entropy_with_logits(labels=[0.0, 1.0, 1.0], logits=[500.0, -500.0, 500.0])
    np.testing.assert_allclose(found.numpy(), [500.0, 500.0, 0.0])
