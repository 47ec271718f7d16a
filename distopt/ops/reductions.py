"""Reductions over axes, and what is built on them."""

# ruff: noqa: ARG001, ARG005  (derivatives are given the result and all arguments, used or not)
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import autograd.numpy as anp
import numpy as np
from autograd.extend import defvjp, primitive

from distopt.autodiff.nodes import FUSED, Fused, Node
from distopt.ops.shapes import filled, kept_shape, operand, repeat_reduced
from distopt.tensor import Tensor, call
from distopt.types import Array

Axis = int | Sequence[int] | None


def reduce_sum(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Return the sum over ``axis`` (None: all), in the dtype of ``x``."""
    return call(_sum, operand(x), _axis(axis), keepdims)


def divided_sum(x: Any, divisor: float) -> Tensor:
    """Return ``sum(x) / divisor``, both in the dtype of ``x``: the loss of a step from the losses of its examples.

    ``divisor`` is a number other than 0; no gradient flows to it.
    """
    return call(_divided_sum, operand(x), divisor)


def reduce_mean(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Return the mean over ``axis`` (None: all), in the dtype of ``x``; of integers, rounded down."""
    return call(_mean, operand(x), _axis(axis), keepdims)


def reduce_max(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Return the largest element along ``axis``; where it occurs several times, all share the gradient equally."""
    return call(_max, operand(x), _axis(axis), keepdims)


def reduce_min(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Return the smallest element along ``axis``; where it occurs several times, all share the gradient equally."""
    return call(_min, operand(x), _axis(axis), keepdims)


def argmax(x: Any, axis: int | None = None) -> Tensor:
    """Return the index, int64, of the largest element along ``axis`` (None: 0, as in TensorFlow)."""
    return call(anp.argmax, operand(x), 0 if axis is None else axis)


def softmax(logits: Any, axis: int = -1) -> Tensor:
    """Return ``exp(logits)`` divided by its sum over ``axis``."""
    return call(_softmax, operand(logits), axis)


def log_softmax(logits: Any, axis: int = -1) -> Tensor:
    """Return the logarithm of :func:`softmax`, without underflow."""
    return call(_log_softmax, operand(logits), axis)


def _axis(axis: Axis) -> int | tuple[int, ...] | None:
    return axis if axis is None or isinstance(axis, int) else tuple(axis)


@primitive  # type: ignore[untyped-decorator]  # autograd is untyped
def _sum(x: Array, axis: Any, keepdims: Any) -> Any:
    return np.add.reduce(x, axis=axis, dtype=x.dtype if x.dtype.kind in "iu" else None, keepdims=keepdims)


@primitive  # type: ignore[untyped-decorator]  # autograd is untyped
def _divided_sum(x: Array, divisor: float) -> Any:
    return np.add.reduce(x, axis=None) / x.dtype.type(divisor)


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


_max = primitive(lambda x, axis, keepdims: np.maximum.reduce(x, axis=axis, keepdims=keepdims))
_min = primitive(lambda x, axis, keepdims: np.minimum.reduce(x, axis=axis, keepdims=keepdims))


def _count(x: Any, axis: Any) -> int:
    count = 1
    for length, kept in zip(anp.shape(x), kept_shape(anp.shape(x), axis), strict=True):
        count *= length if kept == 1 else 1
    return count


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
    x, divisor = node.args
    return (filled(gradient / x.dtype.type(divisor), x.shape, None),)


def _mean_backward(node: Node, gradient: Any, owned: bool) -> Sequence[Any]:
    x, axis, _ = node.args
    return (filled(gradient / _count(x, axis), x.shape, axis),)


FUSED[_sum] = Fused(_sum_backward, fresh=True)
FUSED[_divided_sum] = Fused(_divided_sum_backward, fresh=True)
FUSED[_mean] = Fused(_mean_backward, fresh=True)
