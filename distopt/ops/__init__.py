"""Differentiable operations on tensors, variables, arrays and numbers.

``call`` runs any autograd primitive; the others are the operations of our own. A float32 tensor stays float32 when it
meets a Python number.
"""

from __future__ import annotations

from typing import Any

import autograd.numpy as _anp

from distopt.ops.arrays import (
    cast,
    concat,
    constant,
    convert_to_tensor,
    ones_like,
    reshape,
    stack,
    stop_gradient,
    transpose,
    where,
    zeros_like,
)
from distopt.ops.cross_entropy import softmax_cross_entropy
from distopt.ops.dense import dense
from distopt.ops.elementwise import (
    abs,
    clip_by_value,
    equal,
    exp,
    log,
    maximum,
    minimum,
    relu,
    sigmoid,
    sign,
    sqrt,
    square,
    tanh,
)
from distopt.ops.gather import gather
from distopt.ops.reductions import (
    argmax,
    divided_sum,
    log_softmax,
    reduce_max,
    reduce_mean,
    reduce_min,
    reduce_sum,
    softmax,
)
from distopt.ops.shapes import operand as _operand
from distopt.tensor import Tensor, call


def matmul(a: Any, b: Any) -> Tensor:
    """Return the matrix product; leading axes are batches."""
    return call(_anp.matmul, _operand(a), _operand(b))


__all__ = [
    "abs",
    "argmax",
    "call",
    "cast",
    "clip_by_value",
    "concat",
    "constant",
    "convert_to_tensor",
    "dense",
    "divided_sum",
    "equal",
    "exp",
    "gather",
    "log",
    "log_softmax",
    "matmul",
    "maximum",
    "minimum",
    "ones_like",
    "reduce_max",
    "reduce_mean",
    "reduce_min",
    "reduce_sum",
    "relu",
    "reshape",
    "sigmoid",
    "sign",
    "softmax",
    "softmax_cross_entropy",
    "sqrt",
    "square",
    "stack",
    "stop_gradient",
    "tanh",
    "transpose",
    "where",
    "zeros_like",
]
