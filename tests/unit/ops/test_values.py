"""What operations return, and what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from distopt import ops
from distopt.autodiff.tape import GradientTape
from distopt.tensor import Tensor
from distopt.variable import Variable


@pytest.mark.parametrize("activation", [None, "linear", "relu", "tanh", "sigmoid"])
def test_dense_is_the_formula(activation: str | None) -> None:
    rng = np.random.default_rng(3)
    x, kernel, bias = (rng.normal(size=shape).astype(np.float32) for shape in ((5, 3), (3, 2), (2,)))
    z = x.astype(np.float64) @ kernel + bias
    expected = {"relu": np.maximum(z, 0), "tanh": np.tanh(z), "sigmoid": 1 / (1 + np.exp(-z))}.get(str(activation), z)
    result = ops.dense(x, kernel, bias, activation)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_dense_with_an_unknown_activation_is_refused() -> None:
    with pytest.raises(ValueError, match="linear, relu, sigmoid, tanh"):
        ops.dense(np.ones((1, 1)), np.ones((1, 1)), activation="swish")


def test_dense_does_not_write_into_its_arguments() -> None:
    x, w, b = (Variable(np.full(shape, -2.0, np.float32)) for shape in ((2, 3), (3, 2), (2,)))
    with GradientTape() as tape:
        y = ops.dense(x, w, b, "relu")
        z = ops.dense(y, w[:2], b, "tanh") + y
    tape.gradient(z, [x, w, b, y])
    for variable in (x, w, b):
        np.testing.assert_array_equal(variable.numpy(), np.full(variable.shape, -2.0))


def test_gradients_used_twice_are_not_overwritten() -> None:
    x, w = Variable(np.float32([[1.0, -2.0]])), Variable(np.float32([[1.0, 2.0], [3.0, 4.0]]))
    weight = np.float32([[10.0, 20.0]])
    with GradientTape() as tape:
        a = ops.dense(x, w)
        total = a + ops.dense(a, w, None, "relu") + a
    gradients = tape.gradient(total, [a, x], output_gradients=weight)
    # d total / d a = 2 I + relu'(a w) w^T, at a = [-5, -6], where a w < 0.
    np.testing.assert_array_equal(gradients[0].numpy(), 2 * weight)
    np.testing.assert_array_equal(gradients[1].numpy(), 2 * weight @ w.numpy().T)
    np.testing.assert_array_equal(weight, [[10.0, 20.0]])


def test_sigmoid_and_softmax_of_large_arguments_are_finite() -> None:
    big = np.float32([-1e4, -100.0, 0.0, 100.0, 1e4])
    np.testing.assert_allclose(ops.sigmoid(big).numpy(), [0, 0, 0.5, 1, 1], atol=1e-30)
    np.testing.assert_allclose(ops.softmax(big).numpy(), [0, 0, 0, 0, 1])
    assert np.isfinite(ops.log_softmax(big).numpy()).all()
    assert ops.sigmoid(np.float64([-700.0])).numpy()[0] > 0


@pytest.mark.parametrize("kind", ["integers", "one_hot", "tensor", "list", "column"])
def test_cross_entropy_of_large_logits_is_stable_for_every_form_of_label(kind: str) -> None:
    logits = np.float32([[1e4, 0.0, -1e4], [1.0, 2.0, 3.0]])
    integers = np.array([1, 2])
    labels: Any = {
        "integers": integers.astype(np.uint8),
        "one_hot": np.eye(3)[integers],
        "tensor": Tensor(integers),
        "list": [1, 2],
        "column": np.eye(3, dtype=np.int64)[integers],
    }[kind]
    with GradientTape() as tape:
        z = Variable(logits)
        losses = ops.softmax_cross_entropy(labels, z)
    expected = [1e4, np.log(np.exp([-2.0, -1.0, 0.0]).sum())]
    np.testing.assert_allclose(losses.numpy(), expected, rtol=1e-6)
    assert losses.dtype == np.float32
    probabilities = np.exp([-2.0, -1.0, 0.0]) / np.exp([-2.0, -1.0, 0.0]).sum()
    np.testing.assert_allclose(tape.gradient(losses, z).numpy(), [[1, -1, 0], probabilities - [0, 0, 1]], atol=1e-6)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "uint32", "int64", "uint64"])
@pytest.mark.parametrize("classes", [3, 100])
def test_cross_entropy_takes_labels_of_every_integer_dtype(dtype: str, classes: int) -> None:
    logits = np.random.default_rng(1).normal(size=(90, classes)).astype(np.float32)
    labels = np.arange(90) % classes
    expected = ops.softmax_cross_entropy(np.eye(classes)[labels], logits).numpy()
    result = ops.softmax_cross_entropy(labels.astype(dtype), logits).numpy()
    np.testing.assert_allclose(result, expected, rtol=1e-5)


@pytest.mark.parametrize("label", [3, -1])
def test_cross_entropy_with_a_label_out_of_range_is_refused(label: int) -> None:
    with pytest.raises(ValueError, match=f"label {label} is not one of the 3 classes"):
        ops.softmax_cross_entropy(np.array([0, label]), np.zeros((2, 3), np.float32))


def test_cross_entropy_of_shapes_that_do_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        ops.softmax_cross_entropy(np.array([0, 1, 2]), np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match="do not fit"):
        ops.softmax_cross_entropy(np.zeros((2, 4)), np.zeros((2, 3), np.float32))


def test_cross_entropy_of_no_examples_is_empty_and_has_a_zero_gradient() -> None:
    kernel = Variable(np.ones((4, 3), np.float32))
    with GradientTape() as tape:
        losses = ops.softmax_cross_entropy(np.zeros(0, np.int64), ops.dense(np.zeros((0, 4), np.float32), kernel))
        total = ops.reduce_sum(losses) / 8
    assert losses.shape == (0,)
    np.testing.assert_array_equal(tape.gradient(total, kernel).numpy(), np.zeros((4, 3)))


def test_cross_entropy_has_the_same_bits_with_and_without_a_tape() -> None:
    logits = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
    labels = np.arange(8) % 5
    z = Variable(logits)
    plain = ops.softmax_cross_entropy(labels, logits).numpy()
    for tapes in (GradientTape(), GradientTape(persistent=True)):
        with tapes:
            assert ops.softmax_cross_entropy(labels, z).numpy().tobytes() == plain.tobytes()


def test_gather_refuses_indices_that_are_no_rows() -> None:
    table = Variable(np.ones((3, 2), np.float32))
    with pytest.raises(IndexError):
        ops.gather(table, [3])
    with pytest.raises(IndexError, match="negative"):
        ops.gather(table, [-1])
    with pytest.raises(TypeError, match="integers"):
        ops.gather(table, [0.5])


def test_maximum_gives_the_gradient_of_equal_values_to_the_first() -> None:
    x, y = Variable([1.0, 2.0]), Variable([1.0, 3.0])
    with GradientTape(persistent=True) as tape:
        larger, smaller = ops.maximum(x, y), ops.minimum(x, y)
    assert [g.numpy().tolist() for g in tape.gradient(larger, [x, y])] == [[1.0, 0.0], [0.0, 1.0]]
    assert [g.numpy().tolist() for g in tape.gradient(smaller, [x, y])] == [[1.0, 1.0], [0.0, 0.0]]


def test_clip_by_value_passes_the_gradient_at_its_ends() -> None:
    x = Variable([-1.0, 0.0, 0.5, 1.0, 2.0])
    with GradientTape() as tape:
        y = ops.clip_by_value(x, 0.0, 1.0)
    np.testing.assert_array_equal(y.numpy(), [0.0, 0.0, 0.5, 1.0, 1.0])
    np.testing.assert_array_equal(tape.gradient(y, x).numpy(), [0.0, 1.0, 1.0, 1.0, 0.0])


def test_operations_without_gradient_return_plain_tensors() -> None:
    x = Variable([3.0, 1.0, 3.0])
    with GradientTape() as tape:
        constants = [ops.argmax(x), ops.floor(x), ops.equal(x, 3.0), ops.zeros_like(x), ops.stop_gradient(x * 2.0)]
        constants += [ops.cast(x, np.int32), ops.ones_like(x, np.float64)]
    assert [constant.dtype.name for constant in constants] == [
        "int64",
        "float32",
        "bool",
        "float32",
        "float32",
        "int32",
        "float64",
    ]
    assert tape.gradient(constants, x) is None


def test_convert_to_tensor_stacks_tensors_and_refuses_another_dtype() -> None:
    x = Variable(2.0)
    with GradientTape() as tape:
        y = ops.convert_to_tensor([x * 1.0, [3.0, 4.0][0], x * x])
    np.testing.assert_array_equal(y.numpy(), [2.0, 3.0, 4.0])
    assert float(tape.gradient(y, x)) == 5.0
    with pytest.raises(ValueError, match="cast"):
        ops.convert_to_tensor(Tensor(1.0), np.float64)
    assert ops.convert_to_tensor([1, 2], np.float64).dtype == np.float64


def test_reductions_keep_integer_dtypes() -> None:
    x = np.array([[1, 2], [3, 5]], np.int32)
    assert ops.reduce_sum(x).dtype == np.int32
    assert int(ops.reduce_sum(x)) == 11
    assert ops.reduce_mean(x, axis=0).numpy().tolist() == [2, 3]
    assert int(ops.reduce_sum(np.array([True, True]))) == 2
    assert ops.reduce_max(x, axis=[0, 1]).numpy() == 5


def test_constant_fills_or_reshapes() -> None:
    assert ops.constant(2.0, shape=(2, 2)).numpy().tolist() == [[2.0, 2.0], [2.0, 2.0]]
    assert ops.constant([1, 2, 3, 4], np.float64, (2, 2)).numpy().tolist() == [[1.0, 2.0], [3.0, 4.0]]
