"""Making tensors, and changing their dtype and shape."""

# ruff: noqa: ARG001, ARG005  (derivatives are given the result and all arguments, used or not)
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import autograd.numpy as anp
import numpy as np
from autograd.extend import defvjp, defvjp_argnum, primitive
from autograd.numpy.numpy_boxes import ArrayBox

from distopt.autodiff.nodes import strip_all
from distopt.indexed_slices import IndexedSlices
from distopt.ops.creation import plain, shape_of
from distopt.ops.shapes import operand, operands, unbroadcast
from distopt.tensor import Operand, Tensor, call, to_array
from distopt.types import Array


def convert_to_tensor(value: Any, dtype: Any = None, name: str | None = None) -> Tensor:
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


def cast(x: Any, dtype: Any, name: str | None = None) -> Tensor:
    """Return ``x`` in another dtype; its gradient is cast back. No gradient flows through integers."""
    wanted = np.dtype(dtype)
    x = operand(x)
    if isinstance(x, Tensor) and x.dtype == wanted:
        return x
    return call(_cast, x, wanted)


def reshape(x: Any, shape: Any, name: str | None = None) -> Tensor:
    """Return ``x`` in another shape; one length may be -1."""
    return call(_reshape, operand(x), shape_of(shape))


def transpose(x: Any, perm: Sequence[int] | None = None, name: str | None = None) -> Tensor:
    """Return ``x`` with its axes in the order ``perm`` (None: reversed)."""
    return call(_transpose, operand(x), None if perm is None else tuple(perm))


def concat(values: Sequence[Any], axis: int = 0, name: str | None = None) -> Tensor:
    """Return ``values`` one after the other along an existing axis."""
    return call(anp.concatenate_args, axis, *[operand(value) for value in values])


def stack(values: Sequence[Any], axis: int = 0, name: str | None = None) -> Tensor:
    """Return ``values``, of one shape, side by side along a new axis."""
    return call(_stack, axis, *[operand(value) for value in values])


def where(condition: Any, x: Any = None, y: Any = None, name: str | None = None) -> Tensor:
    """Return ``x`` where ``condition`` is true, and ``y`` elsewhere; without them, the indices of what is true.

    Shapes: all three are broadcast to one shape; the indices are int64, ``[count, rank of condition]``.

    Raises: ValueError if only one of ``x`` and ``y`` is given.

    >>> where([True, False, True]).numpy().tolist()
    [[0], [2]]
    """
    if x is None and y is None:
        return Tensor(np.argwhere(plain(condition)))
    if x is None or y is None:
        raise ValueError("where takes both x and y, or neither")
    return call(_where, operand(condition), *operands(x, y))


def identity(x: Any, name: str | None = None) -> Tensor:
    """Return a copy of ``x``; tapes follow it through."""
    return call(_identity, operand(x))


def squeeze(x: Any, axis: int | Sequence[int] | None = None, name: str | None = None) -> Tensor:
    """Return ``x`` without its axes of length 1, or without those of them in ``axis``.

    Raises: ValueError if an axis to remove is longer.
    """
    x = operand(x)
    axes = [i for i, length in enumerate(x.shape) if length == 1] if axis is None else np.atleast_1d(axis).tolist()
    removed = {i % len(x.shape) for i in axes}
    if any(x.shape[i] != 1 for i in removed):
        raise ValueError(f"axes {sorted(removed)} of shape {x.shape} are not all of length 1")
    return call(_reshape, x, tuple(length for i, length in enumerate(x.shape) if i not in removed))


def expand_dims(x: Any, axis: int, name: str | None = None) -> Tensor:
    """Return ``x`` with a new axis of length 1 at position ``axis`` of the result.

    Raises: ValueError if there is no such position.
    """
    x = operand(x)
    rank = len(x.shape) + 1
    if not -rank <= axis < rank:
        raise ValueError(f"a tensor of shape {x.shape} has no place for an axis at {axis}")
    place = axis % rank
    return call(_reshape, x, (*x.shape[:place], 1, *x.shape[place:]))


def broadcast_to(x: Any, shape: Any, name: str | None = None) -> Tensor:
    """Return ``x`` repeated to ``shape`` by the rules of broadcasting.

    Raises: ValueError if the shapes do not fit.
    """
    return call(_broadcast_to, operand(x), shape_of(shape))


