"""Learning rates that fall with the global step, as TensorFlow 1 has them: functions of the step, not objects.

Where things run eagerly they return a function without arguments that looks at the step whenever it is called; in a
graph a deferred tensor. Either can be given to an optimizer. The arithmetic is that of :mod:`distopt.schedules`, in
the dtype of the rate: float32 for a Python number.
"""

# ruff: noqa: ARG001  (TensorFlow's `name`, accepted and without effect)
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from distopt import schedules
from distopt.graph import defer, defers
from distopt.random import Domain, stream
from distopt.tensor import Operand, Tensor
from distopt.variable import Variable

Decayed = Any
"""A function without arguments that returns the rate as a tensor, or a deferred tensor."""


def exponential_decay(
    learning_rate: Any, global_step: Any, decay_steps: Any, decay_rate: Any, staircase: bool = False, name: Any = None
) -> Decayed:
    """Return ``learning_rate * decay_rate ** (step / decay_steps)``; the exponent rounded down if ``staircase``.

    >>> rate = exponential_decay(0.5, Variable(20), 10, 0.5)
    >>> float(rate())
    0.125
    """

    def rate(initial: Any, step: Any, steps: Any, base: Any) -> Any:
        return schedules.ExponentialDecay(initial, steps, base, staircase)(step)

    return _decayed(rate, learning_rate, global_step, decay_steps, decay_rate)


def natural_exp_decay(
    learning_rate: Any, global_step: Any, decay_steps: Any, decay_rate: Any, staircase: bool = False, name: Any = None
) -> Decayed:
    """Return ``learning_rate * exp(-decay_rate * step / decay_steps)``; the quotient rounded down if ``staircase``."""

    def rate(initial: Any, step: Any, steps: Any, base: Any) -> Any:
        return schedules.ExponentialDecay(initial, steps, np.exp(-_like(initial, base)), staircase)(step)

    return _decayed(rate, learning_rate, global_step, decay_steps, decay_rate)


def inverse_time_decay(
    learning_rate: Any, global_step: Any, decay_steps: Any, decay_rate: Any, staircase: bool = False, name: Any = None
) -> Decayed:
    """Return ``learning_rate / (1 + decay_rate * step / decay_steps)``; the quotient rounded down if ``staircase``."""

    def rate(initial: Any, step: Any, steps: Any, base: Any) -> Any:
        return schedules.InverseTimeDecay(initial, steps, base, staircase)(step)

    return _decayed(rate, learning_rate, global_step, decay_steps, decay_rate)


def polynomial_decay(
    learning_rate: Any,
    global_step: Any,
    decay_steps: Any,
    end_learning_rate: Any = 0.0001,
    power: Any = 1.0,
    cycle: bool = False,
    name: Any = None,
) -> Decayed:
    """Return ``(learning_rate - end) (1 - s / D) ** power + end``; see :class:`distopt.schedules.PolynomialDecay`."""

    def rate(initial: Any, step: Any, steps: Any, end: Any, exponent: Any) -> Any:
        return schedules.PolynomialDecay(initial, steps, end, exponent, cycle)(step)

    return _decayed(rate, learning_rate, global_step, decay_steps, end_learning_rate, power)


def cosine_decay(learning_rate: Any, global_step: Any, decay_steps: Any, alpha: Any = 0.0, name: Any = None) -> Decayed:
    """Return the rate on half a cosine from ``learning_rate`` to ``alpha`` times it."""

    def rate(initial: Any, step: Any, steps: Any, floor: Any) -> Any:
        return schedules.CosineDecay(initial, steps, floor)(step)

    return _decayed(rate, learning_rate, global_step, decay_steps, alpha)


def cosine_decay_restarts(
    learning_rate: Any,
    global_step: Any,
    first_decay_steps: Any,
    t_mul: Any = 2.0,
    m_mul: Any = 1.0,
    alpha: Any = 0.0,
    name: Any = None,
) -> Decayed:
    """Return the rate on cosine decays one after another, each ``t_mul`` times as long and ``m_mul`` as high."""

    def rate(initial: Any, step: Any, first: Any, longer: Any, higher: Any, floor: Any) -> Any:
        return schedules.CosineDecayRestarts(initial, first, longer, higher, floor)(step)

    return _decayed(rate, learning_rate, global_step, first_decay_steps, t_mul, m_mul, alpha)


