"""Losses per example, what becomes of them, and how they scale with the global batch.

A loss function returns one number per example: ``[b]`` for predictions ``[b, d]``. Over replicas there is one right
way to make a step's loss of these: each replica divides its *sum* by the size of the *global* batch, and gradients
are summed; so the mean over a replica's own examples, the default elsewhere, is refused under a strategy.

Source: the formulas of ``tf.keras.losses``; ``tf.nn.compute_average_loss`` and ``scale_regularization_loss``.
"""

from __future__ import annotations

import enum
import operator
from collections.abc import Callable
from typing import Any

import autograd.numpy as anp
import numpy as np

from distopt import ops, replica_context
from distopt.errors import LocalMeanLossError
from distopt.tensor import Operand, Tensor, to_array
from distopt.types import Array

EPSILON = 1e-7
"""Keras' fuzz factor: probabilities are kept this far from 0 and 1."""


class Reduction(enum.StrEnum):
    """What a loss object makes of the losses per example."""

    AUTO = "auto"
    NONE = "none"
    SUM = "sum"
    SUM_OVER_BATCH_SIZE = "sum_over_batch_size"

    @classmethod
    def parse(cls, value: str) -> Reduction:
        """Return the member of that value.

        Raises: ValueError for anything else.
        """
        if value not in list(cls):
            raise ValueError(f"reduction must be one of {', '.join(cls)}, not {value!r}")
        return cls(value)


# ---------------------------------------------------------------- functions: one loss per example


def mean_squared_error(y_true: Any, y_pred: Any) -> Tensor:
    """Return the mean over the last axis of ``(y_true - y_pred)**2``; shape ``[..., d] -> [...]``.

    >>> mean_squared_error([[1.0, 3.0]], [[2.0, 5.0]]).numpy()
    array([2.5], dtype=float32)
    """
    y_pred, y_true = _like_predictions(y_true, y_pred)
    return ops.reduce_mean(ops.square(y_pred - y_true), axis=-1)


def mean_absolute_error(y_true: Any, y_pred: Any) -> Tensor:
    """Return the mean over the last axis of ``|y_true - y_pred|``."""
    y_pred, y_true = _like_predictions(y_true, y_pred)
    return ops.reduce_mean(ops.abs(y_pred - y_true), axis=-1)


def huber(y_true: Any, y_pred: Any, delta: float = 1.0) -> Tensor:
    """Return the mean over the last axis of ``e*e/2`` where ``|e| <= delta``, else ``delta*|e| - delta*delta/2``.

    Source: Huber 1964.
    """
    y_pred, y_true = _like_predictions(y_true, y_pred)
    error = y_pred - y_true
    size = ops.abs(error)
    small = np.asarray(size) <= delta
    return ops.reduce_mean(ops.where(small, 0.5 * ops.square(error), delta * size - 0.5 * delta * delta), axis=-1)


def binary_crossentropy(y_true: Any, y_pred: Any, from_logits: bool = False, label_smoothing: float = 0.0) -> Tensor:
    """Return the mean over the last axis of ``-(y*log(p) + (1-y)*log(1-p))``.

    With ``from_logits`` p is the sigmoid of ``y_pred``, in the form ``max(x,0) - x*y + log(1 + exp(min(-x,x)))``,
    which does not overflow, and whose derivative is right at x = 0, too. ``label_smoothing`` s replaces y by
    ``y*(1-s) + s/2``.
    """
    y_pred, y_true = _like_predictions(y_true, y_pred)
    if label_smoothing:
        y_true = y_true * (1.0 - label_smoothing) + 0.5 * label_smoothing
    if from_logits:
        log1p = ops.call(anp.log1p, ops.exp(ops.minimum(-y_pred, y_pred)))
        losses = ops.maximum(y_pred, 0.0) - y_pred * y_true + log1p
    else:
        p = _clipped(y_pred)
        losses = -(y_true * ops.log(p + EPSILON) + (1.0 - y_true) * ops.log(1.0 - p + EPSILON))
    return ops.reduce_mean(losses, axis=-1)


def categorical_crossentropy(
    y_true: Any, y_pred: Any, from_logits: bool = False, label_smoothing: float = 0.0
) -> Tensor:
    """Return ``-sum(y*log(p))`` over the last axis, ``y_true`` being probabilities (one-hot, usually).

    With ``from_logits`` p is the softmax of ``y_pred``; else ``y_pred`` divided by its sum. ``label_smoothing`` s
    replaces y by ``y*(1-s) + s/classes``.
    """
    y_pred, y_true = _like_predictions(y_true, y_pred)
    if label_smoothing:
        y_true = y_true * (1.0 - label_smoothing) + label_smoothing / y_pred.shape[-1]
    if from_logits:
        return ops.softmax_cross_entropy(y_true, y_pred)
    p = _clipped(y_pred / ops.reduce_sum(y_pred, axis=-1, keepdims=True))
    return -ops.reduce_sum(y_true * ops.log(p), axis=-1)


