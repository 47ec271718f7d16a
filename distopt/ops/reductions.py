"""Reductions over axes, and what is built on them."""

# ruff: noqa: ARG001, ARG005  (derivatives are given the result and all arguments, used or not)
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import autograd.numpy as anp
import numpy as np
from autograd.extend import defvjp, primitive

from distopt.autodiff.nodes import FUSED, Fused, Node
from distopt.ops.arrays import cast
from distopt.ops.elementwise import sqrt, square
from distopt.ops.shapes import filled, kept_shape, operand, repeat_reduced
from distopt.tensor import Tensor, call
from distopt.types import Array

Axis = int | Sequence[int] | None


def reduce_sum(x: Any, axis: Axis = None, keepdims: bool = False, name: str | None = None) -> Tensor:
    """Return the sum over ``axis`` (None: all), in the dtype of ``x``."""
    return call(_sum, operand(x), _axis(axis), keepdims)


def divided_sum(x: Any, divisor: float) -> Tensor:
    """Return ``sum(x) / divisor``, both in the dtype of ``x``: the loss of a step from the losses of its examples.

    ``divisor`` is a number other than 0; no gradient flows to it.
    """
    return call(_divided_sum, operand(x), divisor)


def reduce_mean(x: Any, axis: Axis = None, keepdims: bool = False, name: str | None = None) -> Tensor:
    """Return the mean over ``axis`` (None: all), in the dtype of ``x``; of integers, rounded down."""
    return call(_mean, operand(x), _axis(axis), keepdims)


def reduce_max(x: Any, axis: Axis = None, keepdims: bool = False, name: str | None = None) -> Tensor:
    """Return the largest element along ``axis``; where it occurs several times, all share the gradient equally."""
    return call(_max, operand(x), _axis(axis), keepdims)


def reduce_min(x: Any, axis: Axis = None, keepdims: bool = False, name: str | None = None) -> Tensor:
    """Return the smallest element along ``axis``; where it occurs several times, all share the gradient equally."""
    return call(_min, operand(x), _axis(axis), keepdims)


def reduce_prod(x: Any, axis: Axis = None, keepdims: bool = False, name: str | None = None) -> Tensor:
    """Return the product over ``axis`` (None: all), in the dtype of ``x``; right also where elements are zero.

    >>> reduce_prod([[1.0, 2.0], [3.0, 4.0]], axis=0).numpy()
    array([3., 8.], dtype=float32)
    """
    return call(_prod, operand(x), _axis(axis), keepdims)


def reduce_any(x: Any, axis: Axis = None, keepdims: bool = False, name: str | None = None) -> Tensor:
    """Return whether any element along ``axis`` is true."""
    return call(anp.any, operand(x), _axis(axis), keepdims=keepdims)


def reduce_all(x: Any, axis: Axis = None, keepdims: bool = False, name: str | None = None) -> Tensor:
    """Return whether all elements along ``axis`` are true."""
    return call(anp.all, operand(x), _axis(axis), keepdims=keepdims)


def reduce_variance(x: Any, axis: Axis = None, keepdims: bool = False, name: str | None = None) -> Tensor:
    """Return the mean of the squared distances from the mean over ``axis``.

    >>> float(reduce_variance([1.0, 3.0]))
    1.0
    """
    centred = operand(x) - reduce_mean(x, axis, keepdims=True)
    return reduce_mean(square(centred), axis, keepdims)


def reduce_std(x: Any, axis: Axis = None, keepdims: bool = False, name: str | None = None) -> Tensor:
    """Return the square root of :func:`reduce_variance`."""
    return sqrt(reduce_variance(x, axis, keepdims))


def reduce_euclidean_norm(x: Any, axis: Axis = None, keepdims: bool = False, name: str | None = None) -> Tensor:
    """Return the square root of the sum of squares over ``axis``."""
    return sqrt(reduce_sum(square(x), axis, keepdims))


def reduce_logsumexp(x: Any, axis: Axis = None, keepdims: bool = False, name: str | None = None) -> Tensor:
    """Return ``log(sum(exp(x)))`` over ``axis``, without overflow.

    >>> float(reduce_logsumexp([1000.0, 1000.0])) - 1000 < 0.7
    True
    """
    return call(_logsumexp, operand(x), _axis(axis), keepdims)


