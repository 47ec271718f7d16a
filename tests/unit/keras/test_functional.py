"""Models of inputs and outputs, and lookups of strings; values as TensorFlow 2.21 gives them."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest

import distopt as tf
from distopt.distribute import MirroredStrategy
from distopt.keras.layers import Dense, Dropout, Embedding, StringLookup

Model: Any = tf.keras.Model
Input = tf.keras.Input
X = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)


def stacked(fitted: bool, functional: bool) -> list[Any]:
    tf.random.set_seed(5)
    strategy = MirroredStrategy(2)
    with strategy.scope():
        layers = [Dense(6, activation="relu"), Dropout(0.5), Dense(1)]
        if functional:
            x = outputs = Input((4,))
            for layer in layers:
                outputs = layer(outputs)
            model = Model(inputs=x, outputs=outputs)
        else:
            model = tf.keras.Sequential([Input((4,)), *layers])
    model.compile(tf.keras.optimizers.Adam(0.01), "mse")
    if fitted:
        model.fit(X, X.sum(1), batch_size=4, epochs=2, verbose=0)
    return [*model.get_weights(), model.predict(X)]


@pytest.mark.parametrize("fitted", [False, True])
def test_a_chain_of_layers_is_the_sequential_model(fitted: bool) -> None:
    for own, other in zip(stacked(fitted, functional=True), stacked(fitted, functional=False), strict=True):
        np.testing.assert_array_equal(own, other)


def test_operations_shared_layers_and_several_outputs_have_gradients() -> None:
    a, b = Input((4,), name="a"), Input((4,), name="b")
    shared = Dense(3, kernel_initializer="ones")
    both = shared(a) * 2.0 + shared(b)
    model = Model({"b": b, "a": a}, {"sum": tf.reduce_sum(both, axis=1), "first": both[:, 0]})
    assert model.layers == [shared]
    assert [v.shape for v in model.trainable_variables] == [(4, 3), (3,)]
    with tf.GradientTape() as tape:
        found = model({"a": X, "b": 3 * X})
        loss = tf.reduce_sum(found["sum"]) + tf.reduce_sum(found["first"])
    total = 5 * X.sum(1)
    np.testing.assert_allclose(found["sum"].numpy(), 3 * total, rtol=1e-5)
    np.testing.assert_allclose(found["first"].numpy(), total, rtol=1e-5)
    kernel, bias = tape.gradient(loss, model.trainable_variables)
    np.testing.assert_allclose(kernel.numpy(), (5 * X.sum(0))[:, None] * [[2, 1, 1]], rtol=1e-4)
    np.testing.assert_allclose(bias.numpy(), 8 * 3 * np.float32([2, 1, 1]))
    np.testing.assert_allclose(model([X, 3 * X])["sum"].numpy(), 3 * total, rtol=1e-5)  # in order of the names


def test_layers_know_at_each_call_whether_they_are_trained() -> None:
    x = Input((4,))
    model = Model(x, Dropout(0.5)(x))
    assert model(X).numpy().tolist() == X.tolist()
    assert (model(X, training=True).numpy() == 0).any()


def test_a_model_is_a_layer_of_another() -> None:
    x = Input((4,))
    inner = Model(x, Dense(2, kernel_initializer="ones")(x) + 1.0)
    y = Input((4,))
    outer = Model(y, tf.square(inner(y * 2.0)))
    np.testing.assert_allclose(outer(X).numpy(), np.repeat((2 * X.sum(1, keepdims=True) + 1) ** 2, 2, 1), rtol=1e-5)
    assert outer.trainable_variables == inner.trainable_variables


def test_unknown_lengths_and_dtypes_are_followed() -> None:
    tokens = Input((None,), dtype=tf.int64)
    embedded = Embedding(10, 3)(tokens)
    mean = tf.reduce_mean(embedded, axis=1)
    assert embedded.shape == (None, None, 3)
    assert mean.shape == (None, 3)
    model = Model(tokens, mean)
    assert model(np.array([[1, 2, 3]])).shape == (1, 3)
    assert model(np.array([[1], [2]])).shape == (2, 3)


def test_subclasses_are_as_before() -> None:
    class Own(tf.keras.Model):
        def __init__(self, inputs: int) -> None:
            super().__init__(name="own")
            self.dense = Dense(inputs)

        def call(self, inputs: Any) -> Any:
            return self.dense(inputs)

    assert Own(inputs=2)(X).shape == (8, 2)
    assert type(tf.keras.Model(name="plain")) is tf.keras.Model


def test_wrong_models_are_refused() -> None:
    a, b = Input((4,), name="a"), Input((4,), name="b")
    both = Dense(1)(a) + Dense(1)(b)
    with pytest.raises(ValueError, match="needs the input 'b', which is not among"):
        Model(a, both)
    with pytest.raises(TypeError, match=r"what keras\.Input returns"):
        Model(both, both)
    with pytest.raises(TypeError, match="made from its inputs by layers"):
        Model(a, X)
    model = Model({"a": a, "b": b}, both)
    with pytest.raises(ValueError, match=r"not given its inputs \['a'\]"):
        model({"b": X})
    with pytest.raises(ValueError, match="has 2 inputs, and was given 1"):
        model([X])
    with pytest.raises(ValueError, match="needs inputs of shape"):
        Dense(1)(Input(()))
    with pytest.raises(TypeError, match="has no value before"):
        np.sin(np.asarray(a))


def test_models_are_forgotten_with_their_last_reference() -> None:
    x = Input((4,))
    layer = Dense(2)
    model = Model(x, layer(x))
    gone = weakref.ref(layer)
    del layer, model, x
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize(
    ("options", "vocabulary", "numbers"),
    [
        ({}, ["[UNK]", "a", "b"], [2, 1, 0, 0]),
        ({"mask_token": ""}, ["", "[UNK]", "a", "b"], [3, 2, 1, 0]),
        ({"oov_token": "?"}, ["?", "a", "b"], [2, 1, 0, 0]),
        ({"num_oov_indices": 0}, ["a", "b"], None),
        ({"mask_token": "[M]", "num_oov_indices": 0}, ["[M]", "a", "b"], None),
    ],
)
def test_strings_have_the_numbers_of_the_reference(options: Any, vocabulary: Any, numbers: Any) -> None:
    lookup = StringLookup(vocabulary=["a", "b"], **options)
    assert lookup.get_vocabulary() == vocabulary
    assert lookup.vocabulary_size() == len(vocabulary)
    assert lookup.get_vocabulary(include_special_tokens=False) == ["a", "b"]
    if numbers is None:
        assert lookup(["b"]).numpy().tolist() == [vocabulary.index("b")]
        with pytest.raises(ValueError, match="no number for 'z'"):
            lookup(np.array([["b", "z"]]))
    else:
        found = lookup(np.array([["b", "a"], ["z", ""]]))
        assert found.dtype == np.int64
        assert found.numpy().tolist() == [numbers[:2], numbers[2:]]
    x = Input((2,), dtype=tf.string)
    assert Model(x, lookup(x))(np.array([["b", "a"]])).shape == (1, 2)


def test_lookups_that_are_not_offered_say_so() -> None:
    for options in ({}, {"max_tokens": 3}, {"num_oov_indices": 2}, {"invert": True}, {"output_mode": "multi_hot"}):
        with pytest.raises(NotImplementedError):
            StringLookup(**({"vocabulary": ["a"]} if options else {}), **options)  # type: ignore[arg-type]
    for words in ([], ["a", "b", "a"]):
        with pytest.raises(ValueError, match="each string once"):
            StringLookup(vocabulary=words)