def tile(x: Any, multiples: Any, name: str | None = None) -> Tensor:
    """Return ``x`` repeated ``multiples[i]`` times along axis i.

    Raises: ValueError if ``multiples`` has another length than the shape.

    >>> tile([1.0, 2.0], [2]).numpy()
    array([1., 2., 1., 2.], dtype=float32)
    """
    x, counts = operand(x), shape_of(multiples)
    if len(counts) != len(x.shape):
        raise ValueError(f"a tensor of shape {x.shape} needs {len(x.shape)} multiples, not {len(counts)}")
    pairs = [length for pair in zip(counts, x.shape, strict=True) for length in pair]
    split = [length for n in x.shape for length in (1, n)]
    repeated = broadcast_to(reshape(x, split), pairs)
    return reshape(repeated, [count * n for count, n in zip(counts, x.shape, strict=True)])


def repeat(x: Any, repeats: int, axis: int | None = None, name: str | None = None) -> Tensor:
    """Return each element of ``x`` ``repeats`` times in a row along ``axis`` (None: of ``x`` as one row).

    >>> repeat([1.0, 2.0], 2).numpy()
    array([1., 1., 2., 2.], dtype=float32)
    """
    x = operand(x)
    if axis is None:
        x, axis = reshape(x, [-1]), 0
    place = axis % len(x.shape)
    counts = [1] * (len(x.shape) + 1)
    counts[place + 1] = repeats
    shape = list(x.shape)
    shape[place] *= repeats
    return reshape(tile(expand_dims(x, place + 1), counts), shape)


