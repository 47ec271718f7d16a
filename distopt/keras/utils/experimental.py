"""``DatasetCreator``: data for ``fit`` that a function makes for each input pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from distopt.distribute.inputs import InputContext, InputOptions

__all__ = ["DatasetCreator"]


class DatasetCreator:
    """Given to ``fit`` in place of data: ``dataset_fn(InputContext)`` makes batches of the size of *one replica's*.

    It is called once on each process that hosts replicas; see ``Strategy.distribute_datasets_from_function``.

    Raises: TypeError if ``dataset_fn`` cannot be called, or ``input_options`` are no InputOptions.

    Source: ``tf.keras.utils.experimental.DatasetCreator``.

    >>> import numpy as np
    >>> import distopt as tf
    >>> def dataset_fn(context):
    ...     data = tf.data.Dataset.from_tensor_slices((np.ones((8, 2)), np.ones(8))).repeat()
    ...     return data.batch(context.get_per_replica_batch_size(4))
    >>> with tf.distribute.MirroredStrategy(2).scope():
    ...     model = tf.keras.Sequential([tf.keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> history = model.fit(DatasetCreator(dataset_fn), epochs=2, steps_per_epoch=3, verbose=0)
    >>> int(model.optimizer.iterations)
    6
    """

    def __init__(
        self, dataset_fn: Callable[[InputContext], Iterable[Any]], input_options: InputOptions | None = None
    ) -> None:
        if not callable(dataset_fn):
            raise TypeError(f"dataset_fn must be a function of the input context, not {dataset_fn!r}")
        if input_options is not None and not isinstance(input_options, InputOptions):
            raise TypeError(f"input_options must be distopt.distribute.InputOptions, not {input_options!r}")
        self.dataset_fn = dataset_fn
        self.input_options = input_options
