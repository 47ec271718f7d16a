"""The names of ``tf.nn`` that are offered."""

from __future__ import annotations

from typing import Any

from distopt import ops
from distopt.losses import compute_average_loss, scale_regularization_loss
from distopt.ops import log_softmax, relu, sigmoid, softmax, tanh
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


def embedding_lookup(params: Any, ids: Any, name: str | None = None) -> Tensor:
    """Return rows ``ids`` of ``params``; the gradient of a variable is row-sparse."""
    del name
    return ops.gather(params, ids)


def l2_loss(t: Any, name: str | None = None) -> Tensor:
    """Return ``sum(t * t) / 2``."""
    del name
    return 0.5 * ops.reduce_sum(ops.square(t))


__all__ = [
    "compute_average_loss",
    "embedding_lookup",
    "l2_loss",
    "log_softmax",
    "relu",
    "scale_regularization_loss",
    "sigmoid",
    "softmax",
    "softmax_cross_entropy_with_logits",
    "sparse_softmax_cross_entropy_with_logits",
    "tanh",
]
