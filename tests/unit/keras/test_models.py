"""``Sequential``: building, training and evaluating, also over replicas."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

import distopt as tf
from distopt import ops, random
from distopt.autodiff.tape import GradientTape
from distopt.comm.communicator import Communicator
from distopt.data import Dataset, epoch_permutation
from distopt.distribute import MirroredStrategy, MultiWorkerMirroredStrategy
from distopt.initializers import GlorotUniform
from distopt.keras import Input, Model, Sequential
from distopt.keras.layers import Dense, Embedding, Flatten
from distopt.keras.losses import MeanSquaredError, SparseCategoricalCrossentropy
from distopt.keras.metrics import MeanAbsoluteError
from distopt.keras.optimizers import SGD
from distopt.testing import run_replicas
from distopt.types import Array

RNG = np.random.Generator(np.random.Philox(3))
X = RNG.normal(size=(13, 3)).astype(np.float32)
Y = (X @ np.array([[1.0], [-2.0], [0.5]]) + 0.3).astype(np.float32)
LABELS = (X[:, 0] > 0).astype(np.int64) + (X[:, 1] > 0)


def regression(**kwargs: Any) -> Sequential:
    random.set_seed(1)
    model = Sequential([Dense(4, activation="tanh"), Dense(1, **kwargs)])
    model.build((None, 3))
    return model


# ---------------------------------------------------------------- building


def test_sequential_calls_its_layers_in_order() -> None:
    model = Sequential([Dense(4, activation="relu"), Dense(2)])
    first, second = model.layers
    np.testing.assert_array_equal(model(X).numpy(), second(first(X)).numpy())
    assert [v.shape for v in model.trainable_variables] == [(3, 4), (4,), (4, 2), (2,)]


@pytest.mark.parametrize("first", [[Input(shape=(2, 3)), Flatten()], [Flatten(input_shape=(2, 3))]])
def test_sequential_that_knows_its_input_is_built_at_once(first: Any) -> None:
    model = Sequential([*first, Dense(4)])
    assert model.built
    model.add(Dense(2))
    assert [v.shape for v in model.variables] == [(6, 4), (4,), (4, 2), (2,)]
    assert model(np.zeros((5, 2, 3), np.float32)).shape == (5, 2)


def test_sequential_grown_after_its_first_call_uses_the_new_layer() -> None:
    model = Sequential([Dense(4)])
    model(X)
    model.add(Dense(2))
    assert model(X).shape == (13, 2)


def test_sequential_in_sequential_shares_variables() -> None:
    inner = Sequential([Dense(4), Dense(3)])
    model = Sequential([inner, Dense(2)])
    assert model(X).shape == (13, 2)
    assert [id(v) for v in model.variables[:4]] == [id(v) for v in inner.variables]


def test_sequential_starts_with_an_embedding_on_integers() -> None:
    model = Sequential([Embedding(5, 2), Flatten(), Dense(1)])
    assert model(np.array([[0, 4, 1]])).shape == (1, 1)
    with pytest.raises(IndexError):
        model(np.array([[0, 5, 1]]))


def test_sequential_casts_float64_inputs() -> None:
    model = Sequential([Dense(2)])
    assert model(X.astype(np.float64)).dtype == np.float32


@pytest.mark.parametrize(("layer", "error"), [(3, TypeError), (lambda x: x, TypeError)])
def test_sequential_of_something_else_is_refused(layer: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        Sequential([layer])


def test_sequential_with_a_layer_twice_is_refused() -> None:
    layer = Dense(3)
    with pytest.raises(ValueError, match="already"):
        Sequential([layer, layer])


def test_sequential_build_without_a_known_width_is_refused() -> None:
    with pytest.raises(ValueError, match="first dimension"):
        Sequential([Dense(3)]).build((None, None))


def test_summary_lists_layers_and_counts() -> None:
    lines: list[str] = []
    regression().summary(print_fn=lines.append)
    assert lines[-1] == "Total params: 21, trainable: 21"
    assert len(lines) == 5


# ---------------------------------------------------------------- training


def reference_fit(epochs: int, batch_size: int, seed: int = 0) -> list[Array]:
    """Train by hand: the mean over each global batch, in the order of the permutation."""
    model, optimizer = regression(), SGD(0.1, momentum=0.9)
    for epoch in range(epochs):
        order = epoch_permutation(seed, epoch, len(X))
        for start in range(0, len(X), batch_size):
            rows = order[start : start + batch_size]
            with GradientTape() as tape:
                loss = ops.reduce_mean(ops.square(model(X[rows]) - Y[rows]))
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
    return model.get_weights()


@pytest.mark.parametrize("replicas", [None, 1, 2, 3, 5, 8])
def test_fit_takes_the_gradient_of_the_mean_over_the_global_batch(replicas: int | None) -> None:
    # 13 rows in batches of 5: the last has 3, so at 5 and 8 replicas some have no rows.
    if replicas is None:
        model = regression()
        model.compile(SGD(0.1, momentum=0.9), "mse")
    else:
        with MirroredStrategy(replicas).scope():
            model = regression()
            model.compile(SGD(0.1, momentum=0.9), "mse")
    model.fit(X, Y, batch_size=5, epochs=3, seed=0, verbose=0)
    for ours, theirs in zip(model.get_weights(), reference_fit(3, 5), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_fit_of_a_dataset_equals_fit_of_its_arrays() -> None:
    weights = []
    for x, y in ((X, Y), (Dataset.from_tensor_slices((X, Y)).shuffle(13, seed=4).batch(5), None)):
        model = regression()
        model.compile("sgd", MeanSquaredError())
        model.fit(x, y, batch_size=5, epochs=2, seed=4, verbose=0)
        weights.append(model.get_weights())
    for a, b in zip(*weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_fit_builds_a_model_that_has_not_seen_data() -> None:
    model = Sequential([Dense(1)])
    model.compile("sgd", "mse")
    model.fit(X, Y, verbose=0)
    assert [v.shape for v in model.variables] == [(3, 1), (1,)]


def test_fit_learns_and_tells_its_history() -> None:
    model = Sequential([Dense(16, activation="relu"), Dense(3)])
    model.compile(SGD(0.2), SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    history = model.fit(X, LABELS, batch_size=4, epochs=60, verbose=0, validation_data=(X, LABELS))
    assert history.epoch == list(range(60))
    assert sorted(history.history) == ["accuracy", "loss", "val_accuracy", "val_loss"]
    assert history.history["loss"][-1] < history.history["loss"][0]
    assert history.history["val_accuracy"][-1] == 1.0


def test_fit_from_an_epoch_goes_on_as_if_it_had_not_stopped() -> None:
    whole, parts = regression(), regression()
    for model in (whole, parts):
        model.compile(SGD(0.1, momentum=0.9), "mse")
    whole.fit(X, Y, batch_size=4, epochs=3, verbose=0)
    parts.fit(X, Y, batch_size=4, epochs=2, verbose=0)
    parts.fit(X, Y, batch_size=4, epochs=3, initial_epoch=2, verbose=0)
    np.testing.assert_array_equal(whole.get_weights()[0], parts.get_weights()[0])


def test_fit_weights_examples_without_changing_the_divisor() -> None:
    weights = np.zeros(13, np.float32)
    weights[:4] = 13 / 4
    weighted, alone = regression(), regression()
    for model, rows, weight in ((weighted, 13, weights), (alone, 4, None)):
        model.compile(SGD(0.1), "mse")
        model.fit(X[:rows], Y[:rows], sample_weight=weight, batch_size=13, shuffle=False, verbose=0)
    np.testing.assert_allclose(weighted.get_weights()[0], alone.get_weights()[0], rtol=1e-5)


@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_fit_counts_a_regularizer_once_however_many_replicas(replicas: int) -> None:
    with MirroredStrategy(replicas).scope():
        model = regression(kernel_regularizer="l2")
        model.compile(SGD(1.0), MeanSquaredError(reduction="sum"))
    kernel = model.layers[1].variables[0]
    before = kernel.numpy()
    zeros = np.zeros((13, 1), np.float32)
    model.fit(X, zeros, sample_weight=zeros[:, 0], batch_size=13, verbose=0)
    np.testing.assert_allclose(kernel.numpy(), before * (1 - 2 * 0.01), rtol=1e-6)


def test_layer_that_two_models_share_is_trained_once() -> None:
    shared = Dense(1, kernel_initializer="zeros", use_bias=False, kernel_regularizer=lambda kernel: 3 * kernel[0, 0])

    class Both(Model):
        def __init__(self) -> None:
            super().__init__()
            self.alone = shared
            self.within = Sequential([shared])

        def call(self, inputs: Any) -> Any:
            return self.alone(inputs) + self.within(inputs)

    model = Both()
    model.compile(SGD(0.5), "mse")
    model.fit(np.ones((1, 1), np.float32), np.ones(1, np.float32), verbose=0)
    assert model.variables == model.trainable_variables == [shared.kernel]
    np.testing.assert_array_equal(shared.kernel.numpy(), [[0.5]])  # 0 - 0.5 * (2 (0 - 1) * 2 + 3)
    assert [float(loss) for loss in model.losses] == [1.5]


@pytest.mark.parametrize("num_replicas", [1, 2, 5])
def test_metric_with_weights_of_less_than_one_in_all_is_their_mean(num_replicas: int) -> None:
    with MirroredStrategy(num_replicas).scope():
        model = regression()
        model.compile(SGD(0.0), "mse", [MeanAbsoluteError()])
    weight = np.linspace(0.01, 0.02, len(X))
    figures = model.evaluate(X, Y, sample_weight=weight, batch_size=13, verbose=0, return_dict=True)
    error = np.abs(model.predict(X, verbose=0) - Y)[:, 0].astype(np.float64)
    assert weight.sum() < 1
    np.testing.assert_allclose(figures["mean_absolute_error"], (error * weight).sum() / weight.sum(), rtol=1e-6)


@pytest.mark.parametrize("replicas", [1, 2, 5])
def test_evaluate_counts_each_example_once(replicas: int) -> None:
    with MirroredStrategy(replicas).scope():
        model = regression(kernel_regularizer="l2")
        model.compile("sgd", "mse", metrics=["mae", MeanAbsoluteError("second")])
    predictions = model.predict(X, batch_size=4)
    penalty = 0.01 * np.square(model.variables[2].numpy()).sum()
    expected = [np.square(predictions - Y).mean() + penalty, *[np.abs(predictions - Y).mean()] * 2]
    figures = model.evaluate(X, Y, batch_size=3, verbose=0)
    np.testing.assert_allclose(figures, expected, rtol=1e-5)
    assert list(model.evaluate(X, Y, verbose=0, return_dict=True)) == ["loss", "mae", "second"]


def test_evaluate_has_the_same_bits_at_any_batch_split_over_replicas() -> None:
    figures = set()
    for _ in range(2):
        with MirroredStrategy(3).scope():
            model = regression()
            model.compile("sgd", "mse")
        figures.add(model.evaluate(X, Y, batch_size=5, verbose=0))
    assert len(figures) == 1


def test_predict_takes_batches_and_concatenates() -> None:
    model = regression()
    np.testing.assert_allclose(model.predict(X, batch_size=4), model(X).numpy(), rtol=1e-5)
    batches = Dataset.from_tensor_slices(X).batch(4)
    np.testing.assert_allclose(model.predict(batches), model(X).numpy(), rtol=1e-5)


def test_fit_reports_a_line_an_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    model = regression()
    model.compile("sgd", "mse")
    model.fit(X, Y, epochs=2)
    lines = capsys.readouterr().out.splitlines()
    assert [line[:18] for line in lines] == ["Epoch 1/2 - loss: ", "Epoch 2/2 - loss: "]


def test_fit_of_a_subclassed_model_trains_its_variables() -> None:
    class Residual(Model):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Dense(3)
            self.outer = Dense(1)

        def call(self, inputs: Any) -> Any:
            return self.outer(inputs + self.inner(inputs))

    model = Residual()
    model.compile(SGD(0.05), "mse")
    losses = model.fit(X, Y, epochs=10, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert len(model.trainable_variables) == 4


# ---------------------------------------------------------------- refusals


def test_fit_before_compile_is_refused() -> None:
    with pytest.raises(RuntimeError, match="compile"):
        regression().fit(X, Y)


@pytest.mark.parametrize(
    "arguments",
    [("sgdd", "mse"), ("sgd", "mean"), ("sgd", "mse", ["acccuracy"]), ("sgd", MeanSquaredError(reduction="none"))],
)
def test_compile_of_unknown_parts_is_refused(arguments: Any) -> None:
    with pytest.raises(ValueError, match=r"unknown|none"):
        regression().compile(*arguments)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ((None, None), "no data"),
        ((X, Y[:5]), "differ in their number of rows"),
        (([], None), r"no data"),
        ((Dataset.from_tensor_slices(X).batch(4), None), r"\(x, y\)"),
    ],
)
def test_fit_of_data_that_do_not_fit_is_refused(data: Any, match: str) -> None:
    model = regression()
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match=match):
        model.fit(data[0], data[1], verbose=0)


# ---------------------------------------------------------------- several processes


def seeded_fit(strategy: Any) -> tuple[list[Array], dict[str, list[float]], Any]:
    with strategy.scope():
        model = Sequential([Dense(4, "tanh", kernel_initializer=GlorotUniform(1)), Dense(1, kernel_initializer="ones")])
        model.compile(SGD(0.1, momentum=0.9), "mse", metrics=["mae"])
    history = model.fit(X, Y, batch_size=5, epochs=2, seed=0, verbose=0)
    return model.get_weights(), history.history, model.evaluate(X, Y, batch_size=5, verbose=0)


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
def test_fit_and_evaluate_have_the_same_bits_on_any_number_of_workers(workers: int) -> None:
    expected = seeded_fit(MirroredStrategy(3))

    def worker(comm: Communicator) -> tuple[list[Array], dict[str, list[float]], Any]:
        return seeded_fit(MultiWorkerMirroredStrategy(replicas=3, communicator=comm))

    for weights, history, figures in run_replicas(worker, workers):
        for ours, theirs in zip(weights, expected[0], strict=True):
            np.testing.assert_array_equal(ours, theirs)
        assert history == expected[1]
        assert figures == expected[2]


def test_fit_takes_labels_without_an_axis_as_a_column() -> None:
    model = Sequential([Dense(10, kernel_initializer="ones")])
    model.compile("sgd", loss="mse")
    x = np.ones((5, 2), np.float32)
    assert model.evaluate(x, np.arange(5.0), verbose=0) == pytest.approx(float(np.mean((2 - np.arange(5.0)) ** 2)))


def test_model_of_a_dictionary_of_inputs_is_built_from_their_shapes() -> None:
    class Sums(Model):
        def build(self, input_shape: Any) -> None:
            self.shapes = dict(input_shape)

        def call(self, inputs: Any) -> Any:
            return ops.add(inputs["a"], inputs["b"])

    model = Sums()
    result = model({"a": np.ones((2, 3), np.float32), "b": np.ones((2, 1), np.float32)}, training=True)
    assert result.numpy().tolist() == [[2.0] * 3] * 2
    assert model.shapes == {"a": (None, 3), "b": (None, 1)}


def test_fit_with_steps_per_epoch_goes_on_where_the_epoch_before_ended() -> None:
    x, y = np.arange(12, dtype=np.float32).reshape(6, 2), np.arange(6, dtype=np.float32)[:, None]

    def trained(steps_per_epoch: int | None, epochs: int, *data: Any, **options: Any) -> list[Array]:
        model = Sequential([Dense(1, kernel_initializer="ones")])
        model.compile(SGD(1e-3), "mse", steps_per_execution=10)
        history = model.fit(*data, epochs=epochs, steps_per_epoch=steps_per_epoch, verbose=0, **options)
        assert len(history.epoch) == epochs
        return model.get_weights()

    repeated = Dataset.from_tensor_slices((x, y)).batch(2).repeat()
    by_steps = trained(2, 6, repeated)
    by_epochs = trained(None, 4, Dataset.from_tensor_slices((x, y)).batch(2))
    arrays = trained(4, 3, x, y, batch_size=2, shuffle=False)
    for found, other, expected in zip(by_steps, arrays, by_epochs, strict=True):
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(other, expected)


def test_fit_with_more_steps_than_there_are_data_is_refused() -> None:
    model = Sequential([Dense(1)])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="ran out after 3 of 4 steps"):
        model.fit(Dataset.from_tensor_slices((np.ones((6, 2)), np.ones((6, 1)))).batch(2), steps_per_epoch=4, verbose=0)


@pytest.mark.parametrize("num_replicas", [1, 3])
@pytest.mark.parametrize("make", [tf.keras.optimizers.LossScaleOptimizer, tf.keras.optimizers.LossScaleOptimizerV3])
def test_fit_with_a_scaled_loss_has_the_bits_of_fit_without(make: Any, num_replicas: int) -> None:
    x = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)

    def fitted(optimizer: Any) -> list[Any]:
        tf.random.set_seed(1)
        with tf.distribute.MirroredStrategy(num_replicas).scope():
            model = tf.keras.Sequential([tf.keras.layers.Dense(1)])
        model.compile(optimizer, "mse")
        model.fit(x, x.sum(1), epochs=2, verbose=0, batch_size=8)
        return model.get_weights()

    optimizer = make(tf.keras.optimizers.SGD(0.1), initial_scale=8.0, dynamic_growth_steps=2)
    for scaled, plain in zip(fitted(optimizer), fitted(tf.keras.optimizers.SGD(0.1)), strict=True):
        np.testing.assert_array_equal(scaled, plain)  # powers of two change no bits
    assert float(optimizer.loss_scale) == 8.0 * 2**4
    described = tf.keras.optimizers.serialize(optimizer)
    twin: Any = tf.keras.optimizers.deserialize(described)
    assert type(twin) is make
    assert twin.get_config() == optimizer.get_config()


# ---------------------------------------------------------------- dense layers that follow each other


@pytest.mark.parametrize("frozen", [(), (0,), (1, 2)])
def test_dense_layers_in_a_row_have_the_bits_of_one_after_another(frozen: tuple[int, ...]) -> None:
    random.set_seed(2)
    first = Dense(5, "relu", trainable=0 not in frozen)
    second = Dense(4, "tanh", use_bias=False, trainable=1 not in frozen)
    third = Dense(3, "sigmoid", trainable=2 not in frozen)
    model = Sequential([first, second, third, Dense(2, "softmax")])
    model.build((None, 3))
    assert len(model._calls) == 2, "the last one's activation is an operation of its own"

    def one_after_another(x: Any) -> Any:
        for layer in model.layers:
            x = layer(x)
        return x

    def bits(call: Any) -> list[Any]:
        with GradientTape() as tape:
            loss = ops.reduce_sum(call(X) * X[:, :2])
        gradients = tape.gradient(loss, model.variables)
        return [loss.numpy().tobytes(), *(None if g is None else g.numpy().tobytes() for g in gradients)]

    assert bits(model) == bits(one_after_another)


def test_model_with_dense_layers_in_a_row_is_copied_with_its_variables() -> None:
    model = Sequential([Dense(4, "relu"), Dense(1)])
    before = model(X).numpy()
    twin = copy.deepcopy(model)
    twin.layers[0].kernel.assign(np.zeros_like(twin.layers[0].kernel.numpy()))
    np.testing.assert_array_equal(model(X).numpy(), before)
    assert not np.array_equal(twin(X).numpy(), before)
