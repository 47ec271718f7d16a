"""The names of ``tf.nn`` that are offered."""

from __future__ import annotations

from typing import Any

from distopt import ops, random
from distopt.losses import compute_average_loss, scale_regularization_loss
from distopt.ops import (
    elu,
    l2_normalize,
    leaky_relu,
    log_softmax,
    relu,
    relu6,
    selu,
    sigmoid,
    silu,
    softmax,
    softplus,
    softsign,
    tanh,
)
from distopt.tensor import Tensor, to_array


def softmax_cross_entropy_with_logits(labels: Any, logits: Any, axis: int = -1, name: str | None = None) -> Tensor:
    """Return ``-sum(labels * log_softmax(logits))`` over the last axis, ``labels`` being probabilities.

    Raises: ValueError for another axis.
    """
    del name
    if axis not in (-1, logits.ndim - 1):
        raise ValueError(f"softmax_cross_entropy_with_logits is offered for the last axis, not for {axis}")
    return ops.softmax_cross_entropy(labels, logits)


def sparse_softmax_cross_entropy_with_logits(labels: Any, logits: Any, name: str | None = None) -> Tensor:
    """Return ``-log_softmax(logits)[labels]``, ``labels`` being class numbers of one rank less."""
    del name
    return ops.softmax_cross_entropy(to_array(labels), logits)


def embedding_lookup(params: Any, ids: Any, max_norm: float | None = None, name: str | None = None) -> Tensor:
    """Return rows ``ids`` of ``params``; the gradient of a variable is row-sparse.

    Raises: ValueError for ``max_norm``, which is not offered.
    """
    del name
    if max_norm is not None:
        raise ValueError("embedding_lookup is offered without max_norm; use clip_by_norm(rows, max_norm, axes=-1)")
    return ops.gather(params, ids)


def sigmoid_cross_entropy_with_logits(labels: Any, logits: Any, name: str | None = None) -> Tensor:
    """Return ``-(y*log(p) + (1-y)*log(1-p))`` of each element, p being the sigmoid of ``logits``."""
    del name
    return ops.sigmoid_cross_entropy(labels, logits)


def l2_loss(t: Any, name: str | None = None) -> Tensor:
    """Return ``sum(t * t) / 2``."""
    del name
    return ops.multiply(0.5, ops.reduce_sum(ops.square(t)))


def bias_add(value: Any, bias: Any, data_format: str | None = None, name: str | None = None) -> Tensor:
    """Return ``value + bias``; ``bias`` has the length of the last axis.

    Raises: ValueError for channels before the image (``NC...``), or a bias of another shape.
    """
    del name
    _channels_last(data_format)
    value, bias = ops.convert_to_tensor(value), ops.convert_to_tensor(bias)
    if bias.shape != value.shape[-1:]:
        raise ValueError(f"a bias of shape {bias.shape} does not fit a value of shape {value.shape}")
    return ops.add(value, bias)


def moments(x: Any, axes: Any, keepdims: bool = False, name: str | None = None) -> tuple[Tensor, Tensor]:
    """Return mean and variance over ``axes``."""
    del name
    return ops.reduce_mean(x, axes, keepdims), ops.reduce_variance(x, axes, keepdims)


def dropout(x: Any, rate: float, noise_shape: Any = None, seed: int | None = None, name: str | None = None) -> Tensor:
    """Return ``x`` with each element set to zero with probability ``rate``, else divided by ``1 - rate``.

    ``noise_shape`` may have 1 where elements share their fate. The choice is random as that of
    ``distopt.random.uniform``: of its own on every replica, whichever process hosts it.

    Raises: ValueError for a ``rate`` outside of ``0 <= rate < 1``.
    """
    del name
    if not 0 <= rate < 1:
        raise ValueError(f"a rate of dropout is at least 0 and below 1, not {rate}")
    inputs = ops.convert_to_tensor(x)
    if rate == 0:
        return inputs
    kept = random.uniform(inputs.shape if noise_shape is None else noise_shape, seed=seed).numpy() >= rate
    return ops.multiply(inputs, kept.astype(inputs.dtype) * inputs.dtype.type(1 / (1 - rate)))


def conv2d(
    input: Any,
    filters: Any,
    strides: Any,
    padding: str,
    data_format: str = "NHWC",
    dilations: Any = None,
    name: str | None = None,
) -> Tensor:
    """Return the convolution of images with ``filters``; see :func:`distopt.ops.conv2d`.

    Raises: ValueError for another ``data_format`` than ``NHWC``, and as that function does.
    """
    del name
    _channels_last(data_format)
    return ops.conv2d(input, filters, strides, padding, 1 if dilations is None else dilations)


def max_pool2d(
    input: Any, ksize: Any, strides: Any, padding: str, data_format: str = "NHWC", name: str | None = None
) -> Tensor:
    """Return the largest element of each window; see :func:`distopt.ops.max_pool2d`.

    Raises: ValueError for another ``data_format`` than ``NHWC``, and as that function does.
    """
    del name
    _channels_last(data_format)
    return ops.max_pool2d(input, ksize, strides, padding)


def avg_pool2d(
    input: Any, ksize: Any, strides: Any, padding: str, data_format: str = "NHWC", name: str | None = None
) -> Tensor:
    """Return the mean of each window; see :func:`distopt.ops.avg_pool2d`.

    Raises: ValueError for another ``data_format`` than ``NHWC``, and as that function does.
    """
    del name
    _channels_last(data_format)
    return ops.avg_pool2d(input, ksize, strides, padding)


def _channels_last(data_format: str | None) -> None:
    if data_format is not None and data_format.startswith("NC") and data_format != "NC":
        raise ValueError(f"images are offered with their channels last (NHWC), not as {data_format}")


swish = silu


__all__ = [
    "avg_pool2d",
    "bias_add",
    "compute_average_loss",
    "conv2d",
    "dropout",
    "elu",
    "embedding_lookup",
    "l2_loss",
    "l2_normalize",
    "leaky_relu",
    "log_softmax",
    "max_pool2d",
    "moments",
    "relu",
    "relu6",
    "scale_regularization_loss",
    "selu",
    "sigmoid",
    "sigmoid_cross_entropy_with_logits",
    "silu",
    "softmax",
    "softmax_cross_entropy_with_logits",
    "softplus",
    "softsign",
    "sparse_softmax_cross_entropy_with_logits",
    "swish",
    "tanh",
]
