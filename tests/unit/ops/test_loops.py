"""Compiled loops give the bits of the NumPy calls that define them, on awkward values, shapes and layouts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from distopt import kernels
from distopt.ops import loops
from distopt.types import Array

pytestmark = pytest.mark.usefixtures("_restored_loops")

SHAPES = [(1, 1), (1, 10), (1000, 1), (3, 10), (128, 256), (7, 33)]


def awkward(shape: tuple[int, ...], dtype: Any, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    values = (rng.standard_normal(shape) * 10.0 ** rng.integers(-20, 20, shape)).astype(dtype)
    flat = values.reshape(-1)
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, np.finfo(dtype).tiny / 4, np.finfo(dtype).max], dtype)
    flat[: min(len(flat), len(special))] = special[: len(flat)]
    rng.shuffle(flat)
    return values


def both(run: Callable[[], Any]) -> tuple[Any, Any]:
    with np.errstate(all="ignore"):
        kernels.use_compiled_loops(True)
        compiled = run()
        kernels.use_compiled_loops(False)
        return compiled, run()


def assert_same_bits(compiled: Any, plain: Any) -> None:
    for a, b in zip(compiled, plain, strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        nan = np.isnan(a)
        np.testing.assert_array_equal(nan, np.isnan(b))
        assert np.where(nan, 0, a).tobytes() == np.where(nan, 0, b).tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_add_bias_and_relu_has_the_same_bits(shape: tuple[int, int], dtype: Any) -> None:
    def run() -> list[Array]:
        z = awkward(shape, dtype, 1)
        loops.add_bias_and_relu(z, awkward(shape[1:], dtype, 2))
        return [z]

    assert_same_bits(*both(run))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [*SHAPES, (0, 4)])
def test_add_bias_and_sum_columns_have_the_same_bits(shape: tuple[int, int], dtype: Any) -> None:
    def run() -> list[Array]:
        z = awkward(shape, dtype, 20)
        loops.add_bias(z, awkward((shape[1],), dtype, 21))
        return [z, loops.sum_columns(awkward(shape, dtype, 22))]

    assert_same_bits(*both(run))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [*SHAPES, (0, 4)])
def test_relu_backward_has_the_same_bits(shape: tuple[int, int], dtype: Any) -> None:
    def run() -> list[Array]:
        gradient = awkward(shape, dtype, 3)
        total = loops.relu_backward(gradient, awkward(shape, dtype, 4))
        return [gradient, total]

    assert_same_bits(*both(run))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [*SHAPES, (0, 4)])
def test_rows_of_a_cross_entropy_have_the_same_bits(shape: tuple[int, int], dtype: Any) -> None:
    labels = np.random.default_rng(5).integers(0, shape[1], shape[0])

    def run() -> list[Array]:
        z, chosen = loops.shift_rows(awkward(shape, dtype, 6), labels)
        scaled = awkward(shape, dtype, 7)
        sums = np.random.default_rng(9).uniform(1, shape[1], shape[0]).astype(dtype)
        loops.scale_rows_and_subtract(scaled, awkward(shape[:1], dtype, 8), sums, labels)
        return [z, chosen, loops.sum_rows(awkward(shape, dtype, 10)), scaled]

    assert_same_bits(*both(run))


def test_arrays_that_are_not_contiguous_or_not_native_go_through_numpy() -> None:
    kernels.use_compiled_loops(True)
    wide = np.arange(12, dtype=np.float32).reshape(2, 6)
    np.testing.assert_array_equal(loops.sum_rows(wide[:, ::2]), [6.0, 24.0])
    half = np.array([[1, -2], [3, -4]], np.float16)
    loops.add_bias_and_relu(half, np.array([1, 1], np.float16))
    np.testing.assert_array_equal(half, [[2, 0], [4, 0]])


def test_inputs_that_may_not_be_written_to_are_read() -> None:
    kernels.use_compiled_loops(True)
    logits = np.array([[1.0, 3.0]], np.float32)
    labels = np.array([0])
    logits.flags.writeable = labels.flags.writeable = False
    z, chosen = loops.shift_rows(logits, labels)
    assert z.tolist() == [[-2.0, 0.0]]
    assert chosen.tolist() == [-2.0]


@pytest.mark.parametrize("add", [loops.add_bias, loops.add_bias_and_relu])
@pytest.mark.parametrize("length", [2, 4])
def test_bias_of_another_length_is_an_error(add: Any, length: int) -> None:
    with pytest.raises(ValueError, match="broadcast"):
        add(np.ones((5, 3), np.float32), np.ones(length, np.float32))
