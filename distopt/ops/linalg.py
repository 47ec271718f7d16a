"""Products, norms and decompositions of matrices; leading axes are batches."""

# ruff: noqa: ARG001  (TensorFlow's `name`, accepted and without effect)
from __future__ import annotations

from typing import Any

import autograd.numpy as anp
import numpy as np
from autograd.extend import defvjp_argnum, primitive
from autograd.numpy.numpy_boxes import ArrayBox
from autograd.numpy.numpy_vjps import grad_einsum

from distopt.ops.arithmetic import multiply
from distopt.ops.arrays import expand_dims, squeeze
from distopt.ops.elementwise import abs, maximum, sqrt, square
from distopt.ops.functions import rsqrt
from distopt.ops.reductions import Axis, reduce_max, reduce_sum
from distopt.ops.shapes import operand
from distopt.tensor import Tensor, call


def matmul(a: Any, b: Any, transpose_a: bool = False, transpose_b: bool = False, name: str | None = None) -> Tensor:
    """Return the matrix product, of ``a`` and ``b`` as they are or with their last two axes exchanged.

    >>> matmul([[1.0, 2.0]], [[3.0, 4.0]], transpose_b=True).numpy()
    array([[11.]], dtype=float32)
    """
    a, b = operand(a), operand(b)
    return call(anp.matmul, matrix_transpose(a) if transpose_a else a, matrix_transpose(b) if transpose_b else b)


def matvec(a: Any, b: Any, transpose_a: bool = False, name: str | None = None) -> Tensor:
    """Return the product of the matrix ``a`` and the vector ``b``."""
    return squeeze(matmul(a, expand_dims(b, -1), transpose_a=transpose_a), -1)


def matrix_transpose(a: Any, name: str | None = None) -> Tensor:
    """Return ``a`` with its last two axes exchanged."""
    return call(anp.swapaxes, operand(a), -1, -2)


def tensordot(a: Any, b: Any, axes: Any, name: str | None = None) -> Tensor:
    """Return the products of ``a`` and ``b`` summed over ``axes``: so many, or a pair of lists of them."""
    pairs = axes if isinstance(axes, int) else tuple(axis if isinstance(axis, int) else tuple(axis) for axis in axes)
    return call(anp.tensordot, operand(a), operand(b), axes=pairs)


def einsum(equation: str, *inputs: Any, name: str | None = None) -> Tensor:
    """Return the sum of products that ``equation`` says, in Einstein's notation.

    >>> einsum("ij,j->i", [[1.0, 2.0]], [3.0, 4.0]).numpy()
    array([11.], dtype=float32)
    """
    return call(_einsum, equation, *map(operand, inputs))


def trace(x: Any, name: str | None = None) -> Tensor:
    """Return the sum of the diagonal."""
    return reduce_sum(diag_part(x), -1)


def diag(diagonal: Any, name: str | None = None) -> Tensor:
    """Return square matrices with ``diagonal`` on their diagonal and zeros elsewhere; ``[..., n] -> [..., n, n]``."""
    diagonal = operand(diagonal)
    return multiply(expand_dims(diagonal, -1), np.eye(diagonal.shape[-1], dtype=diagonal.dtype))


def diag_part(x: Any, name: str | None = None) -> Tensor:
    """Return the diagonal; ``[..., n, m] -> [..., min(n, m)]``."""
    x = operand(x)
    places = np.arange(min(x.shape[-2:]))
    return call(ArrayBox.__getitem__, x, (Ellipsis, places, places))


def inv(x: Any, name: str | None = None) -> Tensor:
    """Return the inverse of square matrices.

    Raises: numpy.linalg.LinAlgError if there is none.
    """
    return call(anp.linalg.inv, operand(x))


def solve(matrix: Any, rhs: Any, name: str | None = None) -> Tensor:
    """Return the ``x`` for which ``matrix @ x`` is ``rhs``; shapes ``[n, n]`` and ``[n, k]``.

    Raises: numpy.linalg.LinAlgError if there is not exactly one.
    """
    return call(anp.linalg.solve, operand(matrix), operand(rhs))


def det(x: Any, name: str | None = None) -> Tensor:
    """Return the determinant of square matrices."""
    return call(anp.linalg.det, operand(x))


def norm(
    tensor: Any, ord: Any = "euclidean", axis: Axis = None, keepdims: bool = False, name: str | None = None
) -> Tensor:
    """Return the norm over ``axis`` (None: all): ``"euclidean"`` or 2 of vectors, 1, or infinity.

    Raises: ValueError for another ``ord``, or for 2 over two axes (a singular value).

    >>> float(norm([3.0, 4.0]))
    5.0
    """
    tensor = operand(tensor)
    axes = (axis,) if axis is None or isinstance(axis, int) else tuple(axis)
    if ord == "euclidean" or (ord == 2 and len(axes) == 1):
        return sqrt(reduce_sum(square(tensor), axis, keepdims))
    if ord == 1 and len(axes) == 1:
        return reduce_sum(abs(tensor), axis, keepdims)
    if ord == np.inf and len(axes) == 1:
        return reduce_max(abs(tensor), axis, keepdims)
    raise ValueError(f"norm is offered with ord 'euclidean', 1, 2 or infinity, the latter over one axis, not {ord!r}")


def l2_normalize(x: Any, axis: Axis = None, epsilon: float = 1e-12, name: str | None = None) -> Tensor:
    """Return ``x / sqrt(max(sum(x**2), epsilon))`` over ``axis`` (None: all).

    >>> l2_normalize([3.0, 4.0]).numpy()
    array([0.6, 0.8], dtype=float32)
    """
    x = operand(x)
    return multiply(x, rsqrt(maximum(reduce_sum(square(x), axis, keepdims=True), epsilon)))


_einsum = primitive(lambda equation, *inputs: np.einsum(equation, *inputs))
# Autograd's derivative takes the arguments as a tuple; a recorded operation keeps them in a list.
defvjp_argnum(_einsum, lambda argnum, ans, args, kwargs: grad_einsum(argnum, ans, tuple(args), kwargs))
