"""Layers for images ``[batch, height, width, channels]``."""

from __future__ import annotations

from typing import Any, Unpack

from distopt import ops
from distopt.keras.activations import ActivationLike
from distopt.keras.layers.base import InputShape, Layer
from distopt.keras.layers.core import KernelLayer, KernelOptions
from distopt.ops.convolution import pair_of


class Conv2D(KernelLayer):
    """``activation(convolution of the images with the kernel + bias)``.

    Shapes: ``[batch, height, width, channels]`` to ``[batch, ..., ..., filters]``; the kernel is ``[kernel height,
    kernel width, channels, filters]``. ``kernel_size``, ``strides`` and ``dilation_rate`` are a number or ``(down,
    across)``; ``padding`` is ``"valid"`` or ``"same"``. Initializers, regularizers and constraints are given by
    keyword, as in :class:`~distopt.keras.layers.core.KernelOptions`.

    Raises: ValueError for a number of filters that is not positive, images with channels first, or groups.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: Any,
        strides: Any = 1,
        padding: str = "valid",
        data_format: str | None = None,
        dilation_rate: Any = 1,
        groups: int = 1,
        activation: ActivationLike = None,
        use_bias: bool = True,
        **options: Unpack[KernelOptions],
    ) -> None:
        super().__init__(activation, use_bias, **options)
        _channels_last(data_format)
        if filters < 1:
            raise ValueError(f"a convolution has at least 1 filter, not {filters}")
        if groups != 1:
            raise ValueError("Conv2D is offered without groups; split the channels and concat what comes out")
        self.filters = filters
        self.kernel_size = pair_of(kernel_size, "kernel_size")
        self.strides = pair_of(strides, "strides")
        self.padding = padding
        self.dilation_rate = pair_of(dilation_rate, "dilation_rate")

    def build(self, input_shape: InputShape) -> None:
        """Make kernel and bias.

        Raises: ValueError for inputs that are no images.
        """
        if len(input_shape) != 4 or input_shape[-1] is None:
            raise ValueError(f"{self.name} needs images [batch, height, width, channels], not {list(input_shape)}")
        self.make_weights((*self.kernel_size, input_shape[-1], self.filters))

    def call(self, inputs: Any) -> Any:
        """Return the images of the filters."""
        outputs = ops.conv2d(inputs, self.kernel, self.strides, self.padding, self.dilation_rate)
        return self.activation(outputs if self.bias is None else outputs + self.bias)


class _Pooling2D(Layer):
    def __init__(
        self,
        pool_size: Any = 2,
        strides: Any = None,
        padding: str = "valid",
        data_format: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        _channels_last(data_format)
        self.pool_size = pair_of(pool_size, "pool_size")
        self.strides = self.pool_size if strides is None else pair_of(strides, "strides")
        self.padding = padding


class MaxPooling2D(_Pooling2D):
    """The largest element of each window; ``strides`` are by default the windows' size, so that they do not overlap.

    Raises: ValueError for images with channels first, or sizes that are not positive.
    """

    def call(self, inputs: Any) -> Any:
        """Return ``[batch, windows down, windows across, channels]``."""
        return ops.max_pool2d(inputs, self.pool_size, self.strides, self.padding)


class AveragePooling2D(_Pooling2D):
    """The mean of each window, padding left out; otherwise as :class:`MaxPooling2D`.

    Raises: ValueError as :class:`MaxPooling2D`.
    """

    def call(self, inputs: Any) -> Any:
        """Return ``[batch, windows down, windows across, channels]``."""
        return ops.avg_pool2d(inputs, self.pool_size, self.strides, self.padding)


class GlobalAveragePooling2D(Layer):
    """The mean of each channel over the image: ``[batch, height, width, channels]`` to ``[batch, channels]``."""

    def call(self, inputs: Any) -> Any:
        """Return the means."""
        return ops.reduce_mean(inputs, axis=[1, 2])


def _channels_last(data_format: str | None) -> None:
    if data_format not in (None, "channels_last"):
        raise ValueError(f"images are offered with channels_last, not {data_format!r}")


MaxPool2D = MaxPooling2D
AvgPool2D = AveragePooling2D
