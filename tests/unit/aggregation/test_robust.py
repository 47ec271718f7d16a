from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from distopt.aggregation import Aggregator, Mean, Median, TrimmedMean
from distopt.types import Array

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]


def contributions_of(num_replicas: int, dtype: Any = np.float32, size: int = 37) -> Array:
    rng = np.random.default_rng(num_replicas)
    return np.asarray(rng.standard_normal((num_replicas, size)) * 10.0 ** rng.integers(-3, 3, size), dtype)


def trimmed_mean(contributions: Array, trim: int) -> Array:
    """Yin et al. 2018, definition 2, as it is written."""
    ordered = np.sort(contributions, axis=0)
    return np.asarray(ordered[trim : len(ordered) - trim].mean(axis=0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_replicas", [1, 2, 3, 5, 8])
def test_median_is_numpys_median_of_each_element(num_replicas: int, dtype: type) -> None:
    contributions = contributions_of(num_replicas, dtype)
    median = Median().combine(contributions)
    assert median.dtype == np.dtype(dtype)
    exact = np.median(contributions.astype(np.float64), axis=0)
    rounding = float(ml_dtypes.finfo(dtype).eps) * np.abs(contributions.astype(np.float64)).max()
    np.testing.assert_allclose(median.astype(np.float64), exact, rtol=0, atol=rounding)
    if num_replicas % 2:
        np.testing.assert_array_equal(median, exact.astype(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_replicas", "trim"), [(1, 0), (3, 1), (5, 1), (5, 2), (8, 2)])
def test_trimmed_mean_is_the_papers_mean_of_what_is_left(num_replicas: int, trim: int, dtype: type) -> None:
    contributions = contributions_of(num_replicas, dtype)
    mean = TrimmedMean(trim).combine(contributions)
    assert mean.dtype == np.dtype(dtype)
    exact = trimmed_mean(contributions.astype(np.float64), trim)
    rounding = num_replicas * float(ml_dtypes.finfo(dtype).eps) * np.abs(contributions.astype(np.float64)).max()
    np.testing.assert_allclose(mean.astype(np.float64), exact, rtol=0, atol=rounding)


def test_trimmed_mean_that_trims_nothing_is_the_mean_up_to_the_order_of_additions() -> None:
    contributions = contributions_of(5, np.float64)
    np.testing.assert_allclose(TrimmedMean(0).combine(contributions), Mean().combine(contributions), rtol=1e-12)


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 1e38, -1e38])
@pytest.mark.parametrize(("aggregator", "liars"), [(Median(), 3), (TrimmedMean(3), 3)])
def test_result_lies_among_the_honest_contributions_whatever_the_others_send(
    aggregator: Aggregator, liars: int, garbage: float
) -> None:
    contributions = contributions_of(8)
    honest = contributions[liars:]
    contributions[:liars] = garbage
    result = aggregator.combine(contributions)
    assert (honest.min(axis=0) <= result).all()
    assert (result <= honest.max(axis=0)).all()


@pytest.mark.parametrize("aggregator", [Median(), TrimmedMean(2)])
def test_result_does_not_depend_on_where_an_element_lies_or_who_sent_it(aggregator: Aggregator) -> None:
    rng = np.random.default_rng(7)
    contributions = rng.integers(-2, 3, (8, 20001)).astype(np.float32) * np.float32(-0.0 + 0.5)
    contributions[rng.random(contributions.shape) < 0.2] = -0.0
    whole = aggregator.combine(contributions)
    parts = [
        aggregator.combine(contributions[:, part]) for part in (slice(0, 777), slice(777, 9001), slice(9001, None))
    ]
    assert whole.tobytes() == np.concatenate(parts).tobytes()
    assert whole.tobytes() == aggregator.combine(contributions[rng.permutation(8)]).tobytes()


@pytest.mark.parametrize("aggregator", [Median(), TrimmedMean(1)])
def test_robust_aggregator_does_not_write_to_contributions(aggregator: Aggregator) -> None:
    contributions = contributions_of(5)
    contributions[0, 0] = np.nan
    before = contributions.tobytes()
    aggregator.combine(contributions)
    assert contributions.tobytes() == before


@pytest.mark.parametrize(("trim", "num_replicas"), [(1, 2), (4, 8)])
def test_trim_that_leaves_nothing_is_refused(trim: int, num_replicas: int) -> None:
    with pytest.raises(ValueError, match=f"trim = {trim} leaves nothing of {num_replicas} replicas"):
        TrimmedMean(trim).combine(contributions_of(num_replicas))


def test_negative_trim_is_refused() -> None:
    with pytest.raises(ValueError, match="trim must be at least 0, but is -1"):
        TrimmedMean(-1)
