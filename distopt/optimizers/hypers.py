"""Hyperparameters: numbers, variables, callables and schedules, evaluated once a step to plain scalars.

A Python number reaches a variable of any dtype through float32, as in the reference, so 0.1 is 0.10000000149011612
for a float64 variable; epsilon and the clip limits alone are taken exactly. On first need each plain number becomes a
float32 variable: from then on reading the hyper gives that variable, and assigning a number assigns to it.

Source: tf_keras ``OptimizerV2._set_hyper``, ``_get_hyper``, ``_create_hypers``.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator
from decimal import Context, Decimal
from typing import Any

import numpy as np

from distopt.schedules import LearningRateSchedule
from distopt.tensor import Operand, Tensor
from distopt.types import Array
from distopt.variable import Variable

BACKEND_EPSILON = 1e-7
"""What an ``epsilon`` of 0 or ``None`` means. Source: ``keras.backend.epsilon``."""


def through_float32(number: Any) -> float:
    """Return ``number`` rounded to float32, as a Python float.

    >>> through_float32(0.1)
    0.10000000149011612
    """
    return float(np.float32(number))


def rounded(value: Any) -> Any:
    """Return a Python number rounded to float32; a tensor or NumPy scalar, which has a dtype, as it is."""
    is_python_number = isinstance(value, int | float) and not isinstance(value, np.generic)
    return through_float32(value) if is_python_number else value


class HyperTable:
    """The hypers of one optimizer, by name.

    ``scope`` prefixes the names of the variables that are made of numbers.
    """

    def __init__(self, scope: str) -> None:
        self._scope = scope
        self._values: dict[str, Any] = {}
        self._created = False
        self.are_variables = False
        """Whether all are variables of no graph by now, as in nearly every step: nothing is to be called then."""

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def set(self, name: str, value: Any) -> None:
        """Set a hyper; a number given for one that is a variable is assigned to that variable.

        Raises: TypeError if the hyper is a variable and ``value`` is a callable other than a schedule.
        """
        present = self._values.get(name)
        if not isinstance(present, Variable) or isinstance(value, LearningRateSchedule):
            self._values[name] = value
            self._look()
            return
        if callable(value) and not isinstance(value, Variable | Tensor):
            raise TypeError(
                f"{name} is a variable by now, so it takes a number, not the callable {value!r}; "
                "give a callable to the constructor, or use a schedule"
            )
        # A hyper has one value for all replicas, wherever it is written.
        present.write_all("assign", np.asarray(value, present.dtype))

    def get(self, name: str) -> Any:
        """Return a hyper: a variable, a schedule, or what a callable returns now.

        Raises: KeyError for an unknown name.
        """
        self.create_variables()
        value = self._values[name]
        if isinstance(value, LearningRateSchedule | Variable | Tensor):
            return value
        return value() if callable(value) else value

    def raw(self, name: str) -> Any:
        """Return a hyper as it is stored, without making a variable of it or calling it."""
        return self._values[name]

    def evaluate(self, name: str, iterations: int) -> float:
        """Return the number a hyper stands for at ``iterations``; a callable or schedule is called.

        Raises: TypeError if that is no number.
        """
        if not self._created:
            self.create_variables()
        value = self._values[name]
        if isinstance(value, Variable):
            return float(value.storage)
        if isinstance(value, LearningRateSchedule):
            value = value(iterations)
        elif callable(value) and not isinstance(value, Tensor):
            value = value()
        if isinstance(value, Variable):
            return float(value.storage)
        if np.ndim(value) == 0:  # before NumPy 2.4 an array of one element converts to a number, too
            with contextlib.suppress(TypeError, ValueError):
                return float(rounded(value))
        raise TypeError(
            f"{name} must be a number, a variable, a schedule or a function that returns a number, but is {value!r}"
        )

    def evaluate_all(self, iterations: int) -> dict[str, float]:
        """Return what :meth:`evaluate` gives for every hyper, by name."""
        if not self._created:
            self.create_variables()
        return {
            name: value.storage.item() if type(value) is Variable else self.evaluate(name, iterations)
            for name, value in self._values.items()
        }

    def has_callables(self) -> bool:
        """Return whether a hyper is a function, asked at every step; a schedule, which knows the step, is not."""
        return not self.are_variables and any(
            callable(value) and not isinstance(value, LearningRateSchedule | Variable | Tensor)
            for value in self._values.values()
        )

    def numbers(self) -> dict[str, float]:
        """Return the hypers that are numbers or variables, by name: what a checkpoint keeps."""
        kept = {}
        for name, value in self._values.items():
            if isinstance(value, Variable):
                kept[name] = float(value.storage)
            elif isinstance(value, int | float | np.number):
                kept[name] = float(value)
        return kept

    def create_variables(self) -> None:
        """Make a variable of each hyper that is a number, unless it was done."""
        if self._created:
            return
        self._created = True
        for name in sorted(self._values):
            value = self._values[name]
            if isinstance(value, int | float | np.number):
                self._values[name] = Variable(
                    value, trainable=False, dtype=np.dtype(np.float32), name=f"{self._scope}/{name}"
                )
        self._look()

    def _look(self) -> None:
        self.are_variables = all(type(value) is Variable for value in self._values.values())


_AT_ONCE = 16
"""Steps of which bias corrections are computed together."""

_BITS = 160
"""Of the mantissas of powers: so many that rounding to float64 is the only rounding that can be seen."""


@functools.lru_cache(maxsize=1024)
def _whole_power(base: float, exponent: int) -> tuple[int, int]:
    """Return ``(mantissa, e)`` with ``base ** exponent == mantissa * 2 ** e``, to the last bits of the mantissa.

    The product of two powers, one of which the exponents of 64 steps share.
    """
    if exponent < 2:
        numerator, denominator = base.as_integer_ratio()
        return (numerator, 1 - denominator.bit_length()) if exponent else (1, 0)
    low = exponent % 64
    part = low if 0 < low < exponent else exponent // 2
    (first, e1), (second, e2) = _whole_power(base, exponent - part), _whole_power(base, part)
    product, e = first * second, e1 + e2
    excess = max(0, product.bit_length() - _BITS)
    return product >> excess, e + excess


# Wide enough that rounding to float64 is the only rounding; decimal arithmetic has the same bits on every machine,
# which the C library's pow has not.
_PRECISE = Context(prec=40, traps=[])


@functools.lru_cache(maxsize=64)
def power(base: float, exponent: float) -> float:
    """Return ``base ** exponent``, rounded once; the one implementation of powers in the scalars of a step.

    >>> power(0.5, 3)
    0.125
    """
    if type(exponent) is int and exponent >= 0 and 0 <= base <= 1:
        mantissa, e = _whole_power(base, exponent)
        if e > -1000:
            return math.ldexp(mantissa, e)
        return mantissa / (1 << -e) if e > -2048 else 0.0  # below 2 ** -1888; subnormal numbers are rounded once, too
    return float(_PRECISE.power(Decimal(base), Decimal(exponent)))


def bias_correction(beta_1: Any, beta_2: Any, step: int) -> Any:
    """Return ``sqrt(1 - beta_2^T) / (1 - beta_1^T)`` for ``T = step`` (from 1), in the dtype of the betas.

    Source: Kingma and Ba 2015, the remark before section 2.1.
    """
    return _bias_corrections(beta_1, beta_2, step // _AT_ONCE)[step % _AT_ONCE]


@functools.lru_cache(maxsize=16, typed=True)
def _bias_corrections(beta_1: Any, beta_2: Any, block: int) -> tuple[Any, ...]:
    """Return the corrections of the steps of one block, which cost a third of what they do step by step."""
    scalar = type(beta_1)
    one = scalar(1)
    exponents = range(block * _AT_ONCE, (block + 1) * _AT_ONCE)
    with np.errstate(all="ignore"):
        first, second = (
            [one - scalar(power(beta, exponent)) for exponent in exponents] for beta in map(float, (beta_1, beta_2))
        )
        return tuple([np.sqrt(b) / a for a, b in zip(first, second, strict=True)])


def uses_momentum(momentum: Any) -> bool:
    """Return whether a rule with momentum is wanted: not for a number that is 0; callables and tensors may change.

    Raises: ValueError for a Python number outside of 0..1.

    >>> uses_momentum(0.0), uses_momentum(0.9), uses_momentum(lambda: 0.0)
    (False, True, True)
    """
    if isinstance(momentum, int | float) and not 0 <= momentum <= 1:
        raise ValueError(f"momentum must lie in 0..1, but is {momentum}")
    return callable(momentum) or isinstance(momentum, Operand) or bool(momentum > 0)


def decayed(learning_rate: float, decay: float, iterations: int) -> float:
    """Return ``learning_rate / (1 + decay * iterations)``; ``decay`` is rounded through float32."""
    return learning_rate / (1.0 + through_float32(decay) * iterations)


def as_number(value: Any) -> float | Array | Any:
    """Return a hyper as it is written to a configuration: numbers as they are, variables as NumPy scalars."""
    if isinstance(value, Variable):
        return value.storage[()]  # one value for all; of a graph's, which has no `numpy()`, too
    if isinstance(value, Tensor):
        return value.numpy()[()]
    return value
