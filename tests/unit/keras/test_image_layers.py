"""Layers for images, dropout and normalization, and how layers learn that they are trained."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import distopt as tf
from distopt.keras import layers

_RANDOM = np.random.default_rng(4)
IMAGES = _RANDOM.normal(size=(2, 6, 5, 3)).astype(np.float32)


def test_convolution_layer_has_its_kernel_bias_and_activation() -> None:
    layer = layers.Conv2D(4, (3, 2), strides=2, padding="same", activation="relu", bias_initializer="ones")
    outputs = layer(IMAGES)
    assert [v.shape for v in layer.trainable_variables] == [(3, 2, 3, 4), (4,)]
    assert outputs.shape == (2, 3, 3, 4)
    expected = np.maximum(tf.nn.conv2d(IMAGES, layer.kernel, 2, "SAME").numpy() + 1, 0)
    np.testing.assert_allclose(outputs.numpy(), expected, rtol=1e-6)
    assert len(layers.Conv2D(1, 1, use_bias=False)(IMAGES).shape) == 4


def test_small_convolutional_model_learns_to_tell_two_patterns() -> None:
    tf.random.set_seed(1)
    upright = np.zeros((16, 8, 8, 1), np.float32)
    for i, image in enumerate(upright):
        image[(slice(None), i % 8) if i < 8 else (i % 8, slice(None))] = 1.0
    labels = np.repeat([0, 1], 8)
    model = tf.keras.Sequential(
        [
            layers.Conv2D(4, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Dropout(0.1),
            layers.Flatten(),
            layers.Dense(2),
        ]
    )
    model.compile(
        tf.keras.optimizers.Adam(0.02),
        loss=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(upright, labels, batch_size=8, epochs=60, verbose=0)
    assert model.evaluate(upright, labels, verbose=0)[1] == 1.0


def test_pooling_layers_are_the_operations() -> None:
    for layer, operation in ((layers.MaxPooling2D, tf.nn.max_pool2d), (layers.AveragePooling2D, tf.nn.avg_pool2d)):
        np.testing.assert_array_equal(layer()(IMAGES).numpy(), operation(IMAGES, 2, 2, "VALID").numpy())
        found = layer((3, 2), strides=1, padding="same")(IMAGES).numpy()
        np.testing.assert_array_equal(found, operation(IMAGES, (3, 2), 1, "SAME").numpy())
    np.testing.assert_allclose(layers.GlobalAveragePooling2D()(IMAGES).numpy(), IMAGES.mean((1, 2)), rtol=1e-5)


def test_layer_normalization_has_mean_beta_and_deviation_gamma() -> None:
    layer = layers.LayerNormalization(epsilon=0.0)
    outputs = layer(IMAGES)
    assert [v.shape for v in layer.trainable_variables] == [(3,), (3,)]
    np.testing.assert_allclose(outputs.numpy().mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(outputs.numpy().std(-1), 1, atol=1e-4)
    assert layers.LayerNormalization(center=False, scale=False)(IMAGES).shape == IMAGES.shape


def test_reshape_keeps_the_batch_and_fills_one_free_length() -> None:
    assert layers.Reshape((5, -1))(IMAGES).shape == (2, 5, 18)
    assert layers.Reshape((90,))(IMAGES).shape == (2, 90)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layers.Conv2D(0, 3), "at least 1 filter"),
        (lambda: layers.Conv2D(1, 3, groups=2), "without groups"),
        (lambda: layers.Conv2D(1, 3, data_format="channels_first"), "channels_last"),
        (lambda: layers.Conv2D(1, (1, 2, 3)), "kernel_size must be"),
        (lambda: layers.MaxPooling2D(0), "pool_size must be"),
        (lambda: layers.Conv2D(1, 3)(np.ones((1, 2), np.float32)), "needs images"),
        (lambda: layers.Dropout(1.0), "below 1, not 1.0"),
        (lambda: layers.LayerNormalization(axis=1), "last axis"),
    ],
)
def test_layer_of_a_kind_that_is_not_offered_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# ---------------------------------------------------------------- training or not


class _Asks(layers.Layer):
    """Adds 1 when it is trained."""

    def call(self, inputs: Any, training: bool = False) -> Any:
        return inputs + float(training)


class _Holds(tf.keras.Model):
    def __init__(self, says: bool | None) -> None:
        super().__init__()
        self.inner = _Asks()
        self.says = says

    def call(self, inputs: Any) -> Any:
        return self.inner(inputs, training=self.says)


def test_training_given_to_a_model_holds_for_the_layers_within_unless_they_are_told_otherwise() -> None:
    def added(model: tf.keras.Model, **kwargs: Any) -> float:
        return float(model(np.zeros((1, 1), np.float32), **kwargs)[0, 0])

    assert added(_Holds(None)) == 0
    assert added(_Holds(None), training=True) == 1
    assert added(_Holds(False), training=True) == 0
    assert added(_Holds(True)) == 1
    nested = tf.keras.Sequential([_Asks(), _Holds(None)])
    assert [added(nested, training=phase) for phase in (True, False, None)] == [2, 0, 0]


def test_fit_trains_and_evaluate_and_predict_do_not() -> None:
    phases: list[bool] = []

    class Notes(layers.Layer):
        def call(self, inputs: Any, training: bool = False) -> Any:
            phases.append(training)
            return inputs

    model = tf.keras.Sequential([layers.Dense(1), Notes()])
    model.compile("sgd", loss="mse")
    x = np.ones((4, 2), np.float32)
    model(x)
    phases.clear()
    model.fit(x, x[:, :1], batch_size=4, verbose=0)
    model.evaluate(x, x[:, :1], batch_size=4, verbose=0)
    model.predict(x)
    assert phases == [True, False, False]


def test_dropout_acts_in_training_only_and_building_draws_nothing() -> None:
    def values(built_first: bool) -> bytes:
        model = tf.keras.Sequential([layers.Dropout(0.5)])
        if built_first:
            model(np.ones((1, 8), np.float32))
        tf.random.set_seed(3)
        outputs = model(np.ones((4, 8), np.float32), training=True).numpy()
        assert set(np.unique(outputs).tolist()) == {0.0, 2.0}
        assert model(np.ones((1, 1), np.float32)).numpy().tolist() == [[1.0]]
        return bytes(outputs.tobytes())

    assert values(built_first=True) == values(built_first=False)


@pytest.mark.parametrize("num_replicas", [2, 3, 5])
def test_dropout_differs_between_replicas_and_is_a_function_of_the_seed(num_replicas: int) -> None:
    strategy = tf.distribute.MirroredStrategy(num_replicas)
    model = tf.keras.Sequential([layers.Dropout(0.5)])
    x = np.ones((1, 32), np.float32)

    def masks() -> list[bytes]:
        tf.random.set_seed(8)
        values = strategy.run(lambda: model(x, training=True))
        return [value.numpy().tobytes() for value in strategy.experimental_local_results(values)]

    assert len(set(masks())) == num_replicas
    assert masks() == masks()
