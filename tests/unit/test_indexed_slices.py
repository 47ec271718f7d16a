"""Row-sparse gradients: what they mean, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest

from distopt.indexed_slices import IndexedSlices
from distopt.tensor import Tensor


def _slices() -> IndexedSlices:
    return IndexedSlices(np.float32([[1, 10], [2, 20], [4, 40]]), [2, 0, 2], (3, 2))


def test_indexed_slices_to_dense_sums_duplicates() -> None:
    np.testing.assert_array_equal(_slices().to_dense(), [[2, 20], [0, 0], [5, 50]])
    assert np.asarray(_slices()).dtype == np.float32


def test_indexed_slices_merged_keep_the_order_of_first_occurrence() -> None:
    merged = _slices().merged()
    np.testing.assert_array_equal(merged.indices, [2, 0])
    np.testing.assert_array_equal(merged.values.numpy(), [[5, 50], [2, 20]])
    np.testing.assert_array_equal(merged.to_dense(), _slices().to_dense())


def test_indexed_slices_are_merged_once() -> None:
    merged = _slices().merged()
    assert merged.merged() is merged
    scaled = (merged * 2).with_shape((5, 2))
    assert scaled.merged() is scaled
    assert not IndexedSlices.concatenate([merged, merged]).is_merged
    assert IndexedSlices.concatenate([merged, merged]).merged().indices.tolist() == [2, 0]


def test_indexed_slices_merged_adds_from_left_to_right() -> None:
    values = np.float32([[1e8], [1.0], [-1e8], [1.0]])
    merged = IndexedSlices(values, [0, 0, 0, 0], (1, 1)).merged()
    expected = np.float32(0)
    for value in values[:, 0]:
        expected = expected + value
    np.testing.assert_array_equal(merged.values.numpy(), [[expected]])


def test_indexed_slices_without_duplicates_are_their_own_merger() -> None:
    slices = IndexedSlices(Tensor([[1.0], [2.0]]), Tensor([1, 0]))
    assert slices.merged() is slices
    assert slices.shape is None
    with pytest.raises(ValueError, match="dense_shape"):
        slices.to_dense()


def test_indexed_slices_scaled_keep_their_indices() -> None:
    for scaled, factor in ((-_slices(), -1), (_slices() * 2, 2), (3 * _slices(), 3), (_slices() / 4, 0.25)):
        np.testing.assert_array_equal(scaled.indices, [2, 0, 2])
        np.testing.assert_array_equal(scaled.values.numpy(), factor * _slices().values.numpy())


def test_indexed_slices_of_wrong_lengths_or_indices_are_refused() -> None:
    with pytest.raises(ValueError, match="as many indices"):
        IndexedSlices(np.ones((2, 1)), [0])
    with pytest.raises(TypeError, match="float64"):
        IndexedSlices(np.ones((2, 1)), [0.0, 1.0])
    with pytest.raises(IndexError, match="row 7"):
        IndexedSlices(np.ones((1, 1)), [7], (3, 1)).to_dense()
    assert IndexedSlices(np.ones((0, 2)), [], (3, 2)).to_dense().shape == (3, 2)


def test_indexed_slices_of_replicas_are_merged_along_the_tree() -> None:
    ones = [IndexedSlices(np.float32([[value]]), np.array([0], dtype)) for value, dtype in ((2**24, "i4"), (1, "i8"))]
    rows = IndexedSlices.concatenate([ones[0], ones[1], ones[1]])
    assert rows.row_counts == (1, 1, 1)
    assert rows.indices.dtype == np.int64
    assert (rows * 1.0).row_counts == rows.row_counts
    # (2**24 + 1) + 1 is 2**24 in float32; 2**24 + (1 + 1), two rows of one replica, is more.
    assert rows.merged().values.numpy().tolist() == [[2.0**24]]
    together = IndexedSlices.concatenate([ones[0], IndexedSlices(np.float32([[1], [1]]), [0, 0])])
    assert together.merged().values.numpy().tolist() == [[2.0**24 + 2]]
    together.dense_shape = (2, 1)
    assert together.to_dense().tolist() == [[2.0**24 + 2], [0.0]]
