"""Element-wise functions of one tensor: NumPy's, their derivatives, and the activations made of them."""

# ruff: noqa: ARG001, ARG005  (TensorFlow's `name`; derivatives are given the result and all arguments, used or not)
from __future__ import annotations

from typing import Any

import autograd.numpy as anp
import numpy as np
from autograd.extend import defvjp, primitive

from distopt.ops.arithmetic import add, greater, logical_and, multiply, subtract
from distopt.ops.arrays import where
from distopt.ops.creation import zeros_like
from distopt.ops.elementwise import exp, maximum, minimum, sigmoid
from distopt.ops.shapes import operand
from distopt.tensor import Tensor, call


def negative(x: Any, name: str | None = None) -> Tensor:
    """Return ``-x``."""
    return call(anp.negative, operand(x))


def log1p(x: Any, name: str | None = None) -> Tensor:
    """Return ``log(1 + x)``, exact also near 0."""
    return call(anp.log1p, operand(x))


def expm1(x: Any, name: str | None = None) -> Tensor:
    """Return ``exp(x) - 1``, exact also near 0."""
    return call(anp.expm1, operand(x))


def sin(x: Any, name: str | None = None) -> Tensor:
    """Return the sine."""
    return call(anp.sin, operand(x))


def cos(x: Any, name: str | None = None) -> Tensor:
    """Return the cosine."""
    return call(anp.cos, operand(x))


def tan(x: Any, name: str | None = None) -> Tensor:
    """Return the tangent."""
    return call(anp.tan, operand(x))


def asin(x: Any, name: str | None = None) -> Tensor:
    """Return the inverse of the sine."""
    return call(anp.arcsin, operand(x))


def acos(x: Any, name: str | None = None) -> Tensor:
    """Return the inverse of the cosine."""
    return call(anp.arccos, operand(x))


def atan(x: Any, name: str | None = None) -> Tensor:
    """Return the inverse of the tangent."""
    return call(anp.arctan, operand(x))


def sinh(x: Any, name: str | None = None) -> Tensor:
    """Return the hyperbolic sine."""
    return call(anp.sinh, operand(x))


def cosh(x: Any, name: str | None = None) -> Tensor:
    """Return the hyperbolic cosine."""
    return call(anp.cosh, operand(x))


def asinh(x: Any, name: str | None = None) -> Tensor:
    """Return the inverse of the hyperbolic sine."""
    return call(anp.arcsinh, operand(x))


def acosh(x: Any, name: str | None = None) -> Tensor:
    """Return the inverse of the hyperbolic cosine."""
    return call(anp.arccosh, operand(x))


def atanh(x: Any, name: str | None = None) -> Tensor:
    """Return the inverse of the hyperbolic tangent."""
    return call(anp.arctanh, operand(x))


def floor(x: Any, name: str | None = None) -> Tensor:
    """Return the largest integer not above ``x``; no gradient flows through it."""
    return call(anp.floor, operand(x))


def ceil(x: Any, name: str | None = None) -> Tensor:
    """Return the smallest integer not below ``x``; no gradient flows through it."""
    return call(anp.ceil, operand(x))


def round(x: Any, name: str | None = None) -> Tensor:
    """Return the nearest integer, halves to the even one; no gradient flows through it."""
    return call(anp.rint, operand(x))


def is_nan(x: Any, name: str | None = None) -> Tensor:
    """Return where ``x`` is not a number."""
    return call(anp.isnan, operand(x))


def is_inf(x: Any, name: str | None = None) -> Tensor:
    """Return where ``x`` is infinite, of either sign."""
    return call(anp.isinf, operand(x))


def is_finite(x: Any, name: str | None = None) -> Tensor:
    """Return where ``x`` is neither infinite nor not a number."""
    return call(anp.isfinite, operand(x))


def reciprocal(x: Any, name: str | None = None) -> Tensor:
    """Return ``1 / x``."""
    return call(_reciprocal, operand(x))


def rsqrt(x: Any, name: str | None = None) -> Tensor:
    """Return ``1 / sqrt(x)``."""
    return call(_rsqrt, operand(x))


def softplus(x: Any, name: str | None = None) -> Tensor:
    """Return ``log(1 + exp(x))``, without overflow.

    >>> float(softplus(1000.0))
    1000.0
    """
    return call(_softplus, operand(x))


def log_sigmoid(x: Any, name: str | None = None) -> Tensor:
    """Return ``log(1 / (1 + exp(-x)))``, without overflow."""
    return negative(softplus(negative(x)))


def softsign(x: Any, name: str | None = None) -> Tensor:
    """Return ``x / (1 + |x|)``."""
    return call(_softsign, operand(x))


def relu6(x: Any, name: str | None = None) -> Tensor:
    """Return ``min(max(x, 0), 6)``; its gradient at 0 and at 6 is zero."""
    x = operand(x)
    inside = logical_and(greater(x, 0), greater(6, x))
    return where(inside, x, multiply(zeros_like(x) + 6, greater(x, 0)))


def leaky_relu(x: Any, alpha: float = 0.2, name: str | None = None) -> Tensor:
    """Return ``x`` where it is positive, else ``alpha * x``."""
    x = operand(x)
    return where(greater(x, 0), x, multiply(x, alpha))


def elu(x: Any, name: str | None = None) -> Tensor:
    """Return ``x`` where it is positive, else ``exp(x) - 1``.

    Source: Clevert et al. 2016.
    """
    x = operand(x)
    return where(greater(x, 0), x, expm1(minimum(x, 0)))


def selu(x: Any, name: str | None = None) -> Tensor:
    """Return ``s * x`` where ``x`` is positive, else ``s * a * (exp(x) - 1)``, with s = 1.0507... and a = 1.6732...

    Source: Klambauer et al. 2017, whose constants these are.
    """
    x = operand(x)
    return where(greater(x, 0), multiply(x, _SELU_SCALE), multiply(expm1(minimum(x, 0)), _SELU_SCALE * _SELU_ALPHA))


def silu(x: Any, beta: float = 1.0) -> Tensor:
    """Return ``x * sigmoid(beta * x)``, also known as swish.

    Source: Ramachandran et al. 2017.
    """
    x = operand(x)
    return multiply(x, sigmoid(multiply(x, beta)))


def sigmoid_cross_entropy(labels: Any, logits: Any) -> Tensor:
    """Return ``-(y*log(p) + (1-y)*log(1-p))`` of each element, p being the sigmoid of ``logits``.

    As ``max(x,0) - x*y + log(1 + exp(min(-x,x)))``, which does not overflow, and whose derivative is right at 0.
    """
    logits = operand(logits)
    return add(subtract(maximum(logits, 0.0), multiply(logits, labels)), log1p(exp(minimum(-logits, logits))))


_SELU_SCALE = 1.0507009873554804934193349852946
_SELU_ALPHA = 1.6732632423543772848170429916717

_reciprocal = primitive(lambda x: np.reciprocal(x))
_rsqrt = primitive(lambda x: np.reciprocal(np.sqrt(x)))
_softplus = primitive(lambda x: np.logaddexp(x, x.dtype.type(0)))
_softsign = primitive(lambda x: x / (1 + np.abs(x)))

defvjp(_reciprocal, lambda ans, x: lambda g: -g * ans * ans)
defvjp(_rsqrt, lambda ans, x: lambda g: g * (ans * ans * ans * -0.5))
defvjp(_softplus, lambda ans, x: lambda g: g * anp.exp(x - ans))
defvjp(_softsign, lambda ans, x: lambda g: g * (1 - anp.abs(ans)) ** 2)
