"""The products of a dense layer's backward pass: in blocks of rows of the kernel, where that pays."""

from __future__ import annotations

import numpy as np
import pytest

from distopt.ops import products
from distopt.types import Array

SHAPES = [(1, 1, 1), (3, 7, 5), (5, 8, 2), (4, 9, 6)]
"""Of batch, rows and columns of the kernel."""


@pytest.fixture(params=[1, 4, 8])
def block_rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(products, "LEAST_BYTES", 0)
    monkeypatch.setattr(products, "BLOCK_ROWS", request.param)
    rows: int = request.param
    return rows


def _values(*shape: int) -> Array:
    # Small whole numbers: every order of additions gives the same bits.
    return np.random.default_rng(sum(shape)).integers(-9, 10, shape).astype(np.float32)


@pytest.mark.usefixtures("block_rows")
@pytest.mark.parametrize(("batch", "rows", "columns"), SHAPES)
def test_blocks_make_up_the_whole_product(batch: int, rows: int, columns: int) -> None:
    inputs, kernel, gradient = _values(batch, rows), _values(rows, columns), _values(batch, columns)
    np.testing.assert_array_equal(products.input_gradient(gradient, kernel), gradient @ kernel.T)
    np.testing.assert_array_equal(products.kernel_gradient(inputs, gradient), inputs.T @ gradient)
    place = np.full((rows, columns), np.nan, np.float32)
    assert products.kernel_gradient(inputs, gradient, place) is place
    np.testing.assert_array_equal(place, inputs.T @ gradient)


@pytest.mark.usefixtures("block_rows")
def test_inputs_of_more_axes_and_of_two_dtypes_are_one_product() -> None:
    kernel, gradient = _values(7, 5), _values(2, 3, 5).astype(np.float64)
    below = products.input_gradient(gradient, kernel)
    np.testing.assert_array_equal(below, gradient @ kernel.T)
    assert below.dtype == products.input_gradient(gradient[0], kernel).dtype == np.float64


def test_large_kernel_is_divided_for_small_batches_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, ...]] = []
    matmul = np.matmul

    def counted(left: Array, right: Array, **places: Array | None) -> Array:
        made.append(right.shape)
        product: Array = matmul(left, right, **places)
        return product

    kernel = np.zeros((1025, 2048), np.float32)
    monkeypatch.setattr(np, "matmul", counted)
    products.input_gradient(np.zeros((128, 2048), np.float32), kernel)
    assert made == [(2048, 384), (2048, 384), (2048, 257)]
    made.clear()
    products.input_gradient(np.zeros((129, 2048), np.float32), kernel)
    products.input_gradient(np.zeros((128, 2048), np.float32), kernel[:1023])
    assert made == [(2048, 1025), (2048, 1023)]
