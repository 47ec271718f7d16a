"""Layers build once, compute what they say, and tell their variables in order."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from distopt import ops
from distopt.autodiff.tape import GradientTape
from distopt.indexed_slices import IndexedSlices
from distopt.keras import layers
from distopt.keras.layers import Dense, Embedding, Flatten, Layer
from distopt.keras.models import Sequential
from distopt.keras.regularizers import L1, L2
from distopt.variable import Variable

X = np.array([[1.0, -2.0, 3.0], [0.5, 0.0, -1.0]], np.float32)


@pytest.mark.parametrize("activation", [None, "linear", "relu", "tanh", "sigmoid", "softmax", ops.square])
def test_dense_is_activation_of_the_affine_map(activation: Any) -> None:
    layer = Dense(4, activation=activation, bias_initializer="ones")
    result = layer(X)
    affine = X @ layer.kernel.numpy() + 1
    functions: dict[Any, Any] = {
        "relu": lambda z: np.maximum(z, 0),
        "tanh": np.tanh,
        "sigmoid": lambda z: 1 / (1 + np.exp(-z)),
        "softmax": lambda z: np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True),
        ops.square: np.square,
    }
    expected = functions.get(activation, lambda z: z)(affine)
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-5)


def test_dense_makes_kernel_and_bias_at_the_first_call() -> None:
    layer = Dense(4, name="first")
    assert layer.variables == []
    layer(X)
    assert [(v.name, v.shape) for v in layer.variables] == [("first/kernel:0", (3, 4)), ("first/bias:0", (4,))]
    kernel = layer.kernel
    layer(X)
    assert layer.kernel is kernel


def test_dense_without_bias_has_a_kernel_alone() -> None:
    layer = Dense(4, use_bias=False)
    np.testing.assert_allclose(layer(X).numpy(), X @ layer.kernel.numpy(), rtol=1e-6)
    assert len(layer.variables) == 1


def test_dense_on_higher_rank_inputs_keeps_the_other_axes() -> None:
    assert Dense(4)(np.zeros((2, 5, 3), np.float32)).shape == (2, 5, 4)


def test_dense_casts_float64_inputs_and_python_lists_to_its_dtype() -> None:
    layer = Dense(4)
    assert layer(X.astype(np.float64)).dtype == np.float32
    assert layer(X.tolist()).dtype == np.float32
    assert Dense(4, dtype=np.float64)(X).dtype == np.float64


@pytest.mark.parametrize("units", [0, -1])
def test_dense_without_units_is_refused(units: int) -> None:
    with pytest.raises(ValueError, match="units"):
        Dense(units)


def test_dense_on_scalars_is_refused() -> None:
    with pytest.raises(ValueError, match="needs inputs of shape"):
        Dense(2)(np.zeros(3, np.float32))


def test_flatten_keeps_rows_also_without_any() -> None:
    assert Flatten()(np.zeros((4, 2, 3), np.float32)).shape == (4, 6)
    assert Flatten()(np.zeros((0, 2, 3), np.float32)).shape == (0, 6)
    assert Flatten()(np.zeros(4, np.float32)).shape == (4, 1)


@pytest.mark.parametrize("indices", [[[2, 0]], [[2.0, 0.0]]])
def test_embedding_gathers_rows_and_its_gradient_is_row_sparse(indices: Any) -> None:
    layer = Embedding(3, 2)
    layer.build((None, 2))
    with GradientTape() as tape:
        rows = layer(np.array(indices))
    np.testing.assert_array_equal(rows.numpy(), layer.embeddings.numpy()[[[2, 0]]])
    assert isinstance(tape.gradient(rows, layer.embeddings), IndexedSlices)


def test_activation_layers_are_functions_of_their_name() -> None:
    np.testing.assert_array_equal(layers.ReLU()(X).numpy(), np.maximum(X, 0))
    np.testing.assert_allclose(layers.Softmax()(X).numpy().sum(axis=-1), [1, 1], rtol=1e-6)
    np.testing.assert_allclose(layers.Activation("tanh")(X).numpy(), np.tanh(X), rtol=1e-6)


def test_unknown_activation_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown activation 'rely'"):
        Dense(2, activation="rely")


class Scaled(Layer):
    """A user's layer: a scale of its own, and a list of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = [Dense(2), Dense(2, use_bias=False)]
        self.scale = Variable(np.float32(3.0), name="scale")
        self.steps = Variable(0, trainable=False)

    def call(self, inputs: Any) -> Any:
        for layer in self.inner:
            inputs = layer(inputs)
        return self.scale * inputs


def test_layer_finds_variables_in_attributes_and_lists() -> None:
    layer = Scaled()
    layer(X)
    kinds = [v.name.split("/")[-1] for v in layer.variables]
    assert kinds == ["kernel:0", "bias:0", "kernel:0", "scale:0", "Variable:0"]
    assert len(layer.trainable_variables) == 4
    assert layer.non_trainable_variables == [layer.steps]
    assert layer.count_params() == 6 + 2 + 4 + 1 + 1


def test_layer_that_is_not_trainable_has_no_trainable_variables() -> None:
    layer = Scaled()
    layer(X)
    layer.inner[0].trainable = False
    assert len(layer.trainable_variables) == 2
    layer.trainable = False
    assert layer.trainable_variables == []


def test_weights_of_a_layer_can_be_taken_and_set() -> None:
    one, other = Dense(2), Dense(2)
    one(X), other(X)
    other.set_weights(one.get_weights())
    np.testing.assert_array_equal(one(X).numpy(), other(X).numpy())


def test_set_weights_of_wrong_shapes_assigns_nothing() -> None:
    layer = Dense(2)
    layer(X)
    before = layer.get_weights()
    with pytest.raises(ValueError, match="shapes"):
        layer.set_weights([np.zeros((3, 2)), np.zeros(3)])
    np.testing.assert_array_equal(layer.get_weights()[0], before[0])


def test_losses_of_a_layer_are_its_regularizers_and_added_functions() -> None:
    layer = Dense(2, kernel_regularizer=L2(0.5), bias_regularizer="l1", bias_initializer="ones")
    model = Sequential([layer])
    model(X)
    layer.add_loss(lambda: ops.reduce_sum(layer.bias))
    expected = [0.5 * np.square(layer.kernel.numpy()).sum(), 0.01 * 2, 2.0]
    np.testing.assert_allclose([float(loss) for loss in model.losses], expected, rtol=1e-6)


def test_regularizer_has_a_gradient() -> None:
    weight = Variable(np.array([3.0, -2.0]))
    with GradientTape() as tape:
        penalty = L1(0.5)(weight) + L2(0.25)(weight)
    np.testing.assert_allclose(np.asarray(tape.gradient(penalty, weight)), [0.5 + 1.5, -0.5 - 1.0])


def test_add_loss_of_a_value_is_refused() -> None:
    with pytest.raises(TypeError, match="function"):
        Dense(2).add_loss(3.0)  # type: ignore[arg-type]  # the refusal is what is tested


def test_layer_called_by_many_threads_is_built_once() -> None:
    layer = Dense(64)
    barrier = threading.Barrier(8)

    def call() -> None:
        barrier.wait()
        layer(X)

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(layer.variables) == 2
