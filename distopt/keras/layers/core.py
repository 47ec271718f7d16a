"""Layers that most models have: products with a kernel, activations, tables of rows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypedDict, Unpack

import numpy as np

from distopt import initializers, nn, ops
from distopt.initializers import InitializerLike
from distopt.keras import activations, regularizers
from distopt.keras.activations import ActivationLike
from distopt.keras.layers.base import InputShape, Layer
from distopt.keras.regularizers import RegularizerLike
from distopt.ops.dense import ACTIVATIONS, dense_layers
from distopt.types import Shape
from distopt.variable import Variable


class KernelOptions(TypedDict, total=False):
    """Keyword arguments of layers with kernel and bias; the last four are those of every layer."""

    kernel_initializer: InitializerLike
    bias_initializer: InitializerLike
    kernel_regularizer: RegularizerLike
    bias_regularizer: RegularizerLike
    kernel_constraint: Callable[[Any], Any] | None
    bias_constraint: Callable[[Any], Any] | None
    name: str | None
    trainable: bool
    dtype: Any
    input_shape: Any


class KernelLayer(Layer):
    """Base of layers that multiply by a kernel, add a bias and apply an activation."""

    kernel: Variable

    def __init__(
        self,
        activation: ActivationLike = None,
        use_bias: bool = True,
        *,
        kernel_initializer: InitializerLike = "glorot_uniform",
        bias_initializer: InitializerLike = "zeros",
        kernel_regularizer: RegularizerLike = None,
        bias_regularizer: RegularizerLike = None,
        kernel_constraint: Callable[[Any], Any] | None = None,
        bias_constraint: Callable[[Any], Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.activation = activations.get(activation)
        self.use_bias = use_bias
        self.kernel_initializer = initializers.get(kernel_initializer)
        self.bias_initializer = initializers.get(bias_initializer)
        self.kernel_regularizer = regularizers.get(kernel_regularizer)
        self.bias_regularizer = regularizers.get(bias_regularizer)
        self.kernel_constraint = kernel_constraint
        self.bias_constraint = bias_constraint
        self.bias: Variable | None = None

    def make_weights(self, kernel_shape: Shape) -> None:
        """Make a kernel of that shape and, if the layer has one, a bias as long as its last axis."""
        self.kernel = self.add_weight(
            "kernel",
            kernel_shape,
            self.kernel_initializer,
            self.kernel_regularizer,
            constraint=self.kernel_constraint,
        )
        if self.use_bias:
            length = kernel_shape[-1:]
            self.bias = self.add_weight(
                "bias", length, self.bias_initializer, self.bias_regularizer, constraint=self.bias_constraint
            )


class Dense(KernelLayer):
    """``activation(x @ kernel + bias)``; the kernel's shape is ``[features, units]``.

    An activation given by name is part of one fused operation. Initializers, regularizers and constraints are given by
    keyword, as in :class:`KernelOptions`.

    Raises: ValueError if ``units`` is not positive.
    """

    def __init__(
        self,
        units: int,
        activation: ActivationLike = None,
        use_bias: bool = True,
        **options: Unpack[KernelOptions],
    ) -> None:
        super().__init__(activation, use_bias, **options)
        if units < 1:
            raise ValueError(f"units must be at least 1, not {units}")
        self.units = units
        is_fused = activation is None or activation in ACTIVATIONS
        self._fused = activation if isinstance(activation, str) and is_fused else None
        self._after = None if is_fused else self.activation

    def build(self, input_shape: InputShape) -> None:
        """Make kernel and bias.

        Raises: ValueError if the input has no features to multiply.
        """
        if len(input_shape) < 2 or input_shape[-1] is None:
            raise ValueError(f"{self.name} needs inputs of shape [batch, ..., features], not {list(input_shape)}")
        self.make_weights((input_shape[-1], self.units))

    def call(self, inputs: Any) -> Any:
        """Return ``[..., units]`` for inputs ``[..., features]``."""
        outputs = ops.dense(inputs, self.kernel, self.bias, self._fused)
        return outputs if self._after is None else self._after(outputs)

    @property
    def is_fused(self) -> bool:
        """Whether ``call`` is one operation, which may be made one with the next."""
        return self._after is None and type(self).call is Dense.call


class DenseRun:
    """Built dense layers that follow each other, called as one operation."""

    def __init__(self, layers: Sequence[Dense]) -> None:
        self._layers = layers
        self._activations = tuple(layer._fused or "linear" for layer in layers)

    def __call__(self, inputs: Any) -> Any:
        """Return the outputs of the last layer."""
        weights = [weight for layer in self._layers for weight in (layer.kernel, layer.bias)]
        return dense_layers(inputs, weights, self._activations)


def calls_of(layers: Iterable[Layer]) -> Iterator[Callable[[Any], Any]]:
    """Yield what is to be called for built layers, one after another."""
    for is_fused, run in itertools.groupby(layers, lambda layer: isinstance(layer, Dense) and layer.is_fused):
        members: list[Any] = list(run)
        if is_fused and len(members) > 1:
            yield DenseRun(members)
        else:
            yield from (layer.call_in_phase if layer._takes_training else layer.call for layer in members)


class Activation(Layer):
    """An activation function, by name or as a callable."""

    def __init__(self, activation: ActivationLike, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.activation = activations.get(activation)

    def call(self, inputs: Any) -> Any:
        """Return the activation of ``inputs``."""
        return self.activation(inputs)


class ReLU(Activation):
    """``max(x, 0)``."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(nn.relu, **kwargs)


class Softmax(Activation):
    """Softmax over the last axis."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(nn.softmax, **kwargs)


class Flatten(Layer):
    """``[batch, ...]`` to ``[batch, features]``."""

    def call(self, inputs: Any) -> Any:
        """Return the rows of ``inputs``, each as one dimension."""
        return ops.reshape(inputs, (inputs.shape[0], math.prod(inputs.shape[1:])))


class Embedding(Layer):
    """Rows of a table ``[input_dim, output_dim]``; its gradient is row-sparse.

    Raises: ValueError if a dimension is not positive.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        embeddings_initializer: InitializerLike = "uniform",
        embeddings_regularizer: RegularizerLike = None,
        embeddings_constraint: Callable[[Any], Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if input_dim < 1 or output_dim < 1:
            raise ValueError(f"an embedding needs positive dimensions, not {input_dim} and {output_dim}")
        self.input_dim = input_dim
        self.output_dim = output_dim
        self.embeddings_initializer = initializers.get(embeddings_initializer)
        self.embeddings_regularizer = regularizers.get(embeddings_regularizer)
        self.embeddings_constraint = embeddings_constraint

    def build(self, input_shape: InputShape) -> None:
        """Make the table."""
        del input_shape
        self.embeddings = self.add_weight(
            "embeddings",
            (self.input_dim, self.output_dim),
            self.embeddings_initializer,
            self.embeddings_regularizer,
            constraint=self.embeddings_constraint,
        )

    def call(self, inputs: Any) -> Any:
        """Return ``[..., output_dim]`` for integer inputs ``[...]``; floating-point ones are truncated."""
        indices = np.asarray(inputs)
        return ops.gather(self.embeddings, indices if indices.dtype.kind in "iu" else indices.astype(np.int64))
