"""Initializers have the variance they promise, and the same values on every process."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from distopt import initializers, random
from distopt.types import Array


@pytest.fixture(autouse=True)
def _restored_seed() -> Iterator[None]:
    seed = random.get_seed()
    yield
    random.set_seed(seed)


@pytest.mark.parametrize(
    ("name", "variance"),
    [
        ("glorot_uniform", 2 / 500),
        ("glorot_normal", 2 / 500),
        ("he_uniform", 2 / 200),
        ("he_normal", 2 / 200),
        ("lecun_uniform", 1 / 200),
        ("lecun_normal", 1 / 200),
        ("random_uniform", 0.1**2 / 12),
        ("random_normal", 0.05**2),
        ("truncated_normal", (0.05 * 0.8796) ** 2),
    ],
)
def test_random_initializer_has_its_variance(name: str, variance: float) -> None:
    random.set_seed(1)
    values = initializers.get(name)((200, 300))
    assert values.dtype == np.float32
    assert values.var() == pytest.approx(variance, rel=0.03)
    assert abs(values.mean()) < 0.03 * variance**0.5


def test_glorot_uniform_stays_within_its_limit() -> None:
    values = initializers.GlorotUniform(seed=3)((64, 256))
    assert 0.99 < np.abs(values).max() / np.sqrt(6 / 320) <= 1.0


def test_truncated_normal_stays_within_two_deviations() -> None:
    assert np.abs(initializers.TruncatedNormal(stddev=1.0, seed=3)((1000,))).max() <= 2.0


def test_seeded_initializer_repeats_its_values() -> None:
    initializer = initializers.HeNormal(seed=3)
    np.testing.assert_array_equal(initializer((3, 2)), initializer((3, 2)))


def test_unseeded_initializers_follow_the_global_seed_in_order_of_creation() -> None:
    random.set_seed(4)
    first, second = (initializers.GlorotUniform()((3, 2)) for _ in range(2))
    random.set_seed(4)
    np.testing.assert_array_equal(initializers.GlorotUniform()((3, 2)), first)
    np.testing.assert_array_equal(initializers.GlorotUniform()((3, 2)), second)
    assert not np.array_equal(first, second)


@pytest.mark.parametrize(("name", "value"), [("zeros", 0.0), ("ones", 1.0), ("Zeros", 0.0)])
def test_constant_initializer_by_name_fills(name: str, value: float) -> None:
    filled = initializers.get(name)((2, 3), np.float64)
    np.testing.assert_array_equal(filled, np.full((2, 3), value))
    assert filled.dtype == np.float64


def test_constant_array_is_broadcast() -> None:
    np.testing.assert_array_equal(initializers.Constant([1, 2])((3, 2)), [[1, 2]] * 3)


def test_get_passes_callables_and_makes_classes() -> None:
    def own(shape: tuple[int, ...], dtype: object = None) -> Array:
        return np.zeros(shape)

    assert initializers.get(own) is own
    assert isinstance(initializers.get(initializers.Ones), initializers.Ones)


def test_get_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown initializer 'glorot'"):
        initializers.get("glorot")


def test_get_something_else_is_refused() -> None:
    with pytest.raises(TypeError, match="a name or a callable"):
        initializers.get(3)  # type: ignore[arg-type]  # the refusal is what is tested


@pytest.mark.parametrize("kwargs", [{"scale": 0.0}, {"mode": "fan"}, {"distribution": "cauchy"}])
def test_variance_scaling_wrong_argument_is_refused(kwargs: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        initializers.VarianceScaling(**kwargs)  # type: ignore[arg-type]  # the refusal is what is tested
