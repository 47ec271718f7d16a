"""Operations of two tensors by name: arithmetic, comparisons and logic; a number takes part in the tensor's dtype."""

# ruff: noqa: ARG001, ARG005  (TensorFlow's `name`; derivatives are given the result and all arguments, used or not)
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import autograd.numpy as anp
import numpy as np
from autograd.extend import defvjp, primitive

from distopt.ops.arrays import cast, where
from distopt.ops.creation import ones_like, zeros_like
from distopt.ops.elementwise import square
from distopt.ops.shapes import operand, operands, unbroadcast
from distopt.tensor import Operand, Tensor, call
from distopt.types import Array


def add(x: Any, y: Any, name: str | None = None) -> Tensor:
    """Return ``x + y``."""
    return call(anp.add, *operands(x, y))


def subtract(x: Any, y: Any, name: str | None = None) -> Tensor:
    """Return ``x - y``."""
    return call(anp.subtract, *operands(x, y))


def multiply(x: Any, y: Any, name: str | None = None) -> Tensor:
    """Return ``x * y``, element by element."""
    return call(anp.multiply, *operands(x, y))


def divide(x: Any, y: Any, name: str | None = None) -> Tensor:
    """Return ``x / y``; of integers the quotient is float64, as in TensorFlow."""
    return call(anp.true_divide, *operands(x, y))


def divide_no_nan(x: Any, y: Any, name: str | None = None) -> Tensor:
    """Return ``x / y``, and 0, with a gradient of 0, where ``y`` is 0.

    >>> divide_no_nan([1.0, 1.0], [2.0, 0.0]).numpy()
    array([0.5, 0. ], dtype=float32)
    """
    x, y = map(operand, operands(x, y))
    undefined = equal(y, 0)
    return where(undefined, zeros_like(y), divide(x, where(undefined, ones_like(y), y)))


def multiply_no_nan(x: Any, y: Any, name: str | None = None) -> Tensor:
    """Return ``x * y``, and 0 where ``y`` is 0, whatever ``x`` is."""
    x, y = map(operand, operands(x, y))
    return call(_multiply_no_nan, x, y)


def floordiv(x: Any, y: Any, name: str | None = None) -> Tensor:
    """Return the largest integer not above ``x / y``; no gradient flows through it."""
    return call(anp.floor_divide, *operands(x, y))


def floormod(x: Any, y: Any, name: str | None = None) -> Tensor:
    """Return ``x - floor(x / y) * y``, which has the sign of ``y``."""
    return call(anp.mod, *operands(x, y))


def pow(x: Any, y: Any, name: str | None = None) -> Tensor:
    """Return ``x`` to the power of ``y``."""
    return call(anp.power, *operands(x, y))


def squared_difference(x: Any, y: Any, name: str | None = None) -> Tensor:
    """Return ``(x - y)**2``."""
    return square(subtract(x, y))


def atan2(y: Any, x: Any, name: str | None = None) -> Tensor:
    """Return the angle of the point ``(x, y)``, from -pi to pi."""
    return call(anp.arctan2, *operands(y, x))


def add_n(inputs: Sequence[Any], name: str | None = None) -> Tensor:
    """Return the sum of ``inputs``, which are alike in shape, added from left to right.

    Raises: ValueError if there are none, or their shapes or dtypes differ.

    >>> add_n([[1.0, 2.0], [3.0, 4.0]]).numpy()
    array([4., 6.], dtype=float32)
    """
    terms = [operand(value) for value in ([inputs] if isinstance(inputs, Operand) else inputs)]
    kinds = {(term.shape, term.dtype) for term in terms}
    if len(kinds) != 1:
        kind = " and ".join(sorted(f"{dtype}{list(shape)}" for shape, dtype in kinds)) or "nothing"
        raise ValueError(f"add_n adds tensors of one shape and dtype, not {kind}")
    total = terms[0]
    for term in terms[1:]:
        total = add(total, term)
    return total if isinstance(total, Tensor) else add(total, 0)


def scalar_mul(scalar: Any, x: Any, name: str | None = None) -> Tensor:
    """Return ``scalar * x``.

    Raises: ValueError if ``scalar`` has axes.
    """
    if operand(scalar).shape != ():
        raise ValueError(f"scalar_mul multiplies by a scalar, not by a tensor of shape {operand(scalar).shape}")
    return multiply(scalar, x)


def equal(x: Any, y: Any, name: str | None = None) -> Tensor:
    """Return where two values are equal."""
    return call(anp.equal, *operands(x, y))


def not_equal(x: Any, y: Any, name: str | None = None) -> Tensor:
    """Return where two values differ."""
    return call(anp.not_equal, *operands(x, y))


def less(x: Any, y: Any, name: str | None = None) -> Tensor:
    """Return where ``x < y``."""
    return call(anp.less, *operands(x, y))


def less_equal(x: Any, y: Any, name: str | None = None) -> Tensor:
    """Return where ``x <= y``."""
    return call(anp.less_equal, *operands(x, y))


def greater(x: Any, y: Any, name: str | None = None) -> Tensor:
    """Return where ``x > y``."""
    return call(anp.greater, *operands(x, y))


def greater_equal(x: Any, y: Any, name: str | None = None) -> Tensor:
    """Return where ``x >= y``."""
    return call(anp.greater_equal, *operands(x, y))


def logical_and(x: Any, y: Any, name: str | None = None) -> Tensor:
    """Return where both are true."""
    return call(anp.logical_and, *operands(x, y))


def logical_or(x: Any, y: Any, name: str | None = None) -> Tensor:
    """Return where one of two is true, or both."""
    return call(anp.logical_or, *operands(x, y))


def logical_xor(x: Any, y: Any, name: str | None = None) -> Tensor:
    """Return where exactly one of two is true."""
    return not_equal(cast(x, bool), cast(y, bool))


def logical_not(x: Any, name: str | None = None) -> Tensor:
    """Return where ``x`` is false."""
    return call(anp.logical_not, operand(x))


@primitive  # type: ignore[untyped-decorator]  # autograd is untyped
def _multiply_no_nan(x: Array, y: Array) -> Array:
    with np.errstate(invalid="ignore"):
        result: Array = np.where(y == 0, x.dtype.type(0), x * y)
    return result


defvjp(
    _multiply_no_nan,
    lambda ans, x, y: lambda g: unbroadcast(_multiply_no_nan(g, y), anp.shape(x)),
    lambda ans, x, y: lambda g: unbroadcast(_multiply_no_nan(x, g), anp.shape(y)),
)
