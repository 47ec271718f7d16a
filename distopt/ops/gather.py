"""Looking up rows, with row-sparse gradients."""

# ruff: noqa: ARG001  (derivatives are given the result and all arguments, used or not)
from __future__ import annotations

from typing import Any

import autograd.numpy as anp
import numpy as np
from autograd.extend import defvjp, primitive

from distopt.autodiff.nodes import ROW_SPARSE, Node
from distopt.autodiff.rows import Rows, scatter_rows
from distopt.ops.shapes import operand
from distopt.tensor import Operand, Tensor, call
from distopt.types import Array


def gather(
    params: Any,
    indices: Any,
    validate_indices: Any = None,
    axis: int | None = None,
    batch_dims: int = 0,
    name: str | None = None,
) -> Tensor:
    """Return the slices of ``params`` at ``indices`` along ``axis`` (None: 0).

    Shapes: ``params`` ``[a.., n, b..]`` with n at ``axis``, ``indices`` ``[i..]``; the result is ``[a.., i.., b..]``.
    The gradient of a variable gathered along axis 0 is IndexedSlices with a row for every lookup, duplicates kept;
    that of anything else is dense.

    Raises: IndexError for an index that is negative or not below n; TypeError for indices that are no integers;
        ValueError for ``batch_dims``, which are not offered.
    """
    if batch_dims:
        raise ValueError("gather is offered without batch_dims; use one_hot and matmul, or a loop and stack")
    positions = indices.numpy() if isinstance(indices, Operand) else np.asarray(indices)
    if positions.dtype.kind not in "iu":
        raise TypeError(f"indices must be integers, not {positions.dtype}")
    return call(_gather, operand(params), positions, 0 if axis is None else axis)


@primitive  # type: ignore[untyped-decorator]  # autograd is untyped
def _gather(params: Array, indices: Array, axis: int) -> Array:
    if indices.size and np.minimum.reduce(indices, axis=None) < 0:
        raise IndexError(f"index {indices.min()} is negative")
    return np.take(params, indices, axis=axis)


def _derivative(ans: Any, params: Any, indices: Array, axis: int) -> Any:
    shape = anp.shape(params)
    axis %= len(shape)
    front = (shape[axis], *shape[:axis], *shape[axis + 1 :])
    lookups = tuple(range(axis, axis + indices.ndim))

    def backward(g: Any) -> Any:
        rows = anp.reshape(anp.moveaxis(g, lookups, tuple(range(indices.ndim))), (-1, *front[1:]))
        return anp.moveaxis(scatter_rows(rows, indices.reshape(-1), front), 0, axis)

    return backward


def _row_sparse(node: Node, gradient: Any) -> Rows | None:
    params, indices, axis = node.args
    if axis % params.ndim:
        return None
    # A copy: the caller may use the array again before the gradient is read.
    flat = np.array(indices, np.int64).reshape(-1)
    return Rows(anp.reshape(gradient, (-1, *params.shape[1:])), flat, params.shape)


defvjp(_gather, _derivative, None, None)
ROW_SPARSE[_gather] = _row_sparse