def linear_cosine_decay(
    learning_rate: Any,
    global_step: Any,
    decay_steps: Any,
    num_periods: Any = 0.5,
    alpha: Any = 0.0,
    beta: Any = 0.001,
    name: Any = None,
) -> Decayed:
    """Return ``learning_rate ((alpha + L) C + beta)``: a line times a cosine.

        L = (D - s) / D,  C = (1 + cos(2 pi num_periods s / D)) / 2,  s = min(step, D),  D = decay_steps

    Source: Bello et al. 2017.
    """

    def rate(initial: Any, step: Any, steps: Any, periods: Any, shift: Any, floor: Any) -> Any:
        return _linear_cosine(initial, step, steps, periods, shift, floor, noise=None)

    return _decayed(rate, learning_rate, global_step, decay_steps, num_periods, alpha, beta)


def noisy_linear_cosine_decay(
    learning_rate: Any,
    global_step: Any,
    decay_steps: Any,
    initial_variance: Any = 1.0,
    variance_decay: Any = 0.55,
    num_periods: Any = 0.5,
    alpha: Any = 0.0,
    beta: Any = 0.001,
    name: Any = None,
    *,
    seed: int = 0,
) -> Decayed:
    """Return :func:`linear_cosine_decay` with normal noise of variance ``initial_variance / (1 + s)^variance_decay``.

    The noise is added to L. It is a function of ``seed`` and the step alone: every process and every run finds the
    same one, but not the numbers that TensorFlow draws.

    Source: Bello et al. 2017.
    """

    def rate(initial: Any, step: Any, steps: Any, first: Any, fall: Any, periods: Any, shift: Any, floor: Any) -> Any:
        now = np.minimum(_like(initial, step), _like(initial, steps))
        one = now.dtype.type(1)
        deviation = np.sqrt(_like(initial, first) / np.power(one + now, _like(initial, fall)))
        draw = np.random.Generator(stream(Domain.RATE_NOISE, seed, int(step))).standard_normal()
        return _linear_cosine(initial, step, steps, periods, shift, floor, noise=deviation * now.dtype.type(draw))

    return _decayed(
        rate, learning_rate, global_step, decay_steps, initial_variance, variance_decay, num_periods, alpha, beta
    )


def piecewise_constant(x: Any, boundaries: Sequence[Any], values: Sequence[Any], name: Any = None) -> Decayed:
    """Return ``values[i]`` for ``boundaries[i-1] < x <= boundaries[i]``: a boundary belongs to the value before it.

    Raises: ValueError unless there is one value more than boundaries, if boundaries have not the dtype of ``x``
    (Python integers and int32 go with an int64 ``x``), or if values differ in dtype.
    """
    if len(boundaries) != len(values) - 1:
        raise ValueError(f"{len(boundaries)} boundaries need {len(boundaries) + 1} values, but there are {len(values)}")
    dtype = x.dtype if isinstance(x, Operand) else Tensor(x).dtype
    for boundary in boundaries:
        own = Tensor(boundary).dtype
        if own != dtype and not (own == np.int32 and dtype == np.int64):
            raise ValueError(f"the boundary {boundary!r} has dtype {own}, x has {dtype}; they must agree")
    dtypes = {str(value.dtype if isinstance(value, Operand) else Tensor(value).dtype) for value in values}
    if len(dtypes) > 1:
        raise ValueError(f"the values have different dtypes, {' and '.join(sorted(dtypes))}; they must agree")

    def rate(now: Any, *choices: Any) -> Any:
        return schedules.PiecewiseConstantDecay(list(boundaries), list(choices))(now)

    return _decayed(rate, x, *values)


def _decayed(rate: Callable[..., Any], *args: Any) -> Decayed:
    """Return ``rate`` of the numbers that ``args`` stand for: deferred, or asked for at every call."""

    def now(*values: Any) -> Tensor:
        return Tensor(np.asarray(rate(*map(_number, values))))

    return defer(now, args, name=rate.__qualname__.partition(".")[0]) if defers(args) else lambda: now(*args)


def _number(value: Any) -> Any:
    """Return a tensor or variable as a NumPy scalar, which keeps its dtype, and a number as it is."""
    value = value() if callable(value) and not isinstance(value, Operand) else value
    return value.numpy()[()] if isinstance(value, Variable | Tensor) else value


def _like(initial: Any, value: Any) -> Any:
    dtype = np.dtype(np.float32) if isinstance(initial, int | float) else np.asarray(initial).dtype
    return np.asarray(value).astype(dtype)[()]


def _linear_cosine(initial: Any, step: Any, steps: Any, periods: Any, shift: Any, floor: Any, noise: Any) -> Any:
    start, now, length, count, alpha, beta = (_like(initial, v) for v in (initial, step, steps, periods, shift, floor))
    one, half, two, pi = (start.dtype.type(number) for number in (1.0, 0.5, 2.0, np.pi))
    now = np.minimum(now, length)
    line = (length - now) / length
    cosine = half * (one + np.cos(two * pi * count * (now / length)))
    line = line if noise is None else line + noise
    return start * ((alpha + line) * cosine + beta)
