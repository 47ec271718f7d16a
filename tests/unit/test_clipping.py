from __future__ import annotations

import numpy as np

from distopt import clipping
from distopt.indexed_slices import IndexedSlices
from distopt.tensor import Tensor


def test_clip_by_value_keeps_nan_and_bounds_infinities() -> None:
    clipped = clipping.clip_by_value(np.float32([np.nan, np.inf, -np.inf, 0.5]), -1, 1)
    np.testing.assert_array_equal(clipped, [np.nan, 1, -1, 0.5])


def test_clip_by_norm_treats_a_negative_limit_as_zero() -> None:
    np.testing.assert_array_equal(clipping.clip_by_norm(np.float32([3, 4]), -1.0), [0, 0])


def test_clip_by_norm_of_zero_by_zero_is_nan_and_of_infinity_nan_and_zero() -> None:
    assert np.isnan(clipping.clip_by_norm(np.float32([0, 0]), 0.0)).all()
    np.testing.assert_array_equal(clipping.clip_by_norm(np.float32([np.inf, 1]), 1.0), [np.nan, 0])


def test_clip_by_global_norm_skips_none_and_spreads_nan() -> None:
    (a, nothing, b), norm = clipping.clip_by_global_norm([np.float32([3]), None, np.float32([4])], 1.0)
    assert nothing is None
    assert norm == 5
    np.testing.assert_allclose([a[0], b[0]], [0.6, 0.8], rtol=1e-6)
    (c, d), _ = clipping.clip_by_global_norm([np.float32([np.inf]), np.float32([1])], 1.0)
    assert np.isnan([c[0], d[0]]).all()


def test_clip_by_global_norm_of_zeros_keeps_them() -> None:
    (zeros,), norm = clipping.clip_by_global_norm([np.zeros(3, np.float32)], 1.0)
    np.testing.assert_array_equal(zeros, np.zeros(3))
    assert norm == 0


def test_clipped_gradients_keep_their_kind_and_dtype() -> None:
    assert isinstance(clipping.clip_by_norm(Tensor(np.float64([3, 4])), 1.0), Tensor)
    slices = IndexedSlices(np.float32([3, 4]), [0, 0], (2,))
    clipped = clipping.clip_by_norm(slices, 1.0)
    assert isinstance(clipped, IndexedSlices)
    assert clipped.dtype == np.float32
    # The norm of the rows as they are, 5; summed first, it would be 7.
    np.testing.assert_allclose(clipped.to_dense(), [1.4, 0], rtol=1e-6)


def test_global_norm_of_float32_and_float64_gradients_adds_in_float64() -> None:
    norm = clipping.global_norm([np.float32([3]), np.float64([4])])
    assert norm.dtype == np.float64
    assert norm == 5


def test_clips_in_float64_take_the_limit_exactly() -> None:
    clipped = clipping.clip_by_value(np.float64([1.0]), -0.1, 0.1)
    assert clipped[0] == 0.1


def test_squares_of_rows_are_added_by_replica() -> None:
    # 1e8 + 1 + 1 in float32: left to right the ones are lost, added first they count.
    of_replicas = [IndexedSlices(np.float32(rows), [0] * len(rows)) for rows in ([1e4], [1, 1, 1, 1], [])]
    squares = clipping.squares_of(IndexedSlices.concatenate(of_replicas))
    assert squares.dtype == np.float32
    assert squares == np.float32(1e8) + np.float32(4)
