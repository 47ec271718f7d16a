"""The names of ``tf.nn``."""

from __future__ import annotations

import numpy as np
import pytest

from distopt import nn
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
