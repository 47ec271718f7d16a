"""The operations by TensorFlow's names: what they return, held against NumPy, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from distopt import ops
from distopt.autodiff.tape import GradientTape
from distopt.indexed_slices import IndexedSlices
from distopt.tensor import Tensor
from distopt.types import Array
from distopt.variable import Variable

_RANDOM = np.random.default_rng(11)
X = _RANDOM.normal(size=(3, 4)).astype(np.float32)
Y = _RANDOM.uniform(0.5, 2.0, (3, 4)).astype(np.float32)
CUBE = _RANDOM.normal(size=(2, 3, 4)).astype(np.float32)
FLAGS = X > 0

SAME_AS_NUMPY: dict[str, tuple[Any, Any]] = {
    "add": (ops.add(X, 2), X + 2),
    "subtract_list": (ops.subtract([1.0, 2.0, 3.0, 4.0], X), np.float32([1, 2, 3, 4]) - X),
    "divide_integers": (ops.divide(7, 2), np.float64(3.5)),
    "floordiv": (ops.floordiv(X, Y), X // Y),
    "floormod": (ops.floormod(X, Y), X % Y),
    "pow": (ops.pow(Y, X), Y**X),
    "atan2": (ops.atan2(X, Y), np.arctan2(X, Y)),
    "not_equal": (ops.not_equal(X, X), X != X),
    "less": (ops.less(X, 0), X < 0),
    "less_equal": (ops.less_equal(X, X), X <= X),
    "greater": (ops.greater(X, 0), X > 0),
    "greater_equal": (ops.greater_equal(0, X), X <= 0),
    "logical_and": (ops.logical_and(FLAGS, True), FLAGS),
    "logical_or": (ops.logical_or(FLAGS, ~FLAGS), np.ones_like(FLAGS)),
    "logical_xor": (ops.logical_xor(FLAGS, True), ~FLAGS),
    "logical_not": (ops.logical_not(FLAGS), ~FLAGS),
    "floor": (ops.floor(X), np.floor(X)),
    "ceil": (ops.ceil(X), np.ceil(X)),
    "round_half_to_even": (ops.round([0.5, 1.5, 2.5, -0.5]), np.float32([0, 2, 2, -0.0])),
    "is_nan": (ops.is_nan([1.0, np.nan]), np.array([False, True])),
    "is_inf": (ops.is_inf([1.0, -np.inf]), np.array([False, True])),
    "is_finite": (ops.is_finite([1.0, np.nan, np.inf]), np.array([True, False, False])),
    "reduce_prod": (ops.reduce_prod(X, 1), np.prod(X, 1)),
    "reduce_prod_of_integers": (ops.reduce_prod(np.int32([2, 3])), np.int32(6)),
    "reduce_any": (ops.reduce_any(FLAGS, axis=0), FLAGS.any(0)),
    "reduce_all": (ops.reduce_all(FLAGS, axis=[0, 1], keepdims=True), FLAGS.all(keepdims=True)),
    "cumsum_reverse": (ops.cumsum(X, 1, reverse=True), np.cumsum(X[:, ::-1], 1)[:, ::-1]),
    "cumsum_of_integers": (ops.cumsum(np.int8([100, 27])), np.int8([100, 127])),
    "argmin": (ops.argmin(X, 1), X.argmin(1)),
    "argmax_as_int32": (ops.argmax(X, -1, np.int32), X.argmax(1).astype(np.int32)),
    "ones": (ops.ones((2, 1)), np.ones((2, 1), np.float32)),
    "zeros_of_tensor": (ops.zeros(ops.shape(X), np.int64), np.zeros((3, 4), np.int64)),
    "zeros_scalar": (ops.zeros([], np.int64), np.zeros((), np.int64)),
    "fill": (ops.fill([2, 2], 7), np.full((2, 2), 7, np.int32)),
    "eye": (ops.eye(2, 3), np.eye(2, 3, dtype=np.float32)),
    "range": (ops.range(3), np.arange(3, dtype=np.int32)),
    "range_of_floats": (ops.range(1.0, 2.0, 0.5), np.float32([1, 1.5])),
    "range_down": (ops.range(3, 0, -1, np.int64), np.int64([3, 2, 1])),
    "linspace": (ops.linspace(-1.0, 1.0, 5), np.linspace(-1, 1, 5, dtype=np.float32)),
    "one_hot_first_axis": (ops.one_hot([0, 2], 3, 5, 1, axis=0, dtype=np.int32), np.int32([[5, 1], [1, 1], [1, 5]])),
    "expand_dims_last": (ops.expand_dims(X, -1), X[:, :, None]),
    "squeeze": (ops.squeeze(X[None, :, :, None]), X),
    "squeeze_axis": (ops.squeeze(X[None, :, :, None], [0]), X[:, :, None]),
    "tile": (ops.tile(X, [2, 3]), np.tile(X, (2, 3))),
    "repeat": (ops.repeat(X, 3, -1), np.repeat(X, 3, -1)),
    "repeat_flat": (ops.repeat(X, 2), np.repeat(X, 2)),
    "broadcast_to": (ops.broadcast_to(X[0], (3, 4)), np.broadcast_to(X[0], (3, 4))),
    "reverse": (ops.reverse(CUBE, [0, -1]), CUBE[::-1, :, ::-1]),
    "pad": (ops.pad(X, [[0, 1], [2, 0]], constant_values=9), np.pad(X, [(0, 1), (2, 0)], constant_values=9)),
    "boolean_mask": (ops.boolean_mask(X, FLAGS), X[FLAGS]),
    "boolean_mask_rows": (ops.boolean_mask(CUBE, [True, False, True], axis=1), CUBE[:, [0, 2]]),
    "slice": (ops.slice(CUBE, [0, 1, 2], [-1, 2, 1]), CUBE[:, 1:3, 2:3]),
    "shape": (ops.shape(CUBE), np.int32([2, 3, 4])),
    "size": (ops.size(CUBE, np.int64), np.int64(24)),
    "rank": (ops.rank(CUBE), np.int32(3)),
    "where_indices": (ops.where(FLAGS), np.argwhere(FLAGS)),
    "trace": (ops.trace(CUBE[:, :, :3]), np.trace(CUBE[:, :, :3], axis1=1, axis2=2)),
    "diag_part": (ops.diag_part(CUBE), np.diagonal(CUBE, 0, 1, 2)),
    "diag": (ops.diag(X)[1], np.diag(X[1])),
    "matvec": (ops.matvec(CUBE, X[0]), CUBE @ X[0]),
    "matmul_transposed": (ops.matmul(X, Y, transpose_b=True), X @ Y.T),
    "matrix_transpose": (ops.matrix_transpose(CUBE), CUBE.swapaxes(1, 2)),
    "tensordot": (ops.tensordot(CUBE, Y, [[1, 2], [0, 1]]), np.tensordot(CUBE, Y, 2)),
    "einsum": (ops.einsum("bij,kj->bik", CUBE, Y), np.einsum("bij,kj->bik", CUBE, Y)),
    "norm_inf": (ops.norm(X, np.inf, axis=0), np.abs(X).max(0)),
    "norm_matrix": (ops.norm(X), np.linalg.norm(X)),
    "variance": (ops.reduce_variance(X, 0), X.var(0)),
    "std": (ops.reduce_std(X), X.std()),
    "divide_no_nan": (ops.divide_no_nan([1.0, 0.0], [0.0, 0.0]), np.float32([0, 0])),
    "multiply_no_nan": (ops.multiply_no_nan([np.inf, np.nan], [0.0, 0.0]), np.float32([0, 0])),
    "relu6": (ops.relu6([-1.0, 3.0, 7.0]), np.float32([0, 3, 6])),
    "leaky_relu": (ops.leaky_relu([-1.0, 2.0]), np.float32([-0.2, 2])),
    "softplus": (ops.softplus([-1000.0, 0.0, 1000.0]), np.float32([0, np.log(2), 1000])),
    "log_sigmoid": (ops.log_sigmoid([-1000.0, 0.0]), np.float32([-1000, -np.log(2)])),
    "logsumexp_of_nothing": (ops.reduce_logsumexp([-np.inf, -np.inf]), np.float32(-np.inf)),
    "stack_of_unstack": (ops.stack(ops.unstack(CUBE, axis=2), 2), CUBE),
    "concat_of_split": (ops.concat(ops.split(CUBE, 3, axis=1), 1), CUBE),
    "clip_by_norm_axes": (
        ops.clip_by_norm(X, 1.0, axes=1),
        X * np.minimum(1, 1 / np.linalg.norm(X, axis=1, keepdims=True)),
    ),
}


@pytest.mark.parametrize("name", SAME_AS_NUMPY)
def test_operation_returns_what_numpy_does(name: str) -> None:
    found, expected = SAME_AS_NUMPY[name]
    assert isinstance(found, Tensor)
    assert found.dtype == np.asarray(expected).dtype
    assert found.shape == np.asarray(expected).shape
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.fill([2], [1.0, 2.0]), "scalar"),
        (lambda: ops.range(0, 3, 0), "zero"),
        (lambda: ops.squeeze(X, 0), "length 1"),
        (lambda: ops.expand_dims(X, 4), "no place"),
        (lambda: ops.tile(X, [2]), "2 multiples, not 1"),
        (lambda: ops.split(X, 3, axis=1), "equal parts"),
        (lambda: ops.split(X, [1, 1], axis=1), r"parts of \[1, 1\]"),
        (lambda: ops.unstack(X, 5), "3 slices, not 5"),
        (lambda: ops.slice(X, [0, 2], [1, 3]), "reaches beyond"),
        (lambda: ops.pad(X, [[1, 1]]), "do not fit"),
        (lambda: ops.pad(X, [[1, 1], [0, 0]], "REFLECT"), "CONSTANT"),
        (lambda: ops.boolean_mask(X, [True, False]), "does not fit"),
        (lambda: ops.where(FLAGS, X), "both x and y"),
        (lambda: ops.add_n([X, X[0]]), "one shape and dtype"),
        (lambda: ops.add_n([]), "nothing"),
        (lambda: ops.scalar_mul(X, X), "scalar"),
        (lambda: ops.norm(X, "fro"), "offered with ord"),
        (lambda: ops.norm(X, 2, axis=(0, 1)), "offered with ord"),
        (lambda: ops.gather(X, [0], batch_dims=1), "batch_dims"),
        (lambda: ops.clip_by_norm(IndexedSlices(X, [0, 1, 2], (3, 4)), 1.0, axes=0), "along axes"),
        (lambda: ops.conv2d(CUBE, CUBE), "do not fit a kernel"),
        (lambda: ops.max_pool2d(X, 2), "images are"),
        (lambda: ops.max_pool2d(X[None, :, :, None], 5), "does not fit into images"),
        (lambda: ops.max_pool2d(X[None, :, :, None], 2, padding="FULL"), "VALID or SAME"),
        (lambda: ops.max_pool2d(X[None, :, :, None], (2, 2, 2)), "positive number or two"),
        (lambda: ops.max_pool2d(X[None, :, :, None], 2, 0), "positive number or two"),
    ],
)
def test_operation_with_what_it_cannot_do_is_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_one_hot_of_numbers_that_are_no_integers_is_refused() -> None:
    with pytest.raises(TypeError, match="integers"):
        ops.one_hot([0.5], 2)


def test_operation_of_a_list_and_a_tensor_keeps_the_dtype_of_the_tensor() -> None:
    for dtype in (np.float16, np.float32, np.float64, ml_dtypes.bfloat16):
        x = Tensor(np.ones(2, dtype))
        for other in (2, 0.5, np.float64(0.5), [1.0, 2.0]):
            assert ops.add(x, other).dtype == dtype
            assert ops.maximum(other, x).dtype == dtype
    assert ops.add(1.0, 2.0).dtype == np.float32


def test_operations_take_and_ignore_a_name() -> None:
    assert float(ops.reduce_sum(ops.add(ops.constant([1.0], name="one"), 1.0, name="sum"), name="total")) == 2.0


def test_identity_and_add_n_return_values_of_their_own() -> None:
    variable = Variable([1.0, 2.0])
    copies = [ops.identity(variable), ops.add_n([variable])]
    variable.assign([5.0, 5.0])
    for copy in copies:
        np.testing.assert_array_equal(copy.numpy(), [1.0, 2.0])


def test_gradient_at_the_edges_is_that_of_the_reference() -> None:
    x = Variable([0.0, 6.0, -0.0])
    with GradientTape(persistent=True) as tape:
        six, leaky = ops.relu6(x), ops.leaky_relu(x)
        safe = ops.divide_no_nan(x, x)
        product = ops.reduce_prod(x)
        direction = ops.sign(x)
    assert tape.gradient(six, x).numpy().tolist() == [0, 0, 0]
    np.testing.assert_allclose(tape.gradient(leaky, x).numpy(), [0.2, 1.0, 0.2], rtol=1e-6)
    assert tape.gradient(safe, x).numpy().tolist() == [0, 0, 0]
    assert tape.gradient(direction, x).numpy().tolist() == [0, 0, 0]
    assert tape.gradient(product, x).numpy().tolist() == [0, 0, 0]


def test_clip_by_value_and_norm_of_row_sparse_gradients_take_the_rows_as_stored() -> None:
    rows = IndexedSlices(np.float32([[3.0], [4.0]]), [1, 1], (2, 1))
    assert ops.clip_by_value(rows, -3.5, 3.5).values.numpy().tolist() == [[3.0], [3.5]]
    np.testing.assert_allclose(ops.clip_by_norm(rows, 1.0).values.numpy(), [[0.6], [0.8]], rtol=1e-6)
    (clipped, _), norm = ops.clip_by_global_norm([rows, None], 1.0)
    assert float(norm) == 5.0
    np.testing.assert_allclose(clipped.values.numpy(), [[0.6], [0.8]], rtol=1e-6)
    assert clipped.indices.tolist() == [1, 1]


def test_clip_by_global_norm_has_the_bits_of_the_optimizers_clip() -> None:
    from distopt import clipping

    gradients = [_RANDOM.normal(size=shape).astype(np.float32) for shape in ((700,), (3, 5), ())]
    found, norm = ops.clip_by_global_norm(gradients, 0.3)
    expected, length = clipping.clip_by_global_norm(gradients, 0.3)
    assert norm.numpy() == length
    for tensor, array in zip(found, expected, strict=True):
        assert tensor.numpy().tobytes() == np.asarray(array).tobytes()


@pytest.mark.parametrize("use_norm", [None, 10.0, np.inf, np.nan])
def test_clip_by_global_norm_with_a_norm_given_uses_it(use_norm: float | None) -> None:
    (found,), norm = ops.clip_by_global_norm([Tensor(np.float32([3.0, 4.0]))], 2.0, use_norm)
    length = 5.0 if use_norm is None else use_norm
    expected = np.float32([3, 4]) * (2 / length if np.isfinite(length) else np.nan)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)
    np.testing.assert_array_equal(norm.numpy(), np.float32(length))


# ---------------------------------------------------------------- images


def _convolution(x: Array, kernel: Array, strides: tuple[int, int], same: bool) -> Array:
    """The definition, in loops."""
    height, width = kernel.shape[:2]
    if same:
        spare = [
            max((-(-n // s) - 1) * s + k - n, 0) for n, s, k in zip(x.shape[1:3], strides, (height, width), strict=True)
        ]
        x = np.pad(x, [(0, 0), *((p // 2, p - p // 2) for p in spare), (0, 0)])
    down = range(0, x.shape[1] - height + 1, strides[0])
    across = range(0, x.shape[2] - width + 1, strides[1])
    return np.array(
        [[[np.tensordot(one[i : i + height, j : j + width], kernel, 3) for j in across] for i in down] for one in x]
    )


@pytest.mark.parametrize("padding", ["VALID", "same"])
@pytest.mark.parametrize("strides", [1, (2, 1), [1, 2, 3, 1]])
def test_conv2d_is_its_definition(padding: str, strides: Any) -> None:
    x, kernel = _RANDOM.normal(size=(2, 6, 7, 3)), _RANDOM.normal(size=(2, 3, 3, 4))
    steps = {1: (1, 1), 2: (2, 1), 4: (2, 3)}[np.size(strides)]
    expected = _convolution(x, kernel, steps, padding == "same")
    np.testing.assert_allclose(ops.conv2d(x, kernel, strides, padding).numpy(), expected, rtol=1e-12)


def test_conv2d_of_a_dilated_kernel_is_that_of_the_kernel_with_holes() -> None:
    x, kernel = _RANDOM.normal(size=(2, 6, 7, 3)), _RANDOM.normal(size=(2, 2, 3, 4))
    holes = np.zeros((3, 4, 3, 4))
    holes[::2, ::3] = kernel
    for padding in ("VALID", "SAME"):
        found = ops.conv2d(x, kernel, padding=padding, dilations=(2, 3)).numpy()
        np.testing.assert_allclose(found, ops.conv2d(x, holes, padding=padding).numpy(), rtol=1e-12)


def test_pooling_takes_each_window_and_leaves_padding_out() -> None:
    image = -np.arange(1.0, 10.0).reshape(1, 3, 3, 1)
    assert ops.max_pool2d(image, 2).numpy().ravel().tolist() == [-1]
    assert ops.max_pool2d(image, 2, 1).numpy().ravel().tolist() == [-1, -2, -4, -5]
    assert ops.max_pool2d(image, 2, padding="SAME").numpy().ravel().tolist() == [-1, -3, -7, -9]
    assert ops.avg_pool2d(image, 2, padding="SAME").numpy().ravel().tolist() == [-3, -4.5, -7.5, -9]


def test_max_pool_gives_the_gradient_of_equal_elements_to_the_first() -> None:
    x = Variable(np.ones((1, 2, 2, 1), np.float32))
    for persistent in (False, True):
        with GradientTape(persistent=persistent) as tape:
            y = ops.max_pool2d(x, 2)
        assert tape.gradient(y, x).numpy().ravel().tolist() == [1, 0, 0, 0]
