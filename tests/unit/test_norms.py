from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from distopt import norms
from distopt.arena import BLOCK
from distopt.canonical_sum import add_rows
from distopt.optimizers import get_engine
from distopt.types import Array

SIZES = [1, 7, 8, 9, 4095, 4096, 4097, 3 * BLOCK + 5]


def sample(size: int, dtype: Any) -> Array:
    rng = np.random.default_rng(size)
    return (rng.standard_normal(size) * 10.0 ** rng.integers(-3, 3, size)).astype(dtype)


def by_definition(values: Array) -> list[Any]:
    """The order of additions as the module's first lines say it, one scalar at a time."""
    dtype = norms.accumulation_dtype(values.dtype)
    sums = []
    for start in range(0, values.size, BLOCK):
        lanes = [dtype.type(0)] * 8
        for i, value in enumerate(values[start : start + BLOCK].astype(dtype)):
            lanes[i % 8] = lanes[i % 8] + value * value
        sums.append(((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7])))
    return sums


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("engine", ["numpy", "compiled"])
def test_block_sums_have_the_bits_of_the_definition_in_both_engines(dtype: Any, size: int, engine: str) -> None:
    values = sample(size, dtype)
    found = get_engine(engine).block_sums(values)
    assert found.dtype == norms.accumulation_dtype(np.dtype(dtype))
    assert found.tobytes() == np.array(by_definition(values), found.dtype).tobytes()


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6, 7, 8, 13, 23, 24, 25, 32])
def test_add_sums_is_the_canonical_tree(count: int) -> None:
    sums = sample(count, np.float32)
    assert norms.add_sums(sums).tobytes() == add_rows(sums[:, np.newaxis])[0].tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("engine", ["numpy", "compiled"])
def test_range_sums_are_the_canonical_tree_of_each_range_in_both_engines(dtype: Any, engine: str) -> None:
    counts = [1, 0, 2, 3, 5, 0, 8, 13, 1001]
    stops = np.cumsum(counts) + 2
    starts = stops - counts
    values = sample(int(stops[-1]), dtype)
    wanted = np.array([norms.add_sums(values[start:stop]) for start, stop in zip(starts, stops, strict=True)])
    found = get_engine(engine).range_sums(values.copy(), starts, stops)
    assert (found.dtype, found.tobytes()) == (np.dtype(dtype), wanted.tobytes())
    assert get_engine(engine).range_sums(values, starts[:0], stops[:0]).shape == (0,)


def test_the_norm_of_nothing_is_zero() -> None:
    assert norms.norm(np.empty(0, np.float32)) == 0


def test_an_infinity_gives_an_infinite_norm_without_a_warning() -> None:
    assert norms.norm(np.array([1.0, np.inf], np.float32)) == np.inf
    assert norms.norm(np.full(10, 1e30, np.float32)) == np.inf


def test_the_norm_of_a_matrix_is_that_of_its_elements_in_order() -> None:
    matrix = sample(5 * BLOCK, np.float32).reshape(5, BLOCK)
    assert norms.norm(matrix) == norms.norm(matrix.reshape(-1))
    np.testing.assert_allclose(norms.norm(matrix), np.linalg.norm(matrix.astype(np.float64)), rtol=1e-5)
