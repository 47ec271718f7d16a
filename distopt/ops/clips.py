"""Clipping of tensors: the arithmetic of :mod:`distopt.clipping`, differentiable."""

# ruff: noqa: ARG001, ARG005  (TensorFlow's `name`; derivatives are given the result and all arguments, used or not)
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import autograd.numpy as anp
import numpy as np
from autograd.extend import defvjp, defvjp_argnum, primitive

from distopt import clipping
from distopt.indexed_slices import IndexedSlices
from distopt.ops.arithmetic import multiply
from distopt.ops.arrays import cast, convert_to_tensor, where
from distopt.ops.elementwise import maximum, minimum, sqrt, square
from distopt.ops.functions import is_finite
from distopt.ops.reductions import reduce_sum
from distopt.ops.shapes import operand
from distopt.tensor import Tensor, call
from distopt.types import Array


def clip_by_value(t: Any, clip_value_min: Any, clip_value_max: Any, name: str | None = None) -> Any:
    """Return ``t`` limited to an interval, element by element; the gradient is zero outside of it.

    Of IndexedSlices the rows are clipped as they are stored.

    >>> clip_by_value([-3.0, 0.5, 4.0], -1.0, 2.0).numpy()
    array([-1. ,  0.5,  2. ], dtype=float32)
    """
    if isinstance(t, IndexedSlices):
        return clipping.clip_by_value(t, clip_value_min, clip_value_max)
    return minimum(maximum(operand(t), clip_value_min), clip_value_max)


def clip_by_norm(t: Any, clip_norm: Any, axes: Any = None, name: str | None = None) -> Any:
    """Return ``t * c / max(norm(t), c)``: scaled down, if need be, to an L2 norm of ``c``.

    The norm is that of all of ``t``, in the canonical order of additions, or of its slices along ``axes``. Of
    IndexedSlices it is that of the rows as they are stored, duplicates included.

    Raises: ValueError for ``axes`` with IndexedSlices.

    >>> clip_by_norm([3.0, 4.0], 1.0).numpy()
    array([0.6, 0.8], dtype=float32)
    """
    limit = float(clip_norm)
    if isinstance(t, IndexedSlices):
        if axes is not None:
            raise ValueError("the norm of IndexedSlices is offered over all of them, not along axes")
        return clipping.clip_by_norm(t, limit)
    t = operand(t)
    if axes is None:
        return call(_clip_by_norm, t, limit)
    length = sqrt(reduce_sum(square(t), axes, keepdims=True))
    return multiply(t, limit) / maximum(length, limit)


def clip_by_global_norm(
    t_list: Sequence[Any], clip_norm: Any, use_norm: Any = None, name: str | None = None
) -> tuple[list[Any], Tensor]:
    """Return the tensors times ``c * min(1 / N, 1 / c)``, and N: their :func:`global_norm`, or ``use_norm``.

    ``None`` entries stay ``None``. If N is not finite, all elements become NaN.

    >>> clipped, norm = clip_by_global_norm([[3.0], None, [4.0]], 1.0)
    >>> clipped[0].numpy(), clipped[1], float(norm)
    (array([0.6], dtype=float32), None, 5.0)
    """
    norm = global_norm(t_list) if use_norm is None else convert_to_tensor(use_norm)
    return [None if t is None else _scaled(t, norm, clip_norm) for t in t_list], norm


def _scaled(t: Any, norm: Tensor, clip_norm: Any) -> Any:
    if isinstance(t, IndexedSlices):
        return IndexedSlices(_scaled(t.values, norm, clip_norm), t.indices, t.dense_shape)
    t = operand(t)
    # In the dtype of t, as clipping.global_scale has it: the bits are those of an optimizer's global_clipnorm.
    length, limit = cast(norm, t.dtype), t.dtype.type(clip_norm)
    with np.errstate(all="ignore"):
        scale = minimum(1 / length, t.dtype.type(1) / limit) * limit
        return multiply(t, where(is_finite(length), scale, t.dtype.type(np.nan)))


def global_norm(t_list: Sequence[Any], name: str | None = None) -> Tensor:
    """Return the L2 norm over all elements of all tensors, ``None`` entries left out, in the widest of their dtypes.

    Of IndexedSlices the rows count as they are stored, duplicates included.

    >>> float(global_norm([[3.0], None, [4.0]]))
    5.0
    """
    present = [t.values if isinstance(t, IndexedSlices) else operand(t) for t in t_list if t is not None]
    return call(_global_norm, *present)


@primitive  # type: ignore[untyped-decorator]  # autograd is untyped
def _global_norm(*tensors: Array) -> Any:
    return clipping.global_norm(tensors)


defvjp_argnum(_global_norm, lambda argnum, ans, args, kwargs: lambda g: args[argnum] * (g / ans))


@primitive  # type: ignore[untyped-decorator]  # autograd is untyped
def _clip_by_norm(t: Array, limit: float) -> Any:
    return clipping.clip_by_norm(t, limit)


def _backward(ans: Any, t: Any, limit: float) -> Any:
    """With n the norm above the limit c, ``d(t*c/n) = c/n * (g - t * (t.g) / n**2)``; below it, the identity."""

    def backward(g: Any) -> Any:
        squares = anp.sum(t * t)
        if not anp.sqrt(squares) > limit:
            return g
        return (g - t * (anp.sum(t * g) / squares)) * (limit / anp.sqrt(squares))

    return backward


defvjp(_clip_by_norm, _backward, None)
