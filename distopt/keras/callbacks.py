"""Functions that ``fit`` calls on its way: before and after the training, an epoch, a batch.

Every process calls its own, alike. Figures are brought together over replicas once an epoch, so the ``logs``
of a batch are empty.

Source: ``tf.keras.callbacks``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from distopt.tensor import Operand

__all__ = ["Callback", "LambdaCallback", "LearningRateScheduler"]


class Callback:
    """Base of callbacks; a subclass defines the methods that it wants to be called.

    ``model`` is the model that is trained; set its ``stop_training`` to end the training after the epoch, or the batch,
    that is under way. ``params`` says ``epochs`` and ``steps`` (None where the data decide it).

    >>> import distopt as tf
    >>> class Printed(Callback):
    ...     def on_epoch_end(self, epoch, logs=None):
    ...         print(epoch, sorted(logs))
    >>> model = tf.keras.Sequential([tf.keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> history = model.fit(np.ones((4, 2)), np.ones(4), epochs=2, verbose=0, callbacks=[Printed()])
    0 ['loss']
    1 ['loss']
    """

    model: Any = None
    params: dict[str, Any] = {}  # noqa: RUF012 - replaced, never changed

    def set_model(self, model: Any) -> None:
        """Take note of the model."""
        self.model = model

    def set_params(self, params: dict[str, Any]) -> None:
        """Take note of how it is trained."""
        self.params = params

    def on_train_begin(self, logs: Any = None) -> None:
        """Before the first epoch."""

    def on_train_end(self, logs: Any = None) -> None:
        """After the last epoch; ``logs`` has its figures."""

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Before an epoch, counted from 0."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """After an epoch; ``logs`` has its figures, and what is put into it goes into the history."""

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Before a step, counted from 0 in each epoch."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """After a step."""

    def on_test_begin(self, logs: Any = None) -> None:
        """Before the validation data of an epoch."""

    def on_test_end(self, logs: Any = None) -> None:
        """After them; ``logs`` has their figures."""


class LambdaCallback(Callback):
    """A callback made of functions: ``LambdaCallback(on_epoch_end=lambda epoch, logs: ...)``.

    Raises: TypeError for a name that is no method of :class:`Callback`.
    """

    def __init__(self, **functions: Callable[..., Any] | None) -> None:
        for name, function in functions.items():
            if not name.startswith("on_") or not hasattr(Callback, name):
                raise TypeError(f"{name!r} is nothing that a callback is called for")
            if function is not None:
                setattr(self, name, function)


class LearningRateScheduler(Callback):
    """Sets the learning rate before each epoch to ``schedule(epoch, learning_rate)``, or ``schedule(epoch)``.

    ``verbose`` prints it. The history gets the rate of each epoch as ``lr``.

    Raises: ValueError, at an epoch, if the optimizer has no learning rate that is a number, or the schedule returns
        something else.
    """

    def __init__(self, schedule: Callable[..., Any], verbose: int = 0) -> None:
        self.schedule = schedule
        self.verbose = verbose

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Set the rate."""
        del logs
        before = self._rate()
        try:
            rate = self.schedule(epoch, before)
        except TypeError:  # a function of the epoch alone
            rate = self.schedule(epoch)
        if not isinstance(rate, float | np.floating | Operand):
            raise ValueError(f"the schedule must return a float, not {rate!r}")
        self.model.optimizer.learning_rate = float(rate)
        if self.verbose:
            sys.stdout.write(f"Epoch {epoch + 1}: LearningRateScheduler setting learning rate to {float(rate)}.\n")

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Put the rate into the figures."""
        del epoch
        if logs is not None:
            logs["lr"] = self._rate()

    def _rate(self) -> float:
        rate = getattr(self.model.optimizer, "learning_rate", None)
        if not isinstance(rate, Operand | float):
            raise ValueError(f"the optimizer's learning rate is {rate!r}, which a callback cannot set")
        return float(rate)


class Callbacks:
    """What ``fit`` calls: all callbacks in order; ``steps`` are those of an epoch, if that is known."""

    def __init__(self, callbacks: Sequence[Callback] | None, model: Any, epochs: int, steps: int | None) -> None:
        self._callbacks = list(callbacks or ())
        for callback in self._callbacks:
            if not isinstance(callback, Callback):
                raise TypeError(f"callbacks are objects of distopt.keras.callbacks.Callback, not {callback!r}")
            callback.set_params({"epochs": epochs, "steps": steps})
            callback.set_model(model)

    def call(self, method: str, *args: Any) -> None:
        """Call the method of that name of each callback."""
        for callback in self._callbacks:
            getattr(callback, method)(*args)
