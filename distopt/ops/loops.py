"""Passes over memory that NumPy makes in several and a compiled loop makes in one, with the same bits.

Each public function runs compiled where :data:`distopt.kernels.loops_compiled` says so and the arrays are contiguous
float32 or float64; otherwise it makes the NumPy calls that define it. What is compiled adds, multiplies, compares and
copies; exponentials and logarithms are NumPy's, whose bits a compiler's are not.
Every order of additions is left to right, which NumPy keeps along an axis that is not the fastest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from distopt import kernels
from distopt.types import Array

_UNSIGNED = {size: np.dtype(f"u{size}") for size in (1, 2, 4, 8)}

FEW_CLASSES = 32
"""Up to so many classes, sums over them are formed left to right."""


def add_bias_and_relu(z: Array, bias: Array) -> None:
    """Replace ``z``, shape ``[b, n]``, by ``max(z + bias, 0)``; a NaN stays one. ``bias`` has shape ``[n]``."""
    loop = _ADD_BIAS_AND_RELU[z.dtype] if kernels.loops_compiled and z.flags.c_contiguous else None
    if loop is not None and bias.dtype is z.dtype and bias.flags.c_contiguous and bias.shape == z.shape[1:]:
        loop(z, bias)
        return
    z += bias
    # A row of zeros instead of the number 0: NumPy has a fast loop for two arrays, and a slow one for a number.
    np.maximum(z, np.zeros(z.shape[-1:], z.dtype), out=z)


def add_bias(z: Array, bias: Array) -> None:
    """Add ``bias``, shape ``[n]``, to each row of ``z``, shape ``[..., n]``, in place."""
    loop = _ADD_BIAS[z.dtype] if kernels.loops_compiled and z.ndim == 2 and z.flags.c_contiguous else None
    if loop is not None and bias.dtype is z.dtype and bias.flags.c_contiguous and bias.shape == z.shape[1:]:
        loop(z, bias)
    else:
        z += bias


def sum_columns(values: Array) -> Array:
    """Return the sum over the rows of ``values``, shape ``[b, n]``, rows added first to last; of no rows, zeros."""
    loop = _SUM_COLUMNS[values.dtype] if kernels.loops_compiled and values.flags.c_contiguous else None
    if loop is not None and len(values):
        total = np.empty(values.shape[1], values.dtype)
        loop(values, total)
        return total
    if values.shape[1] == 1 and len(values):
        # NumPy would take one column for one row, whose sum has another order.
        summed: Array = np.add.accumulate(values[:, 0])[-1:].copy()
    else:
        summed = np.add.reduce(values, axis=0)
    summed += 0  # a sum of nothing but -0.0 is 0.0 here and there
    return summed


def relu_backward(gradient: Array, result: Array) -> Array:
    """Zero ``gradient`` where ``result`` is not positive, in place, and return its sum over rows.

    Shapes: ``[b, n]``, both; the sum ``[n]``, rows added first to last.
    """
    loop = _RELU_BACKWARD[gradient.dtype] if kernels.loops_compiled and gradient.flags.c_contiguous else None
    if loop is not None and result.dtype is gradient.dtype and result.flags.c_contiguous and len(gradient):
        total = np.empty(gradient.shape[1], gradient.dtype)
        loop(gradient, result, total)
        return total
    np.multiply(gradient, result > 0, out=gradient)
    return sum_columns(gradient)


def shift_rows(logits: Array, labels: Array) -> tuple[Array, Array]:
    """Return ``(z, chosen)``: each row less its largest element, and of each row of that the element at its label.

    Shapes: ``logits`` ``[b, c]`` with few classes, ``labels`` ``[b]``, int64; results ``[b, c]``, C order, and ``[b]``.

    Raises: ValueError for a label outside of 0..c-1.
    """
    loop = _SHIFT_ROWS[logits.dtype] if kernels.loops_compiled and logits.flags.c_contiguous else None
    if loop is not None and logits.shape[1]:
        z, chosen = np.empty(logits.shape, logits.dtype), np.empty(len(logits), logits.dtype)
        if loop(logits, labels, z, chosen) >= 0:
            refuse_labels(labels, logits.shape[1])
        return z, chosen
    refuse_labels(labels, logits.shape[1])
    z = np.subtract(logits, np.maximum.reduce(logits, axis=1, keepdims=True), order="C")
    z += 0  # the sign of a largest element that is zero is not defined
    return z, z[np.arange(len(z)), labels]


def refuse_labels(labels: Array, classes: int) -> None:
    """Do nothing if all of ``labels``, of any shape, are classes.

    Raises: ValueError that names one that is not.
    """
    # Seen as unsigned, a negative label is a very large one.
    if labels.size and np.maximum.reduce(labels.view(_UNSIGNED[labels.itemsize]), axis=None) >= classes:
        wrong = labels[(labels < 0) | (labels >= classes)].reshape(-1)[0]
        raise ValueError(f"label {wrong} is not one of the {classes} classes 0..{classes - 1}")


def sum_rows(values: Array) -> Array:
    """Return the sum of each row of ``values``, shape ``[b, c]``, from left to right."""
    loop = _SUM_ROWS[values.dtype] if kernels.loops_compiled and values.flags.c_contiguous else None
    if loop is not None and values.shape[1]:
        sums = np.empty(len(values), values.dtype)
        loop(values, sums)
        return sums
    total: Array = values[:, 0].copy() if values.shape[1] else np.zeros(len(values), values.dtype)
    for column in range(1, values.shape[1]):
        total += values[:, column]
    return total


def scale_rows_and_subtract(values: Array, weights: Array, sums: Array, labels: Array) -> None:
    """Multiply row i of ``values`` by ``weights[i] / sums[i]``, then subtract ``weights[i]`` at ``labels[i]``."""
    loop = _SCALE_ROWS[values.dtype] if kernels.loops_compiled and values.flags.c_contiguous else None
    if loop is not None and weights.dtype is values.dtype and weights.flags.c_contiguous:
        loop(values, weights, sums, labels)
        return
    values *= (weights / sums)[:, None]
    values[np.arange(len(values)), labels] -= weights


def _add_bias_and_relu_loop(z, bias):  # type: ignore[no-untyped-def]
    zero = z.dtype.type(0)
    for i in range(z.shape[0]):
        for j in range(z.shape[1]):
            value = z[i, j] + bias[j]
            z[i, j] = zero if value <= zero else value


def _add_bias_loop(z, bias):  # type: ignore[no-untyped-def]
    for i in range(z.shape[0]):
        for j in range(z.shape[1]):
            z[i, j] += bias[j]


def _sum_columns_loop(values, total):  # type: ignore[no-untyped-def]
    zero = values.dtype.type(0)
    for j in range(values.shape[1]):
        total[j] = values[0, j] + zero
    for i in range(1, values.shape[0]):
        for j in range(values.shape[1]):
            total[j] += values[i, j]


def _relu_backward_loop(gradient, result, total):  # type: ignore[no-untyped-def]
    zero, one = gradient.dtype.type(0), gradient.dtype.type(1)
    for j in range(gradient.shape[1]):
        total[j] = zero
    for i in range(gradient.shape[0]):
        for j in range(gradient.shape[1]):
            value = gradient[i, j] * (one if result[i, j] > zero else zero)
            gradient[i, j] = value
            total[j] += value


def _shift_rows_loop(logits, labels, z, chosen):  # type: ignore[no-untyped-def]
    zero = logits.dtype.type(0)
    for i in range(logits.shape[0]):
        if labels[i] < 0 or labels[i] >= logits.shape[1]:
            return i
        largest = logits[i, 0]
        for j in range(1, logits.shape[1]):
            value = logits[i, j]
            # As np.maximum: a NaN wins, and stays.
            if value > largest or value != value:
                largest = value
        for j in range(logits.shape[1]):
            z[i, j] = (logits[i, j] - largest) + zero
        chosen[i] = z[i, labels[i]]
    return -1


def _sum_rows_loop(values, sums):  # type: ignore[no-untyped-def]
    for i in range(values.shape[0]):
        total = values[i, 0]
        for j in range(1, values.shape[1]):
            total += values[i, j]
        sums[i] = total


def _scale_rows_loop(values, weights, sums, labels):  # type: ignore[no-untyped-def]
    for i in range(values.shape[0]):
        scale = weights[i] / sums[i]
        for j in range(values.shape[1]):
            values[i, j] *= scale
        values[i, labels[i]] -= weights[i]


_TEMPLATE = '''"""Generated by distopt for a loop of operations; do not edit."""

from distopt.kernels import compiled, entry_point
from numba import njit, types

{functions}

_scalar = types.{dtype}
_vector = types.Array(_scalar, 1, "C", readonly=True)
_output = _scalar[::1]
_matrix = _scalar[:, ::1]
_input = types.Array(_scalar, 2, "C", readonly=True)
_labels = types.Array(types.int64, 1, "C", readonly=True)

kernel = entry_point(compiled(types.{returns}({signature}), cache={cache})({name}.py_func))
'''

_NATIVE = (np.dtype(np.float32), np.dtype(np.float64))


class _Loop(dict[np.dtype[Any], Callable[..., Any] | None]):
    """A loop, compiled for each dtype that is asked for; None for one that the machine has no arithmetic of."""

    def __init__(self, function: Callable[..., Any], signature: str, returns: str = "void") -> None:
        super().__init__()
        self._returns = returns
        self._function = function
        self._signature = signature

    def __missing__(self, dtype: np.dtype[Any]) -> Callable[..., Any] | None:
        found: Callable[..., Any] | None = None
        if dtype in _NATIVE:
            functions = kernels.functions_source(self._function)
            found = kernels.load(
                lambda cache: _TEMPLATE.format(
                    functions=functions,
                    dtype=dtype.name,
                    signature=self._signature,
                    returns=self._returns,
                    cache=cache,
                    name=self._function.__name__,
                )
            )
        self[dtype] = found
        return found


_ADD_BIAS_AND_RELU = _Loop(_add_bias_and_relu_loop, "_matrix, _vector")
_ADD_BIAS = _Loop(_add_bias_loop, "_matrix, _vector")
_SUM_COLUMNS = _Loop(_sum_columns_loop, "_input, _output")
_RELU_BACKWARD = _Loop(_relu_backward_loop, "_matrix, _input, _output")
_SHIFT_ROWS = _Loop(_shift_rows_loop, "_input, _labels, _matrix, _output", returns="int64")
_SUM_ROWS = _Loop(_sum_rows_loop, "_input, _output")
_SCALE_ROWS = _Loop(_scale_rows_loop, "_matrix, _vector, _vector, _labels")
