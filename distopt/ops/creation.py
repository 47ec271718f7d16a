"""Tensors that are made of nothing but a shape, a number or a range."""

# ruff: noqa: ARG001  (TensorFlow's `name`, accepted and without effect)
from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from distopt.ops.shapes import operand
from distopt.tensor import Operand, Tensor, to_array
from distopt.types import Array, Shape


def constant(value: Any, dtype: Any = None, shape: Sequence[int] | None = None, name: str | None = None) -> Tensor:
    """Return a tensor with a copy of ``value``, repeated to ``shape`` if that is given.

    Python floats become float32 and Python integers int32; arrays keep their dtype.

    Raises: ValueError if the elements of ``value`` do not fill ``shape``.

    >>> constant(2.0, shape=(2, 2)).numpy()
    array([[2., 2.],
           [2., 2.]], dtype=float32)
    """
    array = np.array(to_array(value, dtype))
    if shape is not None:
        array = np.broadcast_to(array, shape).copy() if array.size == 1 else array.reshape(shape)
    return Tensor(array)


def zeros(shape: Any, dtype: Any = np.float32, name: str | None = None) -> Tensor:
    """Return zeros; ``shape`` is a sequence of lengths, or a tensor of them.

    >>> zeros([2], np.int64).numpy()
    array([0, 0])
    """
    return Tensor(np.zeros(shape_of(shape), dtype))


def ones(shape: Any, dtype: Any = np.float32, name: str | None = None) -> Tensor:
    """Return ones; ``shape`` is a sequence of lengths, or a tensor of them."""
    return Tensor(np.ones(shape_of(shape), dtype))


def fill(dims: Any, value: Any, name: str | None = None) -> Tensor:
    """Return ``value``, a scalar, repeated to the shape ``dims``, in the dtype of ``value``.

    Raises: ValueError if ``value`` is no scalar.

    >>> fill([2], 3.0).numpy()
    array([3., 3.], dtype=float32)
    """
    scalar = to_array(value)
    if scalar.ndim:
        raise ValueError(f"fill repeats a scalar, not a value of shape {scalar.shape}; see broadcast_to")
    return Tensor(np.full(shape_of(dims), scalar, scalar.dtype))


def zeros_like(x: Any, dtype: Any = None, name: str | None = None) -> Tensor:
    """Return zeros in the shape and dtype of ``x``."""
    x = operand(x)
    return Tensor(np.zeros(x.shape, dtype or x.dtype))


def ones_like(x: Any, dtype: Any = None, name: str | None = None) -> Tensor:
    """Return ones in the shape and dtype of ``x``."""
    x = operand(x)
    return Tensor(np.ones(x.shape, dtype or x.dtype))


def eye(num_rows: int, num_columns: int | None = None, dtype: Any = np.float32, name: str | None = None) -> Tensor:
    """Return a matrix ``[num_rows, num_columns]`` (None: square) with ones on its diagonal, zeros elsewhere."""
    return Tensor(np.eye(num_rows, num_columns, dtype=dtype))


def range(start: Any, limit: Any = None, delta: Any = 1, dtype: Any = None, name: str | None = None) -> Tensor:
    """Return ``start, start + delta, ...`` below ``limit``; with one argument from 0 to it.

    Python integers make int32, Python floats float32.

    Raises: ValueError if ``delta`` is zero.

    >>> range(2, 7, 2).numpy()
    array([2, 4, 6], dtype=int32)
    """
    if limit is None:
        start, limit = 0, start
    ends = [to_array(value) for value in (start, limit, delta)]
    if not ends[2]:
        raise ValueError("the step of a range must not be zero")
    wanted = np.result_type(*ends) if dtype is None else np.dtype(dtype)
    return Tensor(np.arange(*(end.item() for end in ends), dtype=wanted))


def linspace(start: Any, stop: Any, num: int, name: str | None = None) -> Tensor:
    """Return ``num`` evenly spaced values from ``start`` to ``stop``, both included, in the dtype of ``start``.

    >>> linspace(0.0, 1.0, 3).numpy()
    array([0. , 0.5, 1. ], dtype=float32)
    """
    first = to_array(start)
    return Tensor(np.linspace(first, to_array(stop), num, dtype=first.dtype))


def one_hot(
    indices: Any,
    depth: int,
    on_value: Any = 1,
    off_value: Any = 0,
    axis: int = -1,
    dtype: Any = np.float32,
    name: str | None = None,
) -> Tensor:
    """Return ``on_value`` at position ``indices[i]`` of a new axis of length ``depth``, ``off_value`` elsewhere.

    An index that is no position (-1, say) gives ``off_value`` only.

    Raises: TypeError for indices that are no integers.

    >>> one_hot([1, -1], 3).numpy()
    array([[0., 1., 0.],
           [0., 0., 0.]], dtype=float32)
    """
    positions = plain(indices)
    if positions.dtype.kind not in "iu":
        raise TypeError(f"indices must be integers, not {positions.dtype}")
    chosen = positions[..., np.newaxis] == np.arange(depth)
    hot = np.where(chosen, np.dtype(dtype).type(on_value), np.dtype(dtype).type(off_value))
    return Tensor(np.moveaxis(hot, -1, axis))


def plain(value: Any) -> Array:
    """Return an argument through which no gradient flows (indices, lengths, a shape) as an array."""
    return value.numpy() if isinstance(value, Operand) else np.asarray(value)


def shape_of(shape: Any) -> Shape:
    """Return a shape that was given as lengths, one length, or a tensor of them, as a tuple.

    >>> shape_of([2, np.int64(3)]), shape_of(4)
    ((2, 3), (4,))
    """
    if isinstance(shape, Operand):
        shape = shape.numpy().tolist()
    if isinstance(shape, int | np.integer):
        return (int(shape),)
    return tuple(operator.index(length) for length in shape)