def sparse_categorical_crossentropy(y_true: Any, y_pred: Any, from_logits: bool = False) -> Tensor:
    """Return ``-log(p[y])``, ``y_true`` being class numbers.

    Shapes: ``y_true`` ``[...]`` or ``[..., 1]``, ``y_pred`` ``[..., classes]``; the result is ``[...]``.

    With ``from_logits`` p is the softmax of ``y_pred``; else ``y_pred``, which is a probability, divided by its sum.
    """
    y_pred = _tensor(y_pred)
    labels = to_array(y_true)
    if labels.ndim == y_pred.ndim and labels.shape[-1] == 1:
        labels = labels[..., 0]
    if labels.dtype.kind not in "iu":
        labels = labels.astype(np.int64)
    logits = y_pred if from_logits else ops.log(_clipped(y_pred))
    return ops.softmax_cross_entropy(labels, logits)


# ---------------------------------------------------------------- objects: a function and a reduction


class Loss:
    """Base of loss objects; a subclass defines ``call(y_true, y_pred)``, one loss per example.

    Raises: ValueError for an unknown ``reduction``.
    """

    def __init__(self, reduction: str = Reduction.AUTO, name: str | None = None) -> None:
        self.reduction = Reduction.parse(reduction)
        self.name = name

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Return the losses per example."""
        raise NotImplementedError(f"{type(self).__name__} defines no call()")

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Tensor:
        """Return the losses, each times its weight, reduced.

        ``none``: as they are. ``sum``: their sum. ``sum_over_batch_size`` and ``auto``: their sum divided by their
        number; weights do not change the divisor.

        Raises: LocalMeanLossError, a ValueError, for the last two where a strategy is active.
        """
        by_number = self.reduction in (Reduction.AUTO, Reduction.SUM_OVER_BATCH_SIZE)
        if by_number and replica_context.has_strategy():
            raise LocalMeanLossError(
                f"reduction {self.reduction.value!r} divides by the number of this replica's examples, which gives a "
                "wrong loss under a strategy: use reduction 'sum' or 'none' and divide by the size of the global batch "
                "(distopt.nn.compute_average_loss), or compile and fit"
            )
        losses = weighted(self.call(y_true, y_pred), sample_weight)
        if self.reduction is Reduction.NONE:
            return losses
        return _divided_sum(losses, losses.size) if by_number else ops.reduce_sum(losses)


class LossFunctionWrapper(Loss):
    """A function ``(y_true, y_pred, **kwargs) -> losses per example`` as a loss object."""

    def __init__(
        self, fn: Callable[..., Any], reduction: str = Reduction.AUTO, name: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(reduction, name)
        self.fn = fn
        self._kwargs = kwargs

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Return what the function returns."""
        return self.fn(y_true, y_pred, **self._kwargs)


class MeanSquaredError(LossFunctionWrapper):
    """See :func:`mean_squared_error`."""

    def __init__(self, reduction: str = Reduction.AUTO, name: str | None = "mean_squared_error") -> None:
        super().__init__(mean_squared_error, reduction, name)


class MeanAbsoluteError(LossFunctionWrapper):
    """See :func:`mean_absolute_error`."""

    def __init__(self, reduction: str = Reduction.AUTO, name: str | None = "mean_absolute_error") -> None:
        super().__init__(mean_absolute_error, reduction, name)


class Huber(LossFunctionWrapper):
    """See :func:`huber`."""

    def __init__(self, delta: float = 1.0, reduction: str = Reduction.AUTO, name: str | None = "huber_loss") -> None:
        super().__init__(huber, reduction, name, delta=delta)


class BinaryCrossentropy(LossFunctionWrapper):
    """See :func:`binary_crossentropy`."""

    def __init__(
        self,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        reduction: str = Reduction.AUTO,
        name: str | None = "binary_crossentropy",
    ) -> None:
        super().__init__(binary_crossentropy, reduction, name, from_logits=from_logits, label_smoothing=label_smoothing)


class CategoricalCrossentropy(LossFunctionWrapper):
    """See :func:`categorical_crossentropy`."""

    def __init__(
        self,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        reduction: str = Reduction.AUTO,
        name: str | None = "categorical_crossentropy",
    ) -> None:
        super().__init__(
            categorical_crossentropy, reduction, name, from_logits=from_logits, label_smoothing=label_smoothing
        )


