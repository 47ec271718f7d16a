"""The cross-entropy of a softmax, as one operation that keeps what its gradient needs."""

# ruff: noqa: ARG001, ARG005  (derivatives are given the result and all arguments, used or not)
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import autograd.numpy as anp
import numpy as np
from autograd.extend import defvjp, primitive

from distopt.autodiff.nodes import FUSED, Fused, Node
from distopt.ops import loops
from distopt.ops.arrays import cast
from distopt.ops.loops import FEW_CLASSES
from distopt.ops.shapes import operand
from distopt.tensor import Operand, Tensor, call
from distopt.types import Array

_OPERANDS = (Operand, np.ndarray)


def softmax_cross_entropy(labels: Any, logits: Any) -> Tensor:
    """Return ``-sum(labels * log(softmax(logits)))`` of each example.

    Shapes: ``logits`` ``[..., c]``; ``labels`` either ``[...]``, integers below c, or ``[..., c]``, the probability of
    each class; the result is ``[...]``, in the dtype of ``logits``.

    Raises: ValueError for a label outside of 0..c-1, or shapes that do not fit.
    """
    labels = labels if isinstance(labels, _OPERANDS) else np.asarray(labels)
    logits = operand(logits)
    shape = logits.shape
    is_index = labels.dtype.kind in "iu" and len(labels.shape) < len(shape)
    if labels.shape != (shape[:-1] if is_index else shape):
        raise ValueError(f"labels of shape {labels.shape} do not fit logits of shape {shape}")
    if is_index:
        return call(_sparse, labels.numpy() if isinstance(labels, Operand) else labels, logits)
    if labels.dtype != logits.dtype:
        labels = cast(labels, logits.dtype)
    return call(_dense, labels, logits)


# Integer labels.


def _sparse_forward(needed: Sequence[int], labels: Array, logits: Array) -> tuple[Any, Any]:
    """Return the losses, and what :func:`_sparse_backward` needs: exponentials, sums, labels or their positions."""
    classes = logits.shape[-1]
    if labels.ndim == 1 and classes <= FEW_CLASSES:
        positions = np.ascontiguousarray(labels, np.int64)
        z, picked = loops.shift_rows(logits, positions)
        np.exp(z, out=z)
        sums = loops.sum_rows(z)
        losses = np.log(sums)
        losses -= picked
        return losses, (z, sums, positions)
    loops.refuse_labels(labels, classes)
    z = logits.copy(order="C")
    chosen = np.arange(0, z.size, classes)
    chosen += labels.reshape(-1).astype(np.int64, copy=False)
    z -= np.maximum.reduce(z, axis=-1, keepdims=True)
    picked = z.reshape(-1)[chosen]
    np.exp(z, out=z)
    sums = np.add.reduce(z, axis=-1)
    losses = np.log(sums)
    losses -= picked.reshape(labels.shape)
    return losses, (z, sums, chosen)


def _sparse_backward(node: Node, gradient: Any, owned: bool) -> Sequence[Any]:
    exponentials, sums, chosen = node.saved
    if gradient.ndim == 1 and exponentials.shape[1] <= FEW_CLASSES:
        loops.scale_rows_and_subtract(exponentials, gradient, sums, chosen)
        return (exponentials,)
    exponentials *= (gradient / sums)[..., None]
    exponentials.reshape(-1)[chosen] -= gradient.reshape(-1)
    return (exponentials,)


_sparse = primitive(lambda labels, logits: _sparse_forward((), labels, logits)[0])


def _sparse_derivative(ans: Any, labels: Array, logits: Any) -> Any:
    def backward(g: Any) -> Any:
        classes = anp.shape(logits)[-1]
        chosen = (np.arange(classes) == labels[..., None]).astype(logits.dtype)
        return anp.expand_dims(g, -1) * (_softmax(logits) - chosen)

    return backward


defvjp(_sparse, None, _sparse_derivative)
FUSED[_sparse] = Fused(_sparse_backward, fresh=True, forward=_sparse_forward)


# Probabilities as labels.


def _dense_forward(needed: Sequence[int], labels: Array, logits: Array) -> tuple[Any, Any]:
    z = logits - np.maximum.reduce(logits, axis=-1, keepdims=True)
    exponentials = np.exp(z)
    sums = np.add.reduce(exponentials, axis=-1)
    z -= np.log(sums)[..., None]
    # einsum and matmul may round differently for other strides; this is a product and a sum.
    losses = np.negative(np.add.reduce(labels * z, axis=-1))
    return losses, (exponentials, sums, z)


def _dense_backward(node: Node, gradient: Any, owned: bool) -> Sequence[Any]:
    exponentials, sums, log_softmax = node.saved
    labels = node.args[0]
    column = gradient[..., None]
    gradients = []
    for argnum in node.argnums:
        if argnum == 0:
            gradients.append(-column * log_softmax)
        else:
            exponentials *= (np.add.reduce(labels, axis=-1) / sums)[..., None]
            exponentials -= labels
            exponentials *= column
            gradients.append(exponentials)
    return gradients


_dense = primitive(lambda labels, logits: _dense_forward((), labels, logits)[0])


def _softmax(logits: Any) -> Any:
    exponentials = anp.exp(logits - anp.max(logits, axis=-1, keepdims=True))
    return exponentials / anp.sum(exponentials, axis=-1, keepdims=True)


defvjp(
    _dense,
    lambda ans, labels, logits: lambda g: -anp.expand_dims(g, -1) * anp.log(_softmax(logits)),
    lambda ans, labels, logits: (
        lambda g: anp.expand_dims(g, -1) * (_softmax(logits) * anp.sum(labels, axis=-1, keepdims=True) - labels)
    ),
)
FUSED[_dense] = Fused(_dense_backward, fresh=True, forward=_dense_forward)
