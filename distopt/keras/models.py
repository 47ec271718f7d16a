"""``Sequential``: layers one after another; ``Functional``: between inputs and outputs, as they were called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from distopt.keras import symbolic
from distopt.keras.layers import InputLayer, InputShape, Layer, training_phase
from distopt.keras.layers.core import calls_of
from distopt.keras.training import History, Model, functional_class
from distopt.nest import flatten

__all__ = ["Functional", "History", "Model", "Sequential"]


class Sequential(Model):
    """Layers, each called with what the one before returned.

    Variables are made at the first call, by ``build``, or as soon as the first layer tells its ``input_shape``.
    """

    def __init__(self, layers: Sequence[Any] = (), name: str | None = None) -> None:
        super().__init__(name=name)
        self._layers: list[Layer] = []
        self._calls: tuple[Callable[[Any], Any], ...] = ()
        for layer in layers:
            self.add(layer)

    @property
    def layers(self) -> list[Layer]:
        """The layers in order, without an ``Input``."""
        return [layer for layer in self._layers if not isinstance(layer, InputLayer)]

    def add(self, layer: Any) -> None:
        """Append a layer, or first an ``Input``; if the input's shape is known, its variables are made now.

        Raises: TypeError for anything but a layer; ValueError for a layer that is in the model already.
        """
        if symbolic.is_placeholder(layer):
            layer = InputLayer(name=layer.op.name, dtype=layer.dtype, input_shape=layer.static_shape[1:])
        if not isinstance(layer, Layer):
            raise TypeError(f"a Sequential is made of layers, not {layer!r}")
        if any(layer is other for other in self._layers):
            raise ValueError(f"{layer.name} is in {self.name} already")
        if not self._layers:
            self.batch_input_shape = layer.batch_input_shape
            self.dtype = layer.dtype
        self._layers.append(layer)
        self._track(layer)
        self.built = False
        if self.batch_input_shape is not None:
            self.build(self.batch_input_shape)

    def build(self, input_shape: InputShape) -> None:
        """Make the variables for inputs of that shape, the first dimension being the batch's, which may be ``None``.

        Raises: ValueError if another dimension is not known.
        """
        row = tuple(input_shape[1:])
        if None in row:
            raise ValueError(f"only the first dimension of an input may be unknown, not {list(input_shape)}")
        self._build_layers(np.zeros((1, *(n for n in row if n is not None)), self.dtype))
        self.batch_input_shape = (None, *row)
        self.built = True

    def call(self, inputs: Any) -> Any:
        """Return the outputs of the last layer."""
        for call in self._calls:
            inputs = call(inputs)
        return inputs

    def _build_layers(self, inputs: Any) -> None:
        # Each layer sees an input like those to come, so none has to tell the shape of its outputs beforehand.
        # Not as in training: what is random there would be drawn once more by whoever builds.
        with training_phase(False):
            for layer in self._layers:
                inputs = layer(inputs)
        # From now on the layers' checks are done; what is left of a call is their arithmetic.
        self._calls = tuple(calls_of(self._layers))


class Functional(Model):
    """What ``Model(inputs, outputs)`` makes: the layers and operations between ``keras.Input`` tensors and outputs.

    ``inputs`` and ``outputs`` are symbolic tensors, or structures of them. Called with a dictionary where ``inputs`` is
    one, the values are found by their names; otherwise in order.

    Raises: TypeError and ValueError as :class:`~distopt.keras.symbolic.Computation`.

    >>> import distopt as tf
    >>> x = tf.keras.Input(shape=(3,))
    >>> model = tf.keras.Model(x, tf.reduce_sum(tf.keras.layers.Dense(4, kernel_initializer="ones")(x), axis=1))
    >>> model(np.ones((2, 3))).numpy()
    array([12., 12.], dtype=float32)
    """

    def __init__(self, inputs: Any, outputs: Any, name: str | None = None) -> None:
        super().__init__(name=name)
        self.inputs = inputs
        self.outputs = outputs
        self._placeholders = flatten(inputs)
        self._compute = symbolic.Computation(self._placeholders, outputs)
        for layer in self._compute.layers:
            self._track(layer)
        self.built = True

    @property
    def layers(self) -> list[Layer]:
        """The layers, in the order in which they were called."""
        return self._compute.layers

    def _cast(self, inputs: Any) -> Any:
        return inputs  # each in the dtype of its own placeholder

    def call(self, inputs: Any) -> Any:
        """Return the outputs.

        Raises: ValueError for too few or too many inputs, or a dictionary without one of them.
        """
        if isinstance(self.inputs, dict) and isinstance(inputs, dict):
            if missing := sorted(set(self.inputs) - set(inputs)):
                raise ValueError(f"{self.name} was not given its inputs {missing}")
            given = [inputs[name] for name in sorted(self.inputs)]  # as flatten() has them
        else:
            given = [inputs] if len(self._placeholders) == 1 and not isinstance(inputs, dict) else flatten(inputs)
        if len(given) != len(self._placeholders):
            raise ValueError(f"{self.name} has {len(self._placeholders)} inputs, and was given {len(given)}")
        return self._compute([symbolic.as_input(v, p) for v, p in zip(given, self._placeholders, strict=True)])


functional_class[:] = [Functional]
