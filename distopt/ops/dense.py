"""A fully connected layer as one operation: ``activation(x @ kernel + bias)``."""

# ruff: noqa: ARG001  (derivatives are given the result and all arguments, used or not)
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import autograd.numpy as anp
import numpy as np
from autograd.extend import defvjp_argnums, primitive

from distopt.autodiff.nodes import FUSED, Fused, Node
from distopt.autodiff.places import place_for
from distopt.ops import loops
from distopt.ops.elementwise import relu_of, sigmoid_of
from distopt.tensor import Tensor, call
from distopt.types import Array

ACTIVATIONS = ("linear", "relu", "sigmoid", "tanh")


def dense(x: Any, kernel: Any, bias: Any = None, activation: str | None = None) -> Tensor:
    """Return ``activation(x @ kernel + bias)``.

    Shapes: ``x`` is ``[..., n]``, ``kernel`` ``[n, m]``, ``bias`` ``[m]`` or None; the result is ``[..., m]``.
    ``activation`` is None or one of ``ACTIVATIONS``.

    Raises: ValueError for an unknown activation.
    """
    if activation is None:
        activation = "linear"
    elif activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, not {activation!r}")
    return call(_dense, x, kernel, bias, activation)


@primitive  # type: ignore[untyped-decorator]  # autograd is untyped
def _dense(x: Array, kernel: Array, bias: Array | None, activation: str) -> Array:
    result: Array = np.matmul(x, kernel)  # np.dot would fill the result with zeros first
    if activation == "relu" and bias is not None and result.ndim == 2:
        loops.add_bias_and_relu(result, bias)
        return result
    if bias is not None:
        loops.add_bias(result, bias)
    if activation == "relu":
        relu_of(result, out=result)
    elif activation == "tanh":
        np.tanh(result, out=result)
    elif activation == "sigmoid":
        sigmoid_of(result, out=result)
    return result


def _backward(node: Node, gradient: Any, owned: bool) -> Sequence[Any]:
    x, kernel, bias, activation = node.args
    bias_gradient = None
    if activation == "relu" and owned and gradient.ndim == 2:
        bias_gradient = loops.relu_backward(gradient, node.value)
    elif activation != "linear":
        result = node.value
        if activation == "relu":
            slope = result > 0
        elif activation == "tanh":
            slope = 1 - result * result
        else:
            slope = result * (1 - result)
        gradient = np.multiply(gradient, slope, out=gradient) if owned else np.multiply(gradient, slope)
    rows = gradient if gradient.ndim == 2 else gradient.reshape(-1, gradient.shape[-1])
    needed = node.argnums
    gradients = []
    if 0 in needed:
        gradients.append(np.matmul(gradient, kernel.T))
    if 1 in needed:
        columns = x.T if x.ndim == 2 else x.reshape(-1, x.shape[-1]).T
        gradients.append(np.matmul(columns, rows, out=place_for(kernel)))
    if 2 in needed:
        gradients.append(loops.sum_columns(rows) if bias_gradient is None else bias_gradient)
    dtype = gradient.dtype
    if x.dtype is dtype and kernel.dtype is dtype and (bias is None or bias.dtype is dtype):
        return gradients
    return [part.astype(node.args[argnum].dtype, copy=False) for argnum, part in zip(needed, gradients, strict=True)]


def _derivative(argnums: Sequence[int], result: Any, args: Sequence[Any], kwargs: Any) -> Any:
    x, kernel, _, activation = args

    def backward(gradient: Any) -> list[Any]:
        if activation == "relu":
            gradient = gradient * (result > 0)
        elif activation == "tanh":
            gradient = gradient * (1 - result * result)
        elif activation == "sigmoid":
            gradient = gradient * (result * (1 - result))
        rows = anp.reshape(gradient, (-1, anp.shape(gradient)[-1]))
        gradients = []
        for argnum in argnums:
            if argnum == 0:
                gradients.append(anp.matmul(gradient, anp.transpose(kernel)))
            elif argnum == 1:
                gradients.append(anp.matmul(anp.transpose(anp.reshape(x, (-1, anp.shape(x)[-1]))), rows))
            else:
                gradients.append(anp.sum(rows, axis=0))
        return gradients

    return backward


defvjp_argnums(_dense, _derivative)
FUSED[_dense] = Fused(_backward, fresh=True)
