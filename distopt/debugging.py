"""Assertions on tensors by the names of ``tf.debugging``; what fails raises ValueError, and what holds returns None."""

# ruff: noqa: ARG001  (TensorFlow's `summarize` and `name`, accepted and without effect)
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from distopt.ops.creation import plain
from distopt.ops.shapes import operand
from distopt.tensor import Operand, Tensor, to_array
from distopt.types import Array


def assert_equal(x: Any, y: Any, message: str | None = None, summarize: int | None = None, name: Any = None) -> None:
    """Check that ``x == y`` everywhere.

    Raises: ValueError that tells the first place where it is not, and both values.
    """
    _compare(np.equal, "==", x, y, message)


def assert_less(x: Any, y: Any, message: str | None = None, summarize: int | None = None, name: Any = None) -> None:
    """Check that ``x < y`` everywhere.

    Raises: as :func:`assert_equal`.
    """
    _compare(np.less, "<", x, y, message)


def assert_less_equal(
    x: Any, y: Any, message: str | None = None, summarize: int | None = None, name: Any = None
) -> None:
    """Check that ``x <= y`` everywhere.

    Raises: as :func:`assert_equal`.
    """
    _compare(np.less_equal, "<=", x, y, message)


def assert_greater(x: Any, y: Any, message: str | None = None, summarize: int | None = None, name: Any = None) -> None:
    """Check that ``x > y`` everywhere.

    Raises: as :func:`assert_equal`.
    """
    _compare(np.greater, ">", x, y, message)


def assert_greater_equal(
    x: Any, y: Any, message: str | None = None, summarize: int | None = None, name: Any = None
) -> None:
    """Check that ``x >= y`` everywhere.

    Raises: as :func:`assert_equal`.
    """
    _compare(np.greater_equal, ">=", x, y, message)


def assert_positive(x: Any, message: str | None = None, summarize: int | None = None, name: Any = None) -> None:
    """Check that ``x > 0`` everywhere.

    Raises: as :func:`assert_equal`.
    """
    _compare(np.greater, ">", x, 0, message)


def assert_non_negative(x: Any, message: str | None = None, summarize: int | None = None, name: Any = None) -> None:
    """Check that ``x >= 0`` everywhere.

    Raises: as :func:`assert_equal`.
    """
    _compare(np.greater_equal, ">=", x, 0, message)


def assert_near(
    x: Any,
    y: Any,
    rtol: float | None = None,
    atol: float | None = None,
    message: str | None = None,
    summarize: int | None = None,
    name: Any = None,
) -> None:
    """Check that ``|x - y| <= atol + rtol * |y|`` everywhere; both default to 10 times the dtype's epsilon.

    Raises: as :func:`assert_equal`.
    """
    left = _array(x)
    tolerance = 10 * float(np.finfo(left.dtype).eps)
    relative, absolute = tolerance if rtol is None else rtol, tolerance if atol is None else atol
    _compare(lambda a, b: np.abs(a - b) <= absolute + relative * np.abs(b), "close to", x, y, message)


def assert_all_finite(x: Any, message: str, name: Any = None) -> Tensor:
    """Return ``x``, of which no element is infinite or NaN.

    Raises: ValueError if one is.
    """
    return check_numerics(x, message, name)


def check_numerics(tensor: Any, message: str, name: Any = None) -> Tensor:
    """Return ``tensor``, of which no element is infinite or NaN.

    Raises: ValueError if one is; the message tells the first of them.
    """
    values = _array(tensor)
    wrong = np.argwhere(~np.isfinite(values))
    if len(wrong):
        place = tuple(wrong[0].tolist())
        raise ValueError(f"{message}: element {list(place)} is {values[place]} ({len(wrong)} of {values.size})")
    return tensor if isinstance(tensor, Tensor) else Tensor(tensor)


def assert_rank(x: Any, rank: Any, message: str | None = None, name: Any = None) -> None:
    """Check that ``x`` has ``rank`` axes.

    Raises: ValueError if it has not.
    """
    shape = operand(x).shape
    if len(shape) != int(plain(rank)):
        raise ValueError(f"{_prefix(message)}a tensor of rank {int(plain(rank))} is wanted, not one of shape {shape}")


def assert_type(tensor: Any, tf_type: Any, message: str | None = None, name: Any = None) -> None:
    """Check that ``tensor`` has the dtype ``tf_type``.

    Raises: TypeError if it has not.
    """
    dtype = operand(tensor).dtype
    if dtype != np.dtype(tf_type):
        raise TypeError(f"{_prefix(message)}a tensor of dtype {np.dtype(tf_type)} is wanted, not {dtype}")


def _compare(holds: Callable[[Array, Array], Array], relation: str, x: Any, y: Any, message: str | None) -> None:
    left, right = _array(x), _array(y)
    try:
        left, right = np.broadcast_arrays(left, right)
    except ValueError as error:
        raise ValueError(f"{_prefix(message)}shapes {left.shape} and {right.shape} do not fit") from error
    wrong = np.argwhere(~np.asarray(holds(left, right)))
    if len(wrong):
        place = tuple(wrong[0].tolist())
        raise ValueError(
            f"{_prefix(message)}x {relation} y does not hold at {list(place)}: {left[place]} and {right[place]} "
            f"({len(wrong)} of {left.size} elements)"
        )


def _array(value: Any) -> Array:
    return value.numpy() if isinstance(value, Operand) else to_array(value)


def _prefix(message: str | None) -> str:
    return f"{message}: " if message else ""


__all__ = [
    "assert_all_finite",
    "assert_equal",
    "assert_greater",
    "assert_greater_equal",
    "assert_less",
    "assert_less_equal",
    "assert_near",
    "assert_non_negative",
    "assert_positive",
    "assert_rank",
    "assert_type",
    "check_numerics",
]
