"""The element-wise operations that models spend their time in, and short backward functions for arithmetic.

Where two arguments are equal, ``maximum`` and ``minimum`` give the gradient to the first, as TensorFlow does.
"""

# ruff: noqa: ARG001, ARG005  (derivatives are given the result and all arguments, used or not)
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import autograd.numpy as anp
import numpy as np
from autograd.extend import defvjp, primitive
from autograd.numpy.numpy_boxes import ArrayBox

from distopt.autodiff.nodes import FUSED, Fused, Node
from distopt.ops.shapes import fit, operand, operands, unbroadcast
from distopt.tensor import Tensor, call
from distopt.types import Array


def exp(x: Any, name: str | None = None) -> Tensor:
    """Return e to the power of ``x``."""
    return call(anp.exp, operand(x))


def log(x: Any, name: str | None = None) -> Tensor:
    """Return the natural logarithm."""
    return call(anp.log, operand(x))


def square(x: Any, name: str | None = None) -> Tensor:
    """Return ``x * x``."""
    return call(anp.square, operand(x))


def sqrt(x: Any, name: str | None = None) -> Tensor:
    """Return the square root."""
    return call(_sqrt, operand(x))


def abs(x: Any, name: str | None = None) -> Tensor:
    """Return the absolute value; its gradient at zero is zero."""
    return call(_abs, operand(x))


def sign(x: Any, name: str | None = None) -> Tensor:
    """Return -1, 0 or 1; its gradient is zero."""
    return call(_sign, operand(x))


def maximum(x: Any, y: Any, name: str | None = None) -> Tensor:
    """Return the larger of two values, element by element."""
    return call(_maximum, *operands(x, y))


def minimum(x: Any, y: Any, name: str | None = None) -> Tensor:
    """Return the smaller of two values, element by element."""
    return call(_minimum, *operands(x, y))


def relu(x: Any, name: str | None = None) -> Tensor:
    """Return ``max(x, 0)``; its gradient at zero is zero."""
    return call(_relu, operand(x))


def tanh(x: Any, name: str | None = None) -> Tensor:
    """Return the hyperbolic tangent."""
    return call(_tanh, operand(x))


def sigmoid(x: Any, name: str | None = None) -> Tensor:
    """Return ``1 / (1 + exp(-x))``."""
    return call(_sigmoid, operand(x))


def relu_of(x: Array, out: Array | None = None) -> Array:
    """Return ``max(x, 0)`` of an array."""
    # A row of zeros instead of the number 0: NumPy has a fast loop for two arrays, and a slow one for a number.
    return np.maximum(x, np.zeros(x.shape[-1:], x.dtype), out=out)


def sigmoid_of(x: Array, out: Array | None = None) -> Array:
    """Return ``1 / (1 + exp(-x))`` of an array; the exponent is limited to what the dtype can hold."""
    result: Array = np.negative(x, out=out)
    result = np.minimum(result, _LARGEST_EXPONENT.get(result.dtype.name, 10), out=out)
    result = np.exp(result, out=out)
    result = np.add(result, 1, out=out)
    return np.reciprocal(result, out=out)


_LARGEST_EXPONENT = {"float64": 709, "float32": 88, "bfloat16": 88}

_sqrt = primitive(lambda x: np.sqrt(x))
_sign = primitive(lambda x: np.sign(x))
_abs = primitive(lambda x: np.abs(x))
_maximum = primitive(lambda x, y: np.maximum(x, y))
_minimum = primitive(lambda x, y: np.minimum(x, y))
_tanh = primitive(lambda x: np.tanh(x))
_sigmoid = primitive(lambda x: sigmoid_of(x))
_relu = primitive(lambda x: relu_of(x))

defvjp(_sqrt, lambda ans, x: lambda g: g * 0.5 / ans)
defvjp(_sign, lambda ans, x: lambda g: anp.zeros_like(g))
defvjp(_abs, lambda ans, x: lambda g: g * anp.sign(x))
defvjp(_tanh, lambda ans, x: lambda g: g * (1 - ans * ans))
defvjp(_sigmoid, lambda ans, x: lambda g: g * (ans * (1 - ans)))
defvjp(_relu, lambda ans, x: lambda g: g * (x > 0))
defvjp(
    _maximum,
    lambda ans, x, y: lambda g: unbroadcast(g * anp.greater_equal(x, y), anp.shape(x)),
    lambda ans, x, y: lambda g: unbroadcast(g * anp.less(x, y), anp.shape(y)),
)
defvjp(
    _minimum,
    lambda ans, x, y: lambda g: unbroadcast(g * anp.less_equal(x, y), anp.shape(x)),
    lambda ans, x, y: lambda g: unbroadcast(g * anp.greater(x, y), anp.shape(y)),
)


# Backward functions on plain arrays. Each returns a gradient for every entry of ``node.argnums``.


def _add(node: Node, gradient: Any, owned: bool) -> Sequence[Any]:
    return [fit(gradient, node.args[argnum]) for argnum in node.argnums]


def _subtract(node: Node, gradient: Any, owned: bool) -> Sequence[Any]:
    return [fit(gradient if argnum == 0 else -gradient, node.args[argnum]) for argnum in node.argnums]


def _multiply(node: Node, gradient: Any, owned: bool) -> Sequence[Any]:
    return [fit(gradient * node.args[1 - argnum], node.args[argnum]) for argnum in node.argnums]


def _divide(node: Node, gradient: Any, owned: bool) -> Sequence[Any]:
    x, y = node.args
    if node.argnums == [0]:
        return (fit(gradient / y, x),)
    return [
        fit(gradient / y if argnum == 0 else -gradient * (node.value / y), node.args[argnum]) for argnum in node.argnums
    ]


def _negative(node: Node, gradient: Any, owned: bool) -> Sequence[Any]:
    return (-gradient,)


def _square(node: Node, gradient: Any, owned: bool) -> Sequence[Any]:
    return (gradient * (node.args[0] * 2),)


def _power(node: Node, gradient: Any, owned: bool) -> Any:
    x, y = node.args
    if node.argnums != [0] or type(y) not in (int, float) or y == 0:
        return NotImplemented
    return (fit(gradient * (x ** (y - 1) * y), x),)


def _matmul(node: Node, gradient: Any, owned: bool) -> Any:
    x, y = node.args
    if x.ndim != 2 or y.ndim != 2:
        return NotImplemented
    return [
        fit(np.matmul(gradient, y.T) if argnum == 0 else np.matmul(x.T, gradient), node.args[argnum])
        for argnum in node.argnums
    ]


def _getitem(node: Node, gradient: Any, owned: bool) -> Sequence[Any]:
    x, index = node.args
    result = np.zeros_like(x)
    parts = index if isinstance(index, tuple) else (index,)
    if all(part is None or part is Ellipsis or isinstance(part, int | slice) for part in parts):
        result[index] = gradient
    else:
        np.add.at(result, index, gradient)
    return (result,)


FUSED[anp.add] = Fused(_add, fresh=False)
FUSED[anp.subtract] = Fused(_subtract, fresh=False)
FUSED[anp.multiply] = Fused(_multiply, fresh=True)
FUSED[anp.true_divide] = Fused(_divide, fresh=True)
FUSED[anp.negative] = Fused(_negative, fresh=True)
FUSED[anp.square] = Fused(_square, fresh=True)
FUSED[anp.power] = Fused(_power, fresh=True)
FUSED[anp.matmul] = Fused(_matmul, fresh=True)
FUSED[ArrayBox.__getitem__] = Fused(_getitem, fresh=True)
