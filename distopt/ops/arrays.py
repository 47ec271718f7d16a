"""Making tensors, and changing their dtype and shape."""

# ruff: noqa: ARG001, ARG005  (derivatives are given the result and all arguments, used or not)
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import autograd.numpy as anp
import numpy as np
from autograd.extend import defvjp, defvjp_argnum, primitive

from distopt.autodiff.nodes import strip_all
from distopt.ops.shapes import operand, unbroadcast
from distopt.tensor import Operand, Tensor, call, to_array
from distopt.types import Array


def constant(value: Any, dtype: Any = None, shape: Sequence[int] | None = None) -> Tensor:
    """Return a tensor with a copy of ``value``, repeated to ``shape`` if that is given."""
    array = np.array(to_array(value, dtype))
    if shape is not None:
        array = np.broadcast_to(array, shape).copy() if array.size == 1 else array.reshape(shape)
    return Tensor(array)


def convert_to_tensor(value: Any, dtype: Any = None) -> Tensor:
    """Return ``value`` as a tensor; an array is not copied, and lists may hold tensors, which keep their tapes.

    Raises: ValueError for a tensor or variable of another dtype than ``dtype``: use :func:`cast`.
    """
    if isinstance(value, Operand):
        if dtype is not None and value.dtype != np.dtype(dtype):
            raise ValueError(f"a tensor of dtype {value.dtype} was given where {np.dtype(dtype)} is wanted; cast it")
        if isinstance(value, Tensor):
            return value
        return value.value() if hasattr(value, "value") else Tensor(value.numpy())
    if isinstance(value, list | tuple) and any(isinstance(part, Operand | list | tuple) for part in value):
        parts = [convert_to_tensor(part, dtype) for part in value]
        return stack(parts)
    return Tensor(to_array(value, dtype))


def cast(x: Any, dtype: Any) -> Tensor:
    """Return ``x`` in another dtype; its gradient is cast back. No gradient flows through integers."""
    wanted = np.dtype(dtype)
    x = operand(x)
    if isinstance(x, Tensor) and x.dtype == wanted:
        return x
    return call(_cast, x, wanted)


def reshape(x: Any, shape: Sequence[int]) -> Tensor:
    """Return ``x`` in another shape; one length may be -1."""
    return call(_reshape, operand(x), tuple(int(length) for length in shape))


def transpose(x: Any, perm: Sequence[int] | None = None) -> Tensor:
    """Return ``x`` with its axes in the order ``perm`` (None: reversed)."""
    return call(_transpose, operand(x), None if perm is None else tuple(perm))


def concat(values: Sequence[Any], axis: int = 0) -> Tensor:
    """Return ``values`` one after the other along an existing axis."""
    return call(anp.concatenate_args, axis, *[operand(value) for value in values])


def stack(values: Sequence[Any], axis: int = 0) -> Tensor:
    """Return ``values``, of one shape, side by side along a new axis."""
    return call(_stack, axis, *[operand(value) for value in values])


def where(condition: Any, x: Any, y: Any) -> Tensor:
    """Return ``x`` where ``condition`` is true, and ``y`` elsewhere."""
    return call(_where, operand(condition), x, y)


def zeros_like(x: Any, dtype: Any = None) -> Tensor:
    """Return zeros in the shape and dtype of ``x``."""
    x = operand(x)
    return Tensor(np.zeros(x.shape, dtype or x.dtype))


def ones_like(x: Any, dtype: Any = None) -> Tensor:
    """Return ones in the shape and dtype of ``x``."""
    x = operand(x)
    return Tensor(np.ones(x.shape, dtype or x.dtype))


def stop_gradient(x: Any) -> Tensor:
    """Return ``x`` as a constant: no tape follows it."""
    x = operand(x)
    return Tensor(strip_all(x._value) if isinstance(x, Tensor) else to_array(x))


@primitive  # type: ignore[untyped-decorator]  # autograd is untyped
def _cast(x: Array, dtype: Any) -> Any:
    return x.astype(dtype)


@primitive  # type: ignore[untyped-decorator]  # autograd is untyped
def _reshape(x: Array, shape: Any) -> Any:
    return x.reshape(shape)


@primitive  # type: ignore[untyped-decorator]  # autograd is untyped
def _transpose(x: Array, perm: Any) -> Any:
    return x.transpose(perm)


@primitive  # type: ignore[untyped-decorator]  # autograd is untyped
def _stack(axis: int, *values: Array) -> Array:
    return np.stack(values, axis)


@primitive  # type: ignore[untyped-decorator]  # autograd is untyped
def _where(condition: Array, x: Any, y: Any) -> Array:
    result: Array = np.where(condition, x, y)
    return result


def _stack_derivative(argnum: int, ans: Any, args: Any, kwargs: Any) -> Any:
    axis = args[0] % ans.ndim
    index = (slice(None),) * axis + (argnum - 1,)
    return lambda g: g[index]


defvjp(_cast, lambda ans, x, dtype: lambda g: _cast(g, x.dtype), None)
defvjp(_reshape, lambda ans, x, shape: lambda g: _reshape(g, anp.shape(x)), None)
defvjp(
    _transpose,
    lambda ans, x, perm: lambda g: _transpose(g, None if perm is None else tuple(np.argsort(perm))),
    None,
)
defvjp_argnum(_stack, _stack_derivative)
defvjp(
    _where,
    None,
    lambda ans, condition, x, y: lambda g: unbroadcast(_where(condition, g, anp.zeros_like(g)), anp.shape(x)),
    lambda ans, condition, x, y: lambda g: unbroadcast(_where(condition, anp.zeros_like(g), g), anp.shape(y)),
)
