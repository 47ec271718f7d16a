"""Callbacks of ``fit``, and data that a function makes; calls and values as TensorFlow 2.21 has them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import distopt as tf
from distopt.comm.communicator import Communicator
from distopt.distribute import MirroredStrategy, MultiWorkerMirroredStrategy
from distopt.keras.callbacks import Callback, LambdaCallback, LearningRateScheduler
from distopt.keras.utils.experimental import DatasetCreator
from distopt.testing import run_replicas

X = np.arange(16, dtype=np.float32).reshape(8, 2) / 8
Y = X.sum(1)


def compiled(strategy: Any = None, rate: Any = 0.1) -> Any:
    with (strategy or MirroredStrategy(1)).scope():
        model = tf.keras.Sequential([tf.keras.layers.Dense(1, kernel_initializer="ones")])
    model.compile(tf.keras.optimizers.SGD(rate), "mse")
    return model


class Written(Callback):
    """Writes down what it is called for."""

    def __init__(self, stop_at: str = "") -> None:
        self.calls: list[str] = []
        self._stop_at = stop_at

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("on_"):
            return super().__getattribute__(name)

        def call(*args: Any) -> None:
            *which, logs = args
            self.calls.append(" ".join([name[3:], *map(str, which), *sorted(logs)]))
            if self._stop_at == self.calls[-1]:
                self.model.stop_training = True

        return call


def test_callbacks_are_called_in_the_order_of_the_reference() -> None:
    written, model = Written(), compiled()
    history = model.fit(X, Y, batch_size=4, epochs=2, verbose=0, callbacks=[written], validation_data=(X, Y))
    epoch = [
        *("train_batch_begin 0", "train_batch_end 0", "train_batch_begin 1", "train_batch_end 1"),
        *("test_begin", "test_end loss"),
    ]
    assert written.calls == [
        *("train_begin", "epoch_begin 0", *epoch, "epoch_end 0 loss val_loss"),
        *("epoch_begin 1", *epoch, "epoch_end 1 loss val_loss", "train_end loss val_loss"),
    ]
    assert written.params == {"epochs": 2, "steps": None}
    assert written.model is model
    assert history.epoch == [0, 1]


@pytest.mark.parametrize(("stop_at", "steps"), [("train_batch_end 0", 1), ("epoch_end 0 loss", 2)])
def test_a_callback_ends_the_training(stop_at: str, steps: int) -> None:
    model = compiled()
    history = model.fit(X, Y, batch_size=4, epochs=5, verbose=0, callbacks=[Written(stop_at)])
    assert int(model.optimizer.iterations) == steps
    assert history.epoch == [0]
    model.fit(X, Y, batch_size=4, epochs=1, verbose=0)
    assert int(model.optimizer.iterations) == steps + 2


@pytest.mark.parametrize("schedule", [lambda epoch: 0.5**epoch, lambda epoch, rate: rate if epoch == 0 else rate / 2])
def test_learning_rate_scheduler_sets_the_rate_before_each_epoch(schedule: Any, capsys: Any) -> None:
    model = compiled(rate=1.0)
    seen: list[float] = []
    watching = LambdaCallback(on_train_batch_begin=lambda batch, logs: seen.append(float(model.optimizer.lr)))
    history = model.fit(
        X, Y, batch_size=8, epochs=3, verbose=0, callbacks=[LearningRateScheduler(schedule, verbose=1), watching]
    )
    assert seen == history.history["lr"] == [1.0, 0.5, 0.25]
    assert "Epoch 3: LearningRateScheduler setting learning rate to 0.25." in capsys.readouterr().out


def test_wrong_callbacks_are_refused() -> None:
    model = compiled()
    with pytest.raises(TypeError, match=r"distopt\.keras\.callbacks\.Callback, not 'early'"):
        model.fit(X, Y, verbose=0, callbacks=["early"])
    with pytest.raises(ValueError, match="must return a float, not 'fast'"):
        model.fit(X, Y, verbose=0, callbacks=[LearningRateScheduler(lambda epoch: "fast")])
    with pytest.raises(TypeError, match="'on_sunday' is nothing"):
        LambdaCallback(on_sunday=print)
    scheduled = compiled(rate=tf.keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5))
    with pytest.raises(ValueError, match="which a callback cannot set"):
        scheduled.fit(X, Y, verbose=0, callbacks=[LearningRateScheduler(lambda epoch: 0.1)])
    with pytest.raises(AttributeError, match=r"on_epoch_end: distopt\.train\.Checkpoint"):
        _ = tf.keras.callbacks.ModelCheckpoint
    with pytest.raises(AttributeError, match="NumPy for to_categorical"):
        _ = tf.keras.utils.to_categorical


def dataset_fn(context: Any) -> Any:
    data = tf.data.Dataset.from_tensor_slices((X, Y)).repeat()
    return data.batch(context.get_per_replica_batch_size(4))


def test_data_made_by_a_function_train_as_the_same_batches_given_whole() -> None:
    created = compiled(MirroredStrategy(2))
    first = created.fit(DatasetCreator(dataset_fn), epochs=2, steps_per_epoch=4, verbose=0)
    data = tf.data.Dataset.from_tensor_slices((X, Y)).repeat().batch(4)
    whole = compiled(MirroredStrategy(2))
    second = whole.fit(data, epochs=2, steps_per_epoch=4, verbose=0)
    for own, other in zip(created.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(own, other)
    assert first.history == second.history
    assert int(created.optimizer.iterations) == 8


def test_data_made_by_a_function_have_the_bits_of_one_process_on_several() -> None:
    options = tf.distribute.InputOptions(
        experimental_replication_mode=tf.distribute.InputReplicationMode.PER_REPLICA,
    )

    def per_replica(context: Any) -> Any:
        data = tf.data.Dataset.from_tensor_slices((X, Y)).shard(context.num_input_pipelines, context.input_pipeline_id)
        return data.repeat().batch(1 + context.input_pipeline_id)  # as many rows as the replica's number says

    def fitted(strategy: Any) -> list[Any]:
        model = compiled(strategy)
        history = model.fit(DatasetCreator(per_replica, options), epochs=2, steps_per_epoch=3, verbose=0)
        return [*(w.tobytes() for w in model.get_weights()), history.history]

    def process(comm: Communicator) -> list[Any]:
        return fitted(MultiWorkerMirroredStrategy(replicas=3, communicator=comm))

    assert run_replicas(process, 2) == [fitted(MirroredStrategy(3))] * 2


def test_wrong_dataset_creators_are_refused() -> None:
    with pytest.raises(ValueError, match="needs steps_per_epoch"):
        compiled().fit(DatasetCreator(dataset_fn), verbose=0)
    with pytest.raises(TypeError, match="must be a function"):
        DatasetCreator([1])  # type: ignore[arg-type]  # on purpose
    with pytest.raises(TypeError, match="InputOptions"):
        DatasetCreator(dataset_fn, 1)  # type: ignore[arg-type]  # on purpose
