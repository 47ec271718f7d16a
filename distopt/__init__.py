"""Data-parallel training for NumPy gradients, with TensorFlow's optimizer and strategy semantics.

``import distopt as tf`` finds the names of TensorFlow where distopt offers them: ``tf.Variable``, ``tf.GradientTape``,
``tf.keras``, ``tf.distribute``, ``tf.data``, ``tf.nn`` and common operations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from distopt import data, distribute, errors, keras, losses, nn, ops, optimizers, random
from distopt.autodiff.tape import GradientTape
from distopt.indexed_slices import IndexedSlices
from distopt.ops import (
    abs,
    argmax,
    cast,
    clip_by_value,
    concat,
    constant,
    convert_to_tensor,
    equal,
    exp,
    gather,
    matmul,
    maximum,
    minimum,
    ones_like,
    reduce_max,
    reduce_mean,
    reduce_min,
    reduce_sum,
    reshape,
    sigmoid,
    sign,
    sqrt,
    square,
    stack,
    stop_gradient,
    tanh,
    transpose,
    where,
    zeros_like,
)
from distopt.tensor import Tensor
from distopt.variable import Variable, VariableAggregation, VariableSynchronization

__version__ = "0.1.0"

_Function = TypeVar("_Function", bound=Callable[..., object])


def function(func: _Function) -> _Function:
    """Return ``func`` itself: everything runs eagerly, so TensorFlow's decorator has nothing to do."""
    return func


__all__ = [
    "GradientTape",
    "IndexedSlices",
    "Tensor",
    "Variable",
    "VariableAggregation",
    "VariableSynchronization",
    "abs",
    "argmax",
    "cast",
    "clip_by_value",
    "concat",
    "constant",
    "convert_to_tensor",
    "data",
    "distribute",
    "equal",
    "errors",
    "exp",
    "function",
    "gather",
    "keras",
    "losses",
    "matmul",
    "maximum",
    "minimum",
    "nn",
    "ones_like",
    "ops",
    "optimizers",
    "random",
    "reduce_max",
    "reduce_mean",
    "reduce_min",
    "reduce_sum",
    "reshape",
    "sigmoid",
    "sign",
    "sqrt",
    "square",
    "stack",
    "stop_gradient",
    "tanh",
    "transpose",
    "where",
    "zeros_like",
]