def cumsum(x: Any, axis: int = 0, exclusive: bool = False, reverse: bool = False, name: str | None = None) -> Tensor:
    """Return the sums of all elements up to each one along ``axis``, with it or (``exclusive``) without it.

    ``reverse`` adds from the other end.

    >>> cumsum([1.0, 2.0, 3.0], exclusive=True).numpy()
    array([0., 1., 3.], dtype=float32)
    """
    return call(_cumsum, operand(x), axis, exclusive, reverse)


def argmax(x: Any, axis: int | None = None, output_type: Any = np.int64, name: str | None = None) -> Tensor:
    """Return the index of the first largest element along ``axis`` (None: 0, as in TensorFlow)."""
    return _index(anp.argmax, x, axis, output_type)


def argmin(x: Any, axis: int | None = None, output_type: Any = np.int64, name: str | None = None) -> Tensor:
    """Return the index of the first smallest element along ``axis`` (None: 0, as in TensorFlow)."""
    return _index(anp.argmin, x, axis, output_type)


def _index(primitive: Any, x: Any, axis: int | None, dtype: Any) -> Tensor:
    return cast(call(primitive, operand(x), 0 if axis is None else axis), dtype)


def softmax(logits: Any, axis: int = -1, name: str | None = None) -> Tensor:
    """Return ``exp(logits)`` divided by its sum over ``axis``."""
    return call(_softmax, operand(logits), axis)


def log_softmax(logits: Any, axis: int = -1, name: str | None = None) -> Tensor:
    """Return the logarithm of :func:`softmax`, without underflow."""
    return call(_log_softmax, operand(logits), axis)


def _axis(axis: Axis) -> int | tuple[int, ...] | None:
    return axis if axis is None or isinstance(axis, int) else tuple(axis)


@primitive  # type: ignore[untyped-decorator]  # autograd is untyped
def _sum(x: Array, axis: Any, keepdims: Any) -> Any:
    return np.add.reduce(x, axis=axis, dtype=x.dtype if x.dtype.kind in "iu" else None, keepdims=keepdims)


def _divided_sum_forward(needed: Sequence[int], x: Array, divisor: float) -> tuple[Any, Any]:
    own = x.dtype.type(divisor)
    return np.add.reduce(x, axis=None) / own, own


_divided_sum = primitive(lambda x, divisor: _divided_sum_forward((), x, divisor)[0])


@primitive  # type: ignore[untyped-decorator]  # autograd is untyped
def _mean(x: Array, axis: Any, keepdims: Any) -> Any:
    total = _sum.fun(x, axis, keepdims)
    return total // _count(x, axis) if x.dtype.kind in "iu" else total / _count(x, axis)


@primitive  # type: ignore[untyped-decorator]  # autograd is untyped
def _softmax(logits: Array, axis: int) -> Array:
    result: Array = logits - np.maximum.reduce(logits, axis=axis, keepdims=True)
    np.exp(result, out=result)
    result /= np.add.reduce(result, axis=axis, keepdims=True)
    return result


@primitive  # type: ignore[untyped-decorator]  # autograd is untyped
def _log_softmax(logits: Array, axis: int) -> Array:
    result: Array = logits - np.maximum.reduce(logits, axis=axis, keepdims=True)
    result -= np.log(np.add.reduce(np.exp(result), axis=axis, keepdims=True))
    return result


@primitive  # type: ignore[untyped-decorator]  # autograd is untyped
def _prod(x: Array, axis: Any, keepdims: Any) -> Any:
    return np.multiply.reduce(x, axis=axis, dtype=x.dtype if x.dtype.kind in "iu" else None, keepdims=keepdims)


@primitive  # type: ignore[untyped-decorator]  # autograd is untyped
def _logsumexp(x: Array, axis: Any, keepdims: Any) -> Any:
    largest = np.maximum.reduce(x, axis=axis, keepdims=True)
    largest = np.where(np.isfinite(largest), largest, x.dtype.type(0))
    with np.errstate(divide="ignore"):
        result = np.log(np.add.reduce(np.exp(x - largest), axis=axis, keepdims=True)) + largest
    return result if keepdims else np.squeeze(result, axis=axis)


@primitive  # type: ignore[untyped-decorator]  # autograd is untyped
def _cumsum(x: Array, axis: int, exclusive: bool, reverse: bool) -> Array:
    x = np.flip(x, axis) if reverse else x
    sums = np.cumsum(x, axis, dtype=x.dtype)
    if exclusive:  # not sums - x, which would cancel
        sums = np.roll(sums, 1, axis)
        sums[(slice(None),) * (axis % x.ndim) + (0,)] = 0
    return np.flip(sums, axis) if reverse else sums


