"""How variables start: named distributions, drawn so that every process gets the same values.

An initializer with a seed of its own gives the same values each time it is called for a shape. One without takes the
next stream of the global seed (``distopt.random.set_seed``), so its values depend on how many variables were
initialized before it.

Source: the formulas are those of Keras; Glorot and Bengio 2010; He et al. 2015; LeCun et al. 1998.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from distopt.random import Domain, next_stream, stream
from distopt.types import Array, Shape

InitializerLike: TypeAlias = "str | Initializer | type[Initializer] | Callable[..., Any]"
"""A name (``"glorot_uniform"``, ``"GlorotUniform"``), an initializer, its class, or ``f(shape, dtype=...)``."""

# The standard deviation of a standard normal variate that is cut off at two: drawing with sigma / this gives sigma.
_TRUNCATED_STDDEV = 0.87962566103423978


class Initializer(abc.ABC):
    """A callable ``(shape, dtype) -> array``."""

    @abc.abstractmethod
    def __call__(self, shape: Shape, dtype: Any = np.float32) -> Array:
        """Return a new array of ``shape`` and ``dtype``."""

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make an equal initializer."""
        return {key: value for key, value in vars(self).items() if not key.startswith("_")}


class Zeros(Initializer):
    """All zeros."""

    def __call__(self, shape: Shape, dtype: Any = np.float32) -> Array:
        return np.zeros(shape, dtype)


class Ones(Initializer):
    """All ones."""

    def __call__(self, shape: Shape, dtype: Any = np.float32) -> Array:
        return np.ones(shape, dtype)


class Constant(Initializer):
    """A number, or an array that is broadcast to the shape."""

    def __init__(self, value: Any = 0.0) -> None:
        self.value = value

    def __call__(self, shape: Shape, dtype: Any = np.float32) -> Array:
        return np.full(shape, self.value, dtype)


class Random(Initializer):
    """Base of the random ones: draws in float64, then rounds to the dtype."""

    seed: int | None = None

    def __call__(self, shape: Shape, dtype: Any = np.float32) -> Array:
        bits = next_stream() if self.seed is None else stream(Domain.VARIABLE, self.seed)
        return self.draw(np.random.Generator(bits), tuple(shape)).astype(dtype)

    @abc.abstractmethod
    def draw(self, generator: np.random.Generator, shape: Shape) -> Array:
        """Return the values in float64."""


class RandomUniform(Random):
    """Uniform in ``[minval, maxval)``."""

    def __init__(self, minval: float = -0.05, maxval: float = 0.05, seed: int | None = None) -> None:
        self.minval, self.maxval, self.seed = minval, maxval, seed

    def draw(self, generator: np.random.Generator, shape: Shape) -> Array:
        return generator.uniform(self.minval, self.maxval, shape)


class RandomNormal(Random):
    """Normal with ``mean`` and ``stddev``."""

    def __init__(self, mean: float = 0.0, stddev: float = 0.05, seed: int | None = None) -> None:
        self.mean, self.stddev, self.seed = mean, stddev, seed

    def draw(self, generator: np.random.Generator, shape: Shape) -> Array:
        return generator.normal(self.mean, self.stddev, shape)


class TruncatedNormal(Random):
    """Normal, redrawn where farther than two ``stddev`` from the ``mean``: the result deviates by ``0.88 * stddev``."""

    def __init__(self, mean: float = 0.0, stddev: float = 0.05, seed: int | None = None) -> None:
        self.mean, self.stddev, self.seed = mean, stddev, seed

    def draw(self, generator: np.random.Generator, shape: Shape) -> Array:
        return self.mean + self.stddev * _standard_truncated_normal(generator, shape)


