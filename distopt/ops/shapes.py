"""Helpers of derivatives: undo a broadcast, undo a reduction. They work on arrays and on boxes alike."""

from __future__ import annotations

from typing import Any

import autograd.numpy as anp
import numpy as np

from distopt.tensor import Operand, to_array
from distopt.types import Array, Shape

_OPERANDS = (Operand, np.ndarray)


def operand(value: Any) -> Any:
    """Return a tensor, variable or array as it is, and anything else as an array."""
    return value if isinstance(value, _OPERANDS) else to_array(value)


def operands(x: Any, y: Any) -> tuple[Any, Any]:
    """Return two arguments that an operation combines: a number or a list takes part in the dtype of the other.

    So a float32 tensor stays float32 when it meets ``2``, ``0.5`` or ``[1.0, 2.0]``.
    """
    return _beside(x, y), _beside(y, x)


def _beside(value: Any, other: Any) -> Any:
    if isinstance(value, _OPERANDS):
        return value
    if not isinstance(other, _OPERANDS):
        return to_array(value)
    if isinstance(value, int | float):
        if other.dtype.kind == "V":  # bfloat16, for which NumPy's rule for Python numbers does not hold
            return other.dtype.type(value)
        return float(value) if isinstance(value, float) else value  # NumPy's own float64 scalars would widen
    return to_array(value, other.dtype if other.dtype.kind in "fV" else None)


def unbroadcast(gradient: Any, shape: Shape) -> Any:
    """Return ``gradient`` summed over the axes along which a value of ``shape`` was repeated.

    >>> unbroadcast(np.ones((2, 3)), (3,))
    array([2., 2., 2.])
    """
    if gradient.shape == shape:
        return gradient
    extra = gradient.ndim - len(shape)
    if extra:
        gradient = anp.sum(gradient, axis=tuple(range(extra)))
    repeated = tuple(i for i, n in enumerate(shape) if n == 1 and gradient.shape[i] != 1)
    return anp.sum(gradient, axis=repeated, keepdims=True) if repeated else gradient


def fit(gradient: Any, argument: Any) -> Any:
    """Return a plain ``gradient`` in the shape and dtype of the plain ``argument`` it belongs to."""
    if gradient.shape != argument.shape:
        gradient = unbroadcast(gradient, argument.shape)
    # NumPy's own dtypes are unique objects; where others are not, astype finds that there is nothing to do.
    return gradient if gradient.dtype is argument.dtype else gradient.astype(argument.dtype, copy=False)


def kept_shape(shape: Shape, axis: Any) -> Shape:
    """Return ``shape`` with length 1 along the reduced ``axis`` (None: all of them).

    >>> kept_shape((2, 3), -1)
    (2, 1)
    """
    if axis is None:
        return (1,) * len(shape)
    axes = {n % len(shape) for n in (axis if isinstance(axis, tuple) else (axis,))}
    return tuple(1 if i in axes else n for i, n in enumerate(shape))


def repeat_reduced(gradient: Any, shape: Shape, axis: Any) -> Any:
    """Return the ``gradient`` of a reduction over ``axis``, repeated to the ``shape`` of what was reduced."""
    return anp.broadcast_to(anp.reshape(gradient, kept_shape(shape, axis)), shape)


def filled(gradient: Any, shape: Shape, axis: Any) -> Array:
    """Return :func:`repeat_reduced` of a plain ``gradient`` as an array of its own."""
    result = np.empty(shape, gradient.dtype)
    if axis is None:
        result.fill(gradient.item() if gradient.ndim else gradient)
    else:
        result[...] = gradient.reshape(kept_shape(shape, axis))
    return result
