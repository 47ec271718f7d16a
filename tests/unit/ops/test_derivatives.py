"""First and second derivatives of every operation, against differences; and equal values with and without tapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from distopt import nn, ops
from distopt.autodiff.tape import GradientTape
from distopt.ops.dense import dense_layers
from distopt.tensor import Tensor
from distopt.types import Array
from distopt.variable import Variable

_RANDOM = np.random.default_rng(7)
A = _RANDOM.uniform(0.2, 2.0, (3, 4))
B = _RANDOM.uniform(0.2, 2.0, (3, 4))
ROW = _RANDOM.uniform(0.2, 2.0, 4)
K = _RANDOM.normal(size=(4, 2))
S = _RANDOM.normal(size=(3, 4))
P = _RANDOM.uniform(0.1, 1.0, (3, 4))
LABELS = np.array([1, 3, 0])
MANY = _RANDOM.normal(size=(2, 40))
X3 = _RANDOM.normal(size=(2, 3, 4))
SQUARE = _RANDOM.normal(size=(3, 3)) + 3 * np.eye(3)
SMALL = _RANDOM.uniform(-0.9, 0.9, (3, 4))
WITH_ZEROS = np.where(np.eye(3, 4) > 0, 0.0, S)
IMAGES = _RANDOM.normal(size=(2, 5, 4, 2))
KERNEL = _RANDOM.normal(size=(3, 2, 2, 3))

CASES: dict[str, tuple[Callable[..., Any], list[Array]]] = {
    "add": (lambda a, b: a + b, [A, ROW]),
    "add_itself": (lambda a: a + a, [A]),
    "subtract": (lambda a, b: a - b, [ROW, A]),
    "multiply": (lambda a, b: a * b, [A, ROW]),
    "divide": (lambda a, b: a / b, [ROW, A]),
    "number_divided": (lambda a: 2.0 / a, [A]),
    "negative": (lambda a: -a, [A]),
    "power": (lambda a: a**3, [A]),
    "power_of_tensor": (lambda a, b: a**b, [A, B]),
    "matmul": (lambda a, k: a @ k, [S, K]),
    "matmul_batch": (lambda a, k: ops.matmul(a, k), [X3, K]),
    "abs": (lambda a: abs(a), [S]),
    "exp": (ops.exp, [S]),
    "log": (ops.log, [A]),
    "square": (ops.square, [S]),
    "sqrt": (ops.sqrt, [A]),
    "maximum": (ops.maximum, [A, ROW]),
    "minimum": (ops.minimum, [A, ROW]),
    "clip": (lambda a: ops.clip_by_value(a, 0.5, 1.5), [A]),
    "relu": (ops.relu, [S]),
    "tanh": (ops.tanh, [S]),
    "sigmoid": (ops.sigmoid, [S]),
    "sum": (ops.reduce_sum, [S]),
    "sum_axis": (lambda a: ops.reduce_sum(a, axis=0), [S]),
    "sum_axes": (lambda a: ops.reduce_sum(a, axis=[0, 2], keepdims=True), [X3]),
    "divided_sum": (lambda a: ops.divided_sum(a, 7), [S]),
    "mean": (ops.reduce_mean, [S]),
    "mean_axis": (lambda a: ops.reduce_mean(a, axis=-1), [S]),
    "max": (ops.reduce_max, [S]),
    "max_axis": (lambda a: ops.reduce_max(a, axis=1), [S]),
    "min_axis": (lambda a: ops.reduce_min(a, axis=0, keepdims=True), [S]),
    "softmax": (ops.softmax, [S]),
    "log_softmax": (lambda a: ops.log_softmax(a, axis=0), [S]),
    "cast": (lambda a: ops.cast(ops.cast(a, np.float64), np.float64), [S]),
    "reshape": (lambda a: ops.reshape(a, (2, -1)), [S]),
    "transpose": (lambda a: ops.transpose(a, (2, 0, 1)), [X3]),
    "concat": (lambda a, b: ops.concat([a, b, a], axis=1), [A, B]),
    "stack": (lambda a, b: ops.stack([a, b], axis=-1), [A, B]),
    "where": (lambda a, b: ops.where(A > 1.0, a, b), [S, ROW]),
    "getitem": (lambda a: a[1:, ::2], [S]),
    "getitem_array": (lambda a: a[np.array([0, 2, 0])], [S]),
    "getitem_new_axis": (lambda a: a[..., None, 1], [S]),
    "gather": (lambda a: ops.gather(a * 1.0, [[0, 2], [0, 1]]), [S]),
    "gather_axis": (lambda a: ops.gather(a, [[3, 1, 3]], axis=1), [S]),
    "dense": (lambda x, k, b: ops.dense(x, k, b), [S, K, K[0]]),
    "dense_without_bias": (lambda x, k: ops.dense(x, k), [S, K]),
    "dense_relu": (lambda x, k, b: ops.dense(x, k, b, "relu"), [S, K, K[0]]),
    "dense_tanh": (lambda x, k, b: ops.dense(x, k, b, "tanh"), [S, K, K[0]]),
    "dense_sigmoid": (lambda x, k, b: ops.dense(x, k, b, "sigmoid"), [S, K, K[0]]),
    "dense_three_axes": (lambda x, k, b: ops.dense(x, k, b, "tanh"), [X3, K, K[0]]),
    "dense_layers": (
        lambda x, k, b, other, last: dense_layers(x, [k, b, other, None, last, None], ("relu", "tanh", "linear")),
        [S, K, K[0], K.T, K],
    ),
    "dense_layers_three_axes": (
        lambda x, k, other, b: dense_layers(x, [k, None, other, b], ("sigmoid", "relu")),
        [X3, K, K.T, S[0]],
    ),
    "dense_layers_first_kernel_fixed": (
        lambda b, k: dense_layers(S.astype(b.dtype), [K.astype(b.dtype), b, k, None], ("tanh", "relu")),
        [K[0], K.T],
    ),
    "cross_entropy_labels": (lambda z: ops.softmax_cross_entropy(LABELS, z), [S]),
    "cross_entropy_labels_three_axes": (lambda z: ops.softmax_cross_entropy(np.array([[1, 3, 0], [2, 2, 1]]), z), [X3]),
    "cross_entropy_many_classes": (lambda z: ops.softmax_cross_entropy(np.array([39, 0]), z), [MANY]),
    "cross_entropy_probabilities": (lambda p, z: ops.softmax_cross_entropy(p, z), [P, S]),
    "add_by_name": (ops.add, [A, ROW]),
    "subtract_by_name": (ops.subtract, [ROW, A]),
    "multiply_by_name": (ops.multiply, [A, ROW]),
    "divide_by_name": (ops.divide, [ROW, A]),
    "divide_no_nan": (ops.divide_no_nan, [A, B]),
    "multiply_no_nan": (ops.multiply_no_nan, [A, B]),
    "floormod": (lambda a: ops.floormod(a, 0.37), [A]),
    "pow": (ops.pow, [A, ROW]),
    "squared_difference": (ops.squared_difference, [A, ROW]),
    "atan2": (ops.atan2, [S, A]),
    "add_n": (lambda a, b: ops.add_n([a, b, a]), [A, B]),
    "scalar_mul": (lambda a: ops.scalar_mul(3.0, a), [A]),
    "negative_by_name": (ops.negative, [S]),
    "log1p": (ops.log1p, [A]),
    "expm1": (ops.expm1, [S]),
    "sin": (ops.sin, [S]),
    "cos": (ops.cos, [S]),
    "tan": (ops.tan, [SMALL]),
    "asin": (ops.asin, [SMALL]),
    "acos": (ops.acos, [SMALL]),
    "atan": (ops.atan, [S]),
    "sinh": (ops.sinh, [S]),
    "cosh": (ops.cosh, [S]),
    "asinh": (ops.asinh, [S]),
    "acosh": (lambda a: ops.acosh(a + 1.0), [A]),
    "atanh": (ops.atanh, [SMALL]),
    "reciprocal": (ops.reciprocal, [A]),
    "rsqrt": (ops.rsqrt, [A]),
    "softplus": (ops.softplus, [S]),
    "log_sigmoid": (ops.log_sigmoid, [S]),
    "softsign": (ops.softsign, [S]),
    "relu6": (lambda a: ops.relu6(4 * a), [S]),
    "leaky_relu": (lambda a: ops.leaky_relu(a, 0.3), [S]),
    "elu": (ops.elu, [S]),
    "selu": (ops.selu, [S]),
    "silu": (ops.silu, [S]),
    "sigmoid_cross_entropy": (ops.sigmoid_cross_entropy, [P, S]),
    "prod": (ops.reduce_prod, [S]),
    "prod_axis": (lambda a: ops.reduce_prod(a, axis=0), [WITH_ZEROS]),
    "prod_axes": (lambda a: ops.reduce_prod(a, axis=[0, -1], keepdims=True), [X3]),
    "variance": (lambda a: ops.reduce_variance(a, axis=1), [S]),
    "std": (ops.reduce_std, [S]),
    "euclidean_norm": (lambda a: ops.reduce_euclidean_norm(a, axis=1), [S]),
    "logsumexp": (ops.reduce_logsumexp, [S]),
    "logsumexp_axis": (lambda a: ops.reduce_logsumexp(a, axis=[0, 2], keepdims=True), [X3]),
    "cumsum": (ops.cumsum, [S]),
    "cumsum_exclusive": (lambda a: ops.cumsum(a, axis=-1, exclusive=True, reverse=True), [S]),
    "identity": (ops.identity, [S]),
    "squeeze": (lambda a: ops.squeeze(a[None, :, :, None], -1), [S]),
    "expand_dims": (lambda a: ops.expand_dims(a, -2), [S]),
    "broadcast_to": (lambda a: ops.broadcast_to(a, [3, 4]), [ROW]),
    "tile": (lambda a: ops.tile(a, [2, 3]), [S]),
    "repeat": (lambda a: ops.repeat(a, 2, axis=1), [S]),
    "split": (lambda a: ops.split(a, [1, -1], axis=1)[1], [S]),
    "unstack": (lambda a: ops.stack(ops.unstack(a, axis=1)[::-1]), [S]),
    "slice": (lambda a: ops.slice(a, [1, 0], [-1, 2]), [S]),
    "reverse": (lambda a: ops.reverse(a, [0]), [S]),
    "pad": (lambda a: ops.pad(a, [[1, 0], [0, 2]], constant_values=3), [S]),
    "boolean_mask": (lambda a: ops.boolean_mask(a, A > 1.0), [S]),
    "clip_by_norm_above": (lambda a: ops.clip_by_norm(a, 0.7), [S]),
    "clip_by_norm_below": (lambda a: ops.clip_by_norm(a, 70.0), [S]),
    "clip_by_norm_axes": (lambda a: ops.clip_by_norm(a, 1.1, axes=1), [S]),
    "clip_by_global_norm": (lambda a, b: ops.concat(ops.clip_by_global_norm([a, b], 1.3)[0], 0), [A, S]),
    "global_norm": (lambda a, b: ops.global_norm([a, None, b]), [A, ROW]),
    "matmul_transposed": (lambda a, b: ops.matmul(a, b, transpose_a=True, transpose_b=True), [S, K[:, :1] @ S[:1, :3]]),
    "matvec": (ops.matvec, [S, ROW]),
    "tensordot": (lambda a, k: ops.tensordot(a, k, [[2], [0]]), [X3, K]),
    "einsum": (lambda a, k: ops.einsum("bij,jk->bik", a, k), [X3, K]),
    "trace": (ops.trace, [SQUARE]),
    "diag": (ops.diag, [S]),
    "diag_part": (ops.diag_part, [X3]),
    "inv": (ops.inv, [SQUARE]),
    "solve": (ops.solve, [SQUARE, S]),
    "det": (ops.det, [SQUARE]),
    "norm": (lambda a: ops.norm(a, axis=1), [S]),
    "norm_1": (lambda a: ops.norm(a, 1, axis=0, keepdims=True), [S]),
    "norm_inf": (lambda a: ops.norm(a, np.inf), [S]),
    "l2_normalize": (lambda a: ops.l2_normalize(a, axis=-1), [S]),
    "conv2d": (ops.conv2d, [IMAGES, KERNEL]),
    "conv2d_same": (lambda x, k: ops.conv2d(x, k, strides=2, padding="SAME"), [IMAGES, KERNEL]),
    "conv2d_dilated": (lambda x, k: ops.conv2d(x, k, strides=(1, 2), dilations=(2, 1)), [IMAGES, KERNEL]),
    "max_pool": (lambda x: ops.max_pool2d(x, 2), [IMAGES]),
    "max_pool_overlapping": (lambda x: ops.max_pool2d(x, 3, 2, "SAME"), [IMAGES]),
    "avg_pool": (lambda x: ops.avg_pool2d(x, (2, 3), 1), [IMAGES]),
    "avg_pool_same": (lambda x: ops.avg_pool2d(x, 3, 2, "SAME"), [IMAGES]),
    "moments": (lambda a: ops.concat(nn.moments(a, [0]), 0), [S]),
    "bias_add": (nn.bias_add, [S, ROW]),
    "l2_loss": (nn.l2_loss, [S]),
    "cross_entropy_of_transposed": (lambda z: ops.softmax_cross_entropy(LABELS, ops.transpose(z)), [S.T.copy()]),
}
case = pytest.mark.parametrize("name", CASES)


def _weigh(result: Any) -> Tensor:
    """Return a scalar on which every element of ``result`` has another, nonlinear influence."""
    weights = np.cos(np.arange(result.size, dtype=np.float64)).reshape(result.shape)
    return ops.reduce_sum(ops.square(result) * weights + result * (weights + 2.0))


def _gradients(name: str, values: list[Array], persistent: bool) -> list[Array]:
    function, _ = CASES[name]
    variables = [Variable(value) for value in values]
    with GradientTape(persistent=persistent) as tape:
        loss = _weigh(function(*variables))
    return [np.asarray(gradient) for gradient in tape.gradient(loss, variables)]


def _differences(function: Callable[[list[Array]], float], values: list[Array], step: float = 1e-5) -> list[Array]:
    results = []
    for position, value in enumerate(values):
        slope = np.zeros_like(value)
        for index in np.ndindex(value.shape):
            moved = [v.copy() for v in values]
            moved[position][index] = value[index] + step
            above = function(moved)
            moved[position][index] = value[index] - step
            slope[index] = (above - function(moved)) / (2 * step)
        results.append(slope)
    return results


@case
def test_gradient_of_operation_equals_differences(name: str) -> None:
    function, values = CASES[name]
    expected = _differences(lambda moved: float(_weigh(function(*map(Tensor, moved)))), values)
    for gradient, wanted in zip(_gradients(name, values, persistent=False), expected, strict=True):
        np.testing.assert_allclose(gradient, wanted, rtol=1e-5, atol=1e-7)
        assert gradient.dtype == np.float64


@case
def test_gradient_of_operation_on_a_persistent_tape_is_the_same(name: str) -> None:
    _, values = CASES[name]
    for plain, general in zip(_gradients(name, values, False), _gradients(name, values, True), strict=True):
        np.testing.assert_allclose(plain, general, rtol=1e-12, atol=1e-13)


@case
def test_second_derivative_of_operation_equals_differences(name: str) -> None:
    function, values = CASES[name]
    variables = [Variable(value) for value in values]
    with GradientTape() as outer:
        with GradientTape() as inner:
            loss = _weigh(function(*variables))
        size = sum(_weigh(gradient) for gradient in inner.gradient(loss, variables))

    def size_at(moved: list[Array]) -> float:
        return sum(float(_weigh(Tensor(gradient))) for gradient in _gradients(name, moved, persistent=False))

    expected = _differences(size_at, values)
    seconds = outer.gradient(size, variables, unconnected_gradients="zero")
    for second, wanted in zip(seconds, expected, strict=True):
        np.testing.assert_allclose(np.asarray(second), wanted, rtol=1e-4, atol=1e-5)


@case
def test_operation_in_float32_stays_float32(name: str) -> None:
    function, values = CASES[name]
    if name in ("cast", "where"):
        pytest.skip("casts on purpose, or compares with float64 data")
    variables = [Variable(value.astype(np.float32)) for value in values]
    assert function(*variables).dtype == np.float32
    for persistent in (False, True):
        with GradientTape(persistent=persistent) as tape:
            result = function(*variables)
            loss = ops.reduce_sum(result) / 3
        assert result.dtype == np.float32
        assert loss.dtype == np.float32
        for gradient in tape.gradient(loss, variables):
            assert np.asarray(gradient).dtype == np.float32


@case
def test_operation_has_the_same_bits_at_every_alignment(name: str) -> None:
    function, values = CASES[name]

    def bits(offset: int) -> list[bytes]:
        placed = []
        for value in values:
            buffer = np.zeros(value.size + 16, np.float32)
            start = -(buffer.ctypes.data // 4) % 16 + offset
            view = (
                buffer[start : start + value.size].reshape(value.shape) if start + value.size <= buffer.size else None
            )
            if view is None:
                view = np.zeros(value.size + 32, np.float32)[offset : offset + value.size].reshape(value.shape)
            view[...] = value
            placed.append(view)
        tensors = [Tensor(view) for view in placed]
        with GradientTape() as tape:
            tape.watch(tensors)
            result = function(*tensors)
            loss = ops.reduce_sum(result * 1.5)
        gradients = tape.gradient(loss, tensors)
        return [result.numpy().tobytes(), loss.numpy().tobytes(), *(g.numpy().tobytes() for g in gradients)]

    assert bits(0) == bits(1) == bits(3) == bits(7)
