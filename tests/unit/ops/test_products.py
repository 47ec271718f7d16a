"""The products of a dense layer's backward pass: transposed, or in blocks of rows of the kernel, where that pays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from distopt.ops import products
from distopt.types import Array

SHAPES = [(1, 1, 1), (3, 7, 5), (5, 8, 2), (4, 9, 6)]
"""Of batch, rows and columns of the kernel."""


@pytest.fixture
def transposes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "LEAST_BYTES_TRANSPOSED", 0)
    monkeypatch.setattr(products, "LEAST_COLUMNS_TRANSPOSED", 0)


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
    inputs, gradient = _values(batch, rows), _values(batch, columns)
    np.testing.assert_array_equal(products.kernel_gradient(inputs, gradient), inputs.T @ gradient)
    place = np.full((rows, columns), np.nan, np.float32)
    assert products.kernel_gradient(inputs, gradient, place) is place
    np.testing.assert_array_equal(place, inputs.T @ gradient)


@pytest.mark.usefixtures("transposes")
@pytest.mark.parametrize(("batch", "rows", "columns"), SHAPES)
def test_transposed_product_is_the_plain_one_in_its_order(batch: int, rows: int, columns: int) -> None:
    kernel, gradient = _values(rows, columns), _values(batch, columns)
    below = products.input_gradient(gradient, kernel)
    np.testing.assert_array_equal(below, gradient @ kernel.T)
    assert below.flags.c_contiguous


@pytest.mark.usefixtures("transposes")
def test_inputs_of_more_axes_and_of_two_dtypes_are_one_product() -> None:
    kernel, gradient = _values(7, 5), _values(2, 3, 5).astype(np.float64)
    below = products.input_gradient(gradient, kernel)
    np.testing.assert_array_equal(below, gradient @ kernel.T)
    assert below.dtype == products.input_gradient(gradient[0], kernel).dtype == np.float64


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return the shapes of what is multiplied, as it is."""
    found: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    matmul = np.matmul

    def counted(left: Array, right: Array, **places: Array | None) -> Array:
        found.append((left.shape, right.shape))
        product: Array = matmul(left, right, **places)
        return product

    monkeypatch.setattr(np, "matmul", counted)
    return found


def test_large_kernel_comes_first_for_small_batches_of_float32_alone(made: list[Any]) -> None:
    kernel = np.zeros((1025, 1024), np.float32)
    products.input_gradient(np.zeros((64, 1024), np.float32), kernel)
    assert made == [((1025, 1024), (1024, 64))]
    made.clear()
    products.input_gradient(np.zeros((65, 1024), np.float32), kernel)
    products.input_gradient(np.zeros((64, 1024)), kernel.astype(np.float64))
    products.input_gradient(np.zeros((64, 1024), np.float32), kernel[:1023])
    products.input_gradient(np.zeros((64, 1023), np.float32), np.zeros((2048, 1023), np.float32))
    assert made == [
        ((65, 1024), (1024, 1025)),
        ((64, 1024), (1024, 1025)),
        ((64, 1024), (1024, 1023)),
        ((64, 1023), (1023, 2048)),
    ]


def test_large_gradient_of_a_kernel_is_divided_for_small_batches_alone(made: list[Any]) -> None:
    products.kernel_gradient(np.zeros((128, 2049), np.float32), np.zeros((128, 1024), np.float32))
    assert made == [((1024, 128), (128, 1024)), ((1024, 128), (128, 1024)), ((1, 128), (128, 1024))]
    made.clear()
    products.kernel_gradient(np.zeros((129, 2049), np.float32), np.zeros((129, 1024), np.float32))
    products.kernel_gradient(np.zeros((128, 2047), np.float32), np.zeros((128, 1024), np.float32))
    assert made == [((2049, 129), (129, 1024)), ((2047, 128), (128, 1024))]