class SparseCategoricalCrossentropy(LossFunctionWrapper):
    """See :func:`sparse_categorical_crossentropy`."""

    def __init__(
        self,
        from_logits: bool = False,
        reduction: str = Reduction.AUTO,
        name: str | None = "sparse_categorical_crossentropy",
    ) -> None:
        super().__init__(sparse_categorical_crossentropy, reduction, name, from_logits=from_logits)


# ---------------------------------------------------------------- scaling


def compute_average_loss(per_example_loss: Any, sample_weight: Any = None, global_batch_size: Any = None) -> Tensor:
    """Return ``sum(per_example_loss * sample_weight) / global_batch_size``: this replica's part of a step's loss.

    Shapes: ``per_example_loss`` ``[b, ...]``; the result is a scalar of its dtype. Without ``global_batch_size``,
    that is ``b`` times the number of replicas, right only where every replica has the same number of rows. A size of
    0 gives 0.

    Raises: ValueError for a scalar loss, or a size that is not a scalar or negative; TypeError for one that is not an
        integer; ReplicaContextError in a cross-replica context without a size.
    """
    losses = _tensor(per_example_loss)
    shape = losses.shape
    if not shape:
        raise ValueError("per_example_loss is a scalar: pass the losses before they are reduced, one per example")
    if global_batch_size is None:
        replica = replica_context.current_replica("compute_average_loss without global_batch_size")
        size = shape[0] * replica.num_replicas_in_sync
    else:
        size = _batch_size(global_batch_size)
    return _divided_sum(losses if sample_weight is None else weighted(losses, sample_weight), size)


def scale_regularization_loss(regularization_loss: Any) -> Tensor:
    """Return ``sum(regularization_loss)`` divided by the number of replicas, since replicas are summed.

    Raises: ReplicaContextError in a cross-replica context.
    """
    replica = replica_context.current_replica("scale_regularization_loss")
    return _divided_sum(_tensor(regularization_loss), replica.num_replicas_in_sync)


def weighted(losses: Any, sample_weight: Any = None) -> Tensor:
    """Return ``losses`` times ``sample_weight``, whose last axis of length 1 or missing last axes are made to fit."""
    per_example = _tensor(losses)
    if sample_weight is None:
        return per_example
    weights = to_array(sample_weight).astype(per_example.dtype)
    if weights.ndim == per_example.ndim + 1 and weights.shape[-1] == 1:
        weights = weights[..., 0]
    if 0 < weights.ndim < per_example.ndim:
        weights = weights.reshape(weights.shape + (1,) * (per_example.ndim - weights.ndim))
    return per_example * weights


def _divided_sum(losses: Tensor, divisor: int) -> Tensor:
    return ops.divided_sum(losses, divisor) if divisor else ops.reduce_sum(losses) * 0.0


def _batch_size(value: Any) -> int:
    if type(value) is int and value >= 0:
        return value
    array = to_array(value)
    if array.ndim != 0:
        raise ValueError(f"global_batch_size must be a scalar, not of shape {list(array.shape)}")
    if array.dtype.kind not in "iu":
        raise TypeError(f"global_batch_size must be an integer, not {array.dtype} {array}")
    if array < 0:
        raise ValueError(f"global_batch_size must not be negative: {array}")
    return operator.index(array.item())


def _tensor(value: Any) -> Tensor:
    """Return ``value`` as a tensor with floating-point arithmetic: integers become float32."""
    tensor = value if isinstance(value, Tensor) else ops.convert_to_tensor(value)
    return tensor if tensor.dtype.kind not in "biu" else Tensor(tensor.numpy().astype(np.float32))


def _like_predictions(y_true: Any, y_pred: Any) -> tuple[Any, Any]:
    """Return ``(y_pred, y_true)``, labels having the predictions' dtype, and their rank where one axis is missing."""
    y_pred = _tensor(y_pred)
    if not isinstance(y_true, Operand):
        labels: Array = to_array(y_true)
        if labels.ndim == y_pred.ndim - 1 and y_pred.shape[-1] == 1:
            labels = labels[..., np.newaxis]
        return y_pred, labels.astype(y_pred.dtype, copy=False)
    if y_true.ndim == y_pred.ndim - 1 and y_pred.shape[-1] == 1:
        y_true = ops.reshape(y_true, (*y_true.shape, 1))
    return y_pred, y_true if y_true.dtype == y_pred.dtype else ops.cast(y_true, y_pred.dtype)


def _clipped(probabilities: Any) -> Any:
    return ops.clip_by_value(probabilities, EPSILON, 1.0 - EPSILON)
