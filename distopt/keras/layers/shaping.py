"""Layers without a product: dropout, normalization, another shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from distopt import nn, ops
from distopt.keras.layers.base import InputShape, Layer
from distopt.variable import Variable


class Dropout(Layer):
    """While training, zeroes elements with probability ``rate`` and divides the others by ``1 - rate``.

    The choice is random as that of ``distopt.nn.dropout``: each replica's own, a function of the seed, the replica and
    how much it drew before, on whichever process it is hosted.

    Raises: ValueError for a ``rate`` outside of ``0 <= rate < 1``.

    Source: Srivastava et al. 2014.
    """

    def __init__(self, rate: float, noise_shape: Any = None, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ValueError(f"a rate of dropout is at least 0 and below 1, not {rate}")
        self.rate = rate
        self.noise_shape = noise_shape
        self.seed = seed

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Return ``inputs``, thinned out if ``training``."""
        rate = self.rate if training else 0.0
        return nn.dropout(inputs, rate, self.noise_shape, self.seed)


class LayerNormalization(Layer):
    """``gamma * (x - mean) / sqrt(variance + epsilon) + beta``, mean and variance over the last axis.

    Raises: ValueError for another axis.

    Source: Ba et al. 2016.
    """

    def __init__(
        self, axis: int = -1, epsilon: float = 1e-3, center: bool = True, scale: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if axis != -1:
            raise ValueError(f"LayerNormalization is offered over the last axis, not over {axis}")
        self.epsilon = epsilon
        self.center = center
        self.scale = scale
        self.gamma: Variable | None = None
        self.beta: Variable | None = None

    def build(self, input_shape: InputShape) -> None:
        """Make ``gamma`` and ``beta``.

        Raises: ValueError if the length of the last axis is not known.
        """
        if input_shape[-1] is None:
            raise ValueError(f"{self.name} needs inputs whose last axis is known, not {list(input_shape)}")
        if self.scale:
            self.gamma = self.add_weight("gamma", (input_shape[-1],), "ones")
        if self.center:
            self.beta = self.add_weight("beta", (input_shape[-1],), "zeros")

    def call(self, inputs: Any) -> Any:
        """Return the normalized inputs."""
        centred = inputs - ops.reduce_mean(inputs, axis=-1, keepdims=True)
        variance = ops.reduce_mean(ops.square(centred), axis=-1, keepdims=True)
        outputs = centred * ops.rsqrt(variance + self.epsilon)
        outputs = outputs if self.gamma is None else outputs * self.gamma
        return outputs if self.beta is None else outputs + self.beta


class Reshape(Layer):
    """``[batch, ...]`` to ``[batch, *target_shape]``; one length may be -1.

    Raises: ValueError when called, if the elements of an input do not fill the shape.
    """

    def __init__(self, target_shape: Sequence[int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.target_shape = tuple(target_shape)

    def call(self, inputs: Any) -> Any:
        """Return the inputs in the new shape."""
        known = [length for length in self.target_shape if length != -1]
        free = math.prod(inputs.shape[1:]) // max(1, math.prod(known))
        return ops.reshape(inputs, (inputs.shape[0], *(free if n == -1 else n for n in self.target_shape)))