_max = primitive(lambda x, axis, keepdims: np.maximum.reduce(x, axis=axis, keepdims=keepdims))
_min = primitive(lambda x, axis, keepdims: np.minimum.reduce(x, axis=axis, keepdims=keepdims))


def _count(x: Any, axis: Any) -> int:
    count = 1
    for length, kept in zip(anp.shape(x), kept_shape(anp.shape(x), axis), strict=True):
        count *= length if kept == 1 else 1
    return count


def _others(x: Any, axis: Any) -> Any:
    """Return, for each element, the product of the other ones along ``axis``."""
    shape = anp.shape(x)
    kept = kept_shape(shape, axis)
    reduced = [i for i, length in enumerate(kept) if axis is None or i in _positions(axis, len(shape))]
    order = [i for i in range(len(shape)) if i not in reduced] + reduced
    rows = anp.reshape(anp.transpose(x, order), (-1, _count(x, axis)))
    count, length = anp.shape(rows)
    repeated = anp.broadcast_to(rows[:, None, :], (count, length, length))
    factors = anp.where(np.eye(length, dtype=bool), np.ones((count, length, length), rows.dtype), repeated)
    products = anp.reshape(_prod(factors, -1, False), [shape[i] for i in order])
    return anp.transpose(products, np.argsort(order))


def _positions(axis: Any, rank: int) -> set[int]:
    return {n % rank for n in (axis if isinstance(axis, tuple) else (axis,))}


def _extreme(ans: Any, x: Any, axis: Any, keepdims: bool) -> Any:
    def backward(g: Any) -> Any:
        # Which elements are extreme is a constant: boxes take no part in comparisons.
        chosen = anp.equal(x, anp.reshape(ans, kept_shape(anp.shape(x), axis)))
        shares = chosen / anp.sum(chosen, axis=axis, keepdims=True)
        return repeat_reduced(g, anp.shape(x), axis) * shares.astype(x.dtype)

    return backward


defvjp(_sum, lambda ans, x, axis, keepdims: lambda g: repeat_reduced(g, anp.shape(x), axis), None, None)
defvjp(
    _mean,
    lambda ans, x, axis, keepdims: lambda g: repeat_reduced(g / _count(x, axis), anp.shape(x), axis),
    None,
    None,
)
defvjp(
    _divided_sum,
    lambda ans, x, divisor: lambda g: repeat_reduced(g / x.dtype.type(divisor), anp.shape(x), None),
    None,
)
defvjp(_max, _extreme, None, None)
defvjp(_min, _extreme, None, None)
defvjp(
    _prod,
    lambda ans, x, axis, keepdims: lambda g: repeat_reduced(g, anp.shape(x), axis) * _others(x, axis),
    None,
    None,
)
defvjp(
    _logsumexp,
    lambda ans, x, axis, keepdims: (
        lambda g: repeat_reduced(g, anp.shape(x), axis) * anp.exp(x - repeat_reduced(ans, anp.shape(x), axis))
    ),
    None,
    None,
)
defvjp(
    _cumsum,
    lambda ans, x, axis, exclusive, reverse: lambda g: _cumsum(g, axis, exclusive, not reverse),
    None,
    None,
    None,
)
defvjp(
    _softmax,
    lambda ans, logits, axis: lambda g: ans * (g - anp.sum(g * ans, axis=axis, keepdims=True)),
    None,
)
defvjp(
    _log_softmax,
    lambda ans, logits, axis: lambda g: g - anp.exp(ans) * anp.sum(g, axis=axis, keepdims=True),
    None,
)


def _sum_backward(node: Node, gradient: Any, owned: bool) -> Sequence[Any]:
    x, axis, _ = node.args
    return (filled(gradient, x.shape, axis),)


def _divided_sum_backward(node: Node, gradient: Any, owned: bool) -> Sequence[Any]:
    return (filled(gradient / node.saved, node.args[0].shape, None),)


def _mean_backward(node: Node, gradient: Any, owned: bool) -> Sequence[Any]:
    x, axis, _ = node.args
    return (filled(gradient / _count(x, axis), x.shape, axis),)


FUSED[_sum] = Fused(_sum_backward, fresh=True)
FUSED[_divided_sum] = Fused(_divided_sum_backward, fresh=True, forward=_divided_sum_forward)
FUSED[_mean] = Fused(_mean_backward, fresh=True)

MEANS = frozenset({_mean, anp.mean})
"""The operations that divide by the number of elements of what they are given."""

DIVIDED_SUMS = frozenset({_divided_sum})
"""Those that divide by a number that they are told."""
