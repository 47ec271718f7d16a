"""Fully connected layers as one operation: ``activation(x @ kernel + bias)``, and several one after another."""

# ruff: noqa: ARG001  (derivatives are given the result and all arguments, used or not)
from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import autograd.numpy as anp
import numpy as np
from autograd.extend import defvjp_argnums, primitive

from distopt.autodiff.nodes import FUSED, Fused, Node
from distopt.autodiff.places import place_for
from distopt.ops import loops
from distopt.ops.elementwise import relu_of, sigmoid_of
from distopt.ops.products import input_gradient, kernel_gradient
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


def _compute(x: Array, kernel: Array, bias: Array | None, activation: str) -> Array:
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


_dense = primitive(_compute)


def _backward(node: Node, gradient: Any, owned: bool) -> Sequence[Any]:
    x, kernel, bias, activation = node.args
    needed = node.argnums
    found: list[Any] = []
    below = _layer_backward(
        x, kernel, bias, activation, node.value, gradient, owned, 0 in needed, 1 in needed, 2 in needed, found
    )
    if below is not None:
        found.append(below)
    found.reverse()
    return found


def _layer_backward(
    x: Array,
    kernel: Array,
    bias: Array | None,
    activation: str,
    result: Array,
    gradient: Any,
    owned: bool,
    of_x: bool,
    of_kernel: bool,
    of_bias: bool,
    found: list[Any],
) -> Any:
    """Append the gradients of bias and kernel, where asked for, to ``found``, and return that of ``x``, or None.

    Each has the dtype of what it belongs to.
    """
    total = None
    if activation == "relu" and owned and gradient.ndim == 2:
        total = loops.relu_backward(gradient, result)
    elif activation != "linear":
        if activation == "relu":
            slope = result > 0
        elif activation == "tanh":
            slope = 1 - result * result
        else:
            slope = result * (1 - result)
        gradient = np.multiply(gradient, slope, out=gradient) if owned else np.multiply(gradient, slope)
    dtype = gradient.dtype
    rows, columns = gradient, x
    if gradient.ndim != 2:
        rows, columns = gradient.reshape(-1, gradient.shape[-1]), x.reshape(-1, x.shape[-1])
    if of_bias:
        assert bias is not None, "it has a gradient"
        if total is None:
            total = loops.sum_columns(rows)
        found.append(total if bias.dtype is dtype else total.astype(bias.dtype, copy=False))
    if of_kernel:
        product = kernel_gradient(columns, rows, place_for(kernel))
        found.append(product if kernel.dtype is dtype else product.astype(kernel.dtype, copy=False))
    if not of_x:
        return None
    below = input_gradient(gradient, kernel)
    return below if x.dtype is dtype else below.astype(x.dtype, copy=False)


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


# Layers one after another. Their results are kept for the gradients, but nothing is recorded of each.


def dense_layers(x: Any, weights: Iterable[Any], activations: tuple[str, ...]) -> Tensor:
    """Return what :func:`dense` layers, each of which takes what the one before returned, make of ``x``.

    ``weights``: kernel and bias, which may be None, of the first, then of the next. ``activations`` are names.

    >>> dense_layers(np.ones((1, 2)), [np.ones((2, 3)), None, np.ones((3, 1)), np.ones(1)], ("relu", "linear")).numpy()
    array([[7.]])
    """
    return call(_layers, x, *weights, activations)


def _layers_forward(needed: Sequence[int], *args: Any) -> tuple[Any, list[Any]]:
    value = args[0]
    results = []
    at = 1
    for activation in args[-1]:
        value = _compute(value, args[at], args[at + 1], activation)
        results.append(value)
        at += 2
    return value, results


def _layers_backward(node: Node, gradient: Any, owned: bool) -> Sequence[Any]:
    args, needed, results = node.args, node.argnums, node.saved
    activations, first = args[-1], needed[0]
    completions = node.recording.completions
    found: list[Any] = []
    for position in range(len(activations) - 1, -1, -1):
        at = 2 * position + 1
        gradient = _layer_backward(
            results[position - 1] if position else args[0], args[at], args[at + 1], activations[position],
            results[position], gradient, owned, first < at, at in needed, at + 1 in needed, found,
        )  # fmt: skip
        if completions is not None:
            made = [argnum for argnum in (at + 1, at) if argnum in needed]
            for argnum, array in zip(made, found[-len(made) :], strict=False):
                completions.made(node, argnum, array)
        if gradient is None:
            break
        owned = True
    else:
        found.append(gradient)
    found.reverse()
    return found


_layers = primitive(lambda *args: _layers_forward((), *args)[0])


def _layers_derivative(argnums: Sequence[int], result: Any, args: Sequence[Any], kwargs: Any) -> Any:
    activations = args[-1]
    inputs = [args[0]]
    for position, activation in enumerate(activations[:-1]):
        inputs.append(_dense(inputs[-1], args[2 * position + 1], args[2 * position + 2], activation))

    def backward(gradient: Any) -> list[Any]:
        found: dict[int, Any] = {}
        value = result
        for position in reversed(range(len(activations))):
            at = 2 * position + 1
            layer = (inputs[position], args[at], args[at + 1], activations[position])
            parts = (0, 1) if args[at + 1] is None else (0, 1, 2)
            gradient, *of_weights = _derivative(parts, value, layer, kwargs)(gradient)
            found.update(enumerate(of_weights, at))
            value = inputs[position]
        found[0] = gradient
        return [found[argnum] for argnum in argnums]

    return backward


defvjp_argnums(_layers, _layers_derivative)
FUSED[_layers] = Fused(_layers_backward, fresh=True, forward=_layers_forward)