def split(value: Any, num_or_size_splits: Any, axis: int = 0, name: str | None = None) -> list[Tensor]:
    """Return parts of ``value`` along ``axis``: so many of equal length, or of the lengths given; one may be -1.

    Raises: ValueError if the parts do not fill the axis.

    >>> [part.numpy().tolist() for part in split([1.0, 2.0, 3.0], [1, -1])]
    [[1.0], [2.0, 3.0]]
    """
    value = operand(value)
    length = value.shape[axis]
    if isinstance(num_or_size_splits, int):
        if num_or_size_splits < 1 or length % num_or_size_splits:
            raise ValueError(f"an axis of length {length} cannot be split into {num_or_size_splits} equal parts")
        sizes = [length // num_or_size_splits] * num_or_size_splits
    else:
        sizes = list(shape_of(num_or_size_splits))
        if sizes.count(-1) == 1:
            sizes[sizes.index(-1)] = length - sum(sizes) - 1
    if sum(sizes) != length or min(sizes, default=0) < 0:
        raise ValueError(f"an axis of length {length} cannot be split into parts of {sizes}")
    place = axis % len(value.shape)
    parts, start = [], 0
    for size in sizes:
        parts.append(call(ArrayBox.__getitem__, value, (slice(None),) * place + (slice(start, start + size),)))
        start += size
    return parts


def unstack(value: Any, num: int | None = None, axis: int = 0, name: str | None = None) -> list[Tensor]:
    """Return the slices of ``value`` along ``axis``, which is gone from them.

    Raises: ValueError if there are not ``num`` of them.
    """
    value = operand(value)
    length = value.shape[axis]
    if num is not None and num != length:
        raise ValueError(f"an axis of length {length} has {length} slices, not {num}")
    place = axis % len(value.shape)
    return [call(ArrayBox.__getitem__, value, (slice(None),) * place + (i,)) for i in range(length)]


def slice_(input_: Any, begin: Any, size: Any, name: str | None = None) -> Tensor:
    """Return ``size[i]`` elements (-1: all that follow) from ``begin[i]`` on along axis i.

    Raises: ValueError for a slice that reaches beyond the tensor.

    >>> slice_([[1, 2], [3, 4]], [0, 1], [-1, 1]).numpy().tolist()
    [[2], [4]]
    """
    x = operand(input_)
    starts, lengths = shape_of(begin), shape_of(size)
    stops = [n if k == -1 else b + k for b, k, n in zip(starts, lengths, x.shape, strict=True)]
    if any(not 0 <= b <= e <= n for b, e, n in zip(starts, stops, x.shape, strict=True)):
        raise ValueError(f"a slice of {lengths} from {starts} reaches beyond a tensor of shape {x.shape}")
    return call(ArrayBox.__getitem__, x, tuple(slice(b, e) for b, e in zip(starts, stops, strict=True)))


def reverse(x: Any, axis: int | Sequence[int], name: str | None = None) -> Tensor:
    """Return ``x`` with the order along each of ``axis`` turned round."""
    x = operand(x)
    turned = {i % len(x.shape) for i in np.atleast_1d(axis).tolist()}
    index = tuple(slice(None, None, -1) if i in turned else slice(None) for i in range(len(x.shape)))
    return call(ArrayBox.__getitem__, x, index)


def pad(x: Any, paddings: Any, mode: str = "CONSTANT", constant_values: Any = 0, name: str | None = None) -> Tensor:
    """Return ``x`` with ``paddings[i] = (before, after)`` further elements along axis i.

    Raises: ValueError for another ``mode`` than ``CONSTANT``, or paddings that do not fit.

    >>> pad([1.0], [[1, 2]]).numpy()
    array([0., 1., 0., 0.], dtype=float32)
    """
    if mode.upper() != "CONSTANT":
        raise ValueError(f"pad is offered for mode CONSTANT, not {mode}")
    x = operand(x)
    widths = plain(paddings)
    if widths.shape != (len(x.shape), 2):
        raise ValueError(f"paddings of shape {widths.shape} do not fit a tensor of shape {x.shape}")
    return call(_pad, x, tuple(map(tuple, widths.tolist())), constant_values)


def boolean_mask(tensor: Any, mask: Any, axis: int | None = None, name: str | None = None) -> Tensor:
    """Return the elements of ``tensor`` at which ``mask`` is true, those of its axes as one.

    Shapes: the axes of ``mask`` are those of ``tensor`` from ``axis`` (None: 0) on.

    Raises: ValueError if they are not.
    """
    tensor, chosen = operand(tensor), plain(mask).astype(bool)
    start = 0 if axis is None else axis % len(tensor.shape)
    if chosen.ndim == 0 or tensor.shape[start : start + chosen.ndim] != chosen.shape:
        raise ValueError(f"a mask of shape {chosen.shape} does not fit axis {start} of shape {tensor.shape}")
    return call(ArrayBox.__getitem__, tensor, (slice(None),) * start + np.nonzero(chosen))


def shape(x: Any, out_type: Any = np.int32, name: str | None = None) -> Tensor:
    """Return the shape of ``x`` as a tensor; ``x.shape`` is the same as a tuple."""
    return Tensor(np.array(operand(x).shape, out_type))


def size(x: Any, out_type: Any = np.int32, name: str | None = None) -> Tensor:
    """Return the number of elements of ``x``."""
    return Tensor(np.array(operand(x).size, out_type))


def rank(x: Any, name: str | None = None) -> Tensor:
    """Return the number of axes of ``x``."""
    return Tensor(np.array(len(operand(x).shape), np.int32))


def is_tensor(x: Any) -> bool:
    """Return whether ``x`` is a tensor, a variable or IndexedSlices."""
    return isinstance(x, Operand | IndexedSlices)


def stop_gradient(x: Any, name: str | None = None) -> Tensor:
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
def _identity(x: Array) -> Array:
    return x.copy()


@primitive  # type: ignore[untyped-decorator]  # autograd is untyped
def _broadcast_to(x: Array, shape: Any) -> Array:
    return np.broadcast_to(x, shape).copy()


@primitive  # type: ignore[untyped-decorator]  # autograd is untyped
def _pad(x: Array, widths: Any, value: Any) -> Array:
    return np.pad(x, widths, constant_values=value)


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
defvjp(_identity, lambda ans, x: lambda g: g)
defvjp(_broadcast_to, lambda ans, x, shape: lambda g: unbroadcast(g, anp.shape(x)), None)
defvjp(
    _pad,
    lambda ans, x, widths, value: (
        lambda g: g[tuple(slice(low, low + n) for (low, _), n in zip(widths, anp.shape(x), strict=True))]
    ),
    None,
    None,
)
defvjp_argnum(_stack, _stack_derivative)
defvjp(
    _where,
    None,
    lambda ans, condition, x, y: lambda g: unbroadcast(_where(condition, g, anp.zeros_like(g)), anp.shape(x)),
    lambda ans, condition, x, y: lambda g: unbroadcast(_where(condition, anp.zeros_like(g), g), anp.shape(y)),
)