class VarianceScaling(Random):
    """Values of variance ``scale / n``, where n is the fan that ``mode`` names: ``fan_in``, ``fan_out`` or ``fan_avg``.

    ``distribution``: ``"uniform"``, ``"untruncated_normal"`` or ``"truncated_normal"``.

    Raises: ValueError for another mode or distribution, or a scale that is not positive.
    """

    def __init__(
        self, scale: float = 1.0, mode: str = "fan_in", distribution: str = "truncated_normal", seed: int | None = None
    ) -> None:
        if scale <= 0:
            raise ValueError(f"scale must be positive, not {scale}")
        if mode not in ("fan_in", "fan_out", "fan_avg"):
            raise ValueError(f"mode must be 'fan_in', 'fan_out' or 'fan_avg', not {mode!r}")
        if distribution not in ("uniform", "untruncated_normal", "truncated_normal"):
            raise ValueError(
                f"distribution must be 'uniform', 'untruncated_normal' or 'truncated_normal', not {distribution!r}"
            )
        self.scale, self.mode, self.distribution, self.seed = scale, mode, distribution, seed

    def draw(self, generator: np.random.Generator, shape: Shape) -> Array:
        fan_in, fan_out = fans(shape)
        fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[self.mode]
        variance = self.scale / max(1.0, fan)
        if self.distribution == "uniform":
            limit = math.sqrt(3.0 * variance)
            return generator.uniform(-limit, limit, shape)
        if self.distribution == "untruncated_normal":
            return generator.normal(0.0, math.sqrt(variance), shape)
        return math.sqrt(variance) / _TRUNCATED_STDDEV * _standard_truncated_normal(generator, shape)


class _NamedScaling(VarianceScaling):
    """A variance scaling whose only free argument is the seed."""

    _settings: tuple[float, str, str]

    def __init__(self, seed: int | None = None) -> None:
        super().__init__(*self._settings, seed=seed)

    def get_config(self) -> dict[str, Any]:
        return {"seed": self.seed}


class GlorotUniform(_NamedScaling):
    """Uniform within ``sqrt(6 / (fan_in + fan_out))``."""

    _settings = (1.0, "fan_avg", "uniform")


class GlorotNormal(_NamedScaling):
    """Truncated normal of variance ``2 / (fan_in + fan_out)``."""

    _settings = (1.0, "fan_avg", "truncated_normal")


class HeUniform(_NamedScaling):
    """Uniform within ``sqrt(6 / fan_in)``."""

    _settings = (2.0, "fan_in", "uniform")


class HeNormal(_NamedScaling):
    """Truncated normal of variance ``2 / fan_in``."""

    _settings = (2.0, "fan_in", "truncated_normal")


class LecunUniform(_NamedScaling):
    """Uniform within ``sqrt(3 / fan_in)``."""

    _settings = (1.0, "fan_in", "uniform")


class LecunNormal(_NamedScaling):
    """Truncated normal of variance ``1 / fan_in``."""

    _settings = (1.0, "fan_in", "truncated_normal")


_BY_NAME: dict[str, type[Initializer]] = {
    "zeros": Zeros,
    "ones": Ones,
    "constant": Constant,
    "random_uniform": RandomUniform,
    "uniform": RandomUniform,
    "random_normal": RandomNormal,
    "normal": RandomNormal,
    "truncated_normal": TruncatedNormal,
    "variance_scaling": VarianceScaling,
    "glorot_uniform": GlorotUniform,
    "glorot_normal": GlorotNormal,
    "he_uniform": HeUniform,
    "he_normal": HeNormal,
    "lecun_uniform": LecunUniform,
    "lecun_normal": LecunNormal,
}


def get(identifier: InitializerLike) -> Callable[..., Any]:
    """Return the initializer that ``identifier`` stands for.

    Raises: ValueError for an unknown name; TypeError for anything else that cannot be called.
    """
    if isinstance(identifier, str):
        by_class_name = {cls.__name__: cls for cls in _BY_NAME.values()}
        found = _BY_NAME.get(identifier) or by_class_name.get(identifier)
        if found is None:
            raise ValueError(f"unknown initializer {identifier!r}; known are {', '.join(_BY_NAME)}")
        return found()
    if isinstance(identifier, type) and issubclass(identifier, Initializer):
        return identifier()
    if callable(identifier):
        return identifier
    raise TypeError(f"an initializer is a name or a callable, not {identifier!r}")


def fans(shape: Shape) -> tuple[int, int]:
    """Return ``(fan_in, fan_out)``; all but the last two dimensions are a convolution's receptive field.

    >>> fans((64, 256)), fans((3, 3, 8, 16)), fans((5,)), fans(())
    ((64, 256), (72, 144), (5, 5), (1, 1))
    """
    if not shape:
        return 1, 1
    if len(shape) == 1:
        return shape[0], shape[0]
    field = math.prod(shape[:-2])
    return field * shape[-2], field * shape[-1]


def _standard_truncated_normal(generator: np.random.Generator, shape: Shape) -> Array:
    values = generator.standard_normal(shape)
    while (outside := np.abs(values) > 2.0).any():
        values = np.where(outside, generator.standard_normal(shape), values)
    return np.asarray(values)
