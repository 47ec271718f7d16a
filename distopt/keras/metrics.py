"""Figures that describe how well predictions fit, as means over examples.

A metric measures each example by itself, so that a mean over replicas and batches counts every example once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from distopt import losses, replica_context
from distopt.tensor import Tensor, to_array
from distopt.types import Array
from distopt.variable import Variable, VariableAggregation, VariableSynchronization

MetricLike: TypeAlias = "str | Metric | Callable[[Any, Any], Any]"


class Metric:
    """The mean of ``measure(y_true, y_pred)`` over the examples seen since ``reset_state``.

    What it remembers are two float64 variables, ``total`` and ``count``, synchronized ON_READ: made in the scope of a
    strategy, each replica updates its own, and :meth:`result` is over all replicas of all processes.
    """

    def __init__(self, name: str | None = None) -> None:
        self.name = name or type(self).__name__.lower()
        self.total = self._state("total")
        self.count = self._state("count")

    def _state(self, name: str) -> Variable:
        return Variable(
            np.zeros((), np.float64),
            name=f"{self.name}/{name}",
            synchronization=VariableSynchronization.ON_READ,
            aggregation=VariableAggregation.SUM,
        )

    @property
    def variables(self) -> list[Variable]:
        """What the metric remembers."""
        return [self.total, self.count]

    def measure(self, y_true: Any, y_pred: Any) -> Array:
        """Return one number per example."""
        raise NotImplementedError(f"{type(self).__name__} defines no measure()")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Take in more examples, each counted with its weight."""
        self._add(self.measure(y_true, y_pred), sample_weight)

    def result(self) -> Tensor:
        """Return the mean over the examples of all replicas, float32; 0 without examples.

        A collective, also inside a replica, where all of them have to ask for it.
        """
        return Tensor(np.float32(self._of_all_replicas()))

    def reset_state(self) -> None:
        """Forget the examples seen."""
        for variable in self.variables:
            variable.assign(np.zeros((), np.float64))

    def reset_states(self) -> None:
        """Forget the examples seen; the name that TensorFlow used before ``reset_state``."""
        self.reset_state()

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Take in more examples, and return the mean over all."""
        self.update_state(*args, **kwargs)
        return self.result()

    def _add(self, values: Any, sample_weight: Any) -> None:
        for variable, value in zip((self.total, self.count), weighted_sum(values, sample_weight), strict=True):
            variable.assign_add(np.asarray(value))

    def _of_all_replicas(self) -> Any:
        context = replica_context.current()
        if context.replica is None or context.is_default:
            return self._value()
        return context.replica.merge_call(lambda _: self._value())

    def _value(self) -> float:
        return mean(self.total.numpy(), self.count.numpy())


class FunctionMetric(Metric):
    """The mean of what a function ``(y_true, y_pred) -> one number per example`` returns."""

    def __init__(self, fn: Callable[[Any, Any], Any], name: str | None = None) -> None:
        super().__init__(name or getattr(fn, "__name__", None))
        self._fn = fn

    def measure(self, y_true: Any, y_pred: Any) -> Array:
        """Return what the function returns."""
        return np.asarray(self._fn(y_true, y_pred))


class Mean(Metric):
    """The mean of the values given to ``update_state``, weighted if weights are given.

    >>> mean = Mean()
    >>> mean.update_state([1.0, 3.0])
    >>> float(mean(8.0))
    4.0
    """

    def update_state(self, values: Any, sample_weight: Any = None) -> None:  # type: ignore[override]  # no predictions
        """Take in more values, each counted with its weight."""
        super().update_state(None, values, sample_weight)

    def measure(self, y_true: Any, y_pred: Any) -> Array:
        """Return the values themselves."""
        del y_true
        return np.asarray(to_array(y_pred))

    def __call__(self, values: Any, sample_weight: Any = None) -> Tensor:
        """Take in more values, and return the mean over all."""
        self.update_state(values, sample_weight)
        return self.result()


class Sum(Mean):
    """The sum of the values given to ``update_state``, weighted if weights are given."""

    def _value(self) -> float:
        return float(self.total.numpy())


class MeanSquaredError(FunctionMetric):
    """See ``distopt.losses.mean_squared_error``."""

    def __init__(self, name: str | None = "mean_squared_error") -> None:
        super().__init__(losses.mean_squared_error, name)


class MeanAbsoluteError(FunctionMetric):
    """See ``distopt.losses.mean_absolute_error``."""

    def __init__(self, name: str | None = "mean_absolute_error") -> None:
        super().__init__(losses.mean_absolute_error, name)


class SparseCategoricalAccuracy(Metric):
    """How often the largest prediction is at the label; labels ``[b]`` or ``[b, 1]``."""

    def __init__(self, name: str | None = "sparse_categorical_accuracy") -> None:
        super().__init__(name)

    def measure(self, y_true: Any, y_pred: Any) -> Array:
        """Return 1 for each example that is right, else 0."""
        labels, predictions = to_array(y_true), to_array(y_pred)
        if labels.ndim == predictions.ndim and labels.shape[-1] == 1:
            labels = labels[..., 0]
        return np.asarray(predictions.argmax(axis=-1) == labels)


class CategoricalAccuracy(Metric):
    """How often the largest prediction is at the largest of the label's probabilities."""

    def __init__(self, name: str | None = "categorical_accuracy") -> None:
        super().__init__(name)

    def measure(self, y_true: Any, y_pred: Any) -> Array:
        """Return 1 for each example that is right, else 0."""
        return np.asarray(to_array(y_pred).argmax(axis=-1) == to_array(y_true).argmax(axis=-1))


class BinaryAccuracy(Metric):
    """The share of elements that are on the label's side of ``threshold``."""

    def __init__(self, name: str | None = "binary_accuracy", threshold: float = 0.5) -> None:
        super().__init__(name)
        self.threshold = threshold

    def measure(self, y_true: Any, y_pred: Any) -> Array:
        """Return the share of each example's elements that are right."""
        labels, predictions = to_array(y_true), to_array(y_pred)
        if labels.ndim == predictions.ndim - 1:
            labels = labels[..., np.newaxis]
        right = (predictions > self.threshold) == (labels > self.threshold)
        return np.asarray(right.sum(axis=-1) / max(1, predictions.shape[-1]))


class Accuracy(Metric):
    """How often a prediction equals its label; both are class numbers, alike in shape.

    ``"accuracy"``, given to ``compile`` by name, stands for :class:`FittingAccuracy` instead, as in Keras.
    """

    def __init__(self, name: str | None = "accuracy") -> None:
        super().__init__(name)

    def measure(self, y_true: Any, y_pred: Any) -> Array:
        """Return 1 for each element that is right, else 0.

        Raises: ValueError for shapes that differ.
        """
        labels, predictions = to_array(y_true), to_array(y_pred)
        if labels.shape != predictions.shape:
            raise ValueError(f"labels of shape {labels.shape} do not fit predictions of shape {predictions.shape}")
        return np.asarray(labels == predictions)


class FittingAccuracy(Metric):
    """The accuracy that fits the shapes: binary for one output, categorical for one-hot labels, else sparse."""

    def __init__(self, name: str | None = "accuracy") -> None:
        super().__init__(name)

    def measure(self, y_true: Any, y_pred: Any) -> Array:
        """Return what the fitting accuracy measures."""
        labels, predictions = to_array(y_true), to_array(y_pred)
        if predictions.shape[-1] == 1:
            return BinaryAccuracy().measure(labels, predictions)
        if labels.shape == predictions.shape:
            return CategoricalAccuracy().measure(labels, predictions)
        return SparseCategoricalAccuracy().measure(labels, predictions)


_BY_NAME: dict[str, type[Metric]] = {
    "accuracy": FittingAccuracy,
    "acc": FittingAccuracy,
    "sparse_categorical_accuracy": SparseCategoricalAccuracy,
    "categorical_accuracy": CategoricalAccuracy,
    "binary_accuracy": BinaryAccuracy,
    "mean_squared_error": MeanSquaredError,
    "mse": MeanSquaredError,
    "mean_absolute_error": MeanAbsoluteError,
    "mae": MeanAbsoluteError,
}


def get(identifier: MetricLike) -> Metric:
    """Return the metric of a name, of a function ``(y_true, y_pred) -> one number per example``, or the object itself.

    Raises: ValueError for an unknown name; TypeError for anything else.
    """
    if isinstance(identifier, Metric):
        return identifier
    if isinstance(identifier, str):
        if identifier not in _BY_NAME:
            raise ValueError(f"unknown metric {identifier!r}; known are {', '.join(_BY_NAME)}")
        return _BY_NAME[identifier](name=identifier)
    if callable(identifier):
        return FunctionMetric(identifier)
    raise TypeError(f"a metric is a name, a metric object or a function, not {identifier!r}")


def weighted_sum(values: Any, sample_weight: Any = None) -> tuple[float, float]:
    """Return ``(sum of value * weight, sum of weights)`` in float64."""
    values = np.asarray(values, np.float64)
    if sample_weight is None:
        return float(values.sum()), float(values.size)
    weights = np.asarray(sample_weight, np.float64)
    weights = weights.reshape(weights.shape + (1,) * (values.ndim - weights.ndim))
    weights = np.broadcast_to(weights, values.shape)
    return float((values * weights).sum()), float(weights.sum())


def mean(total: Any, count: Any) -> float:
    """Return what a sum and a count, or a sum of weights, come to; 0 where nothing was counted.

    >>> mean(0.25, 0.5), mean(0.0, 0.0)
    (0.5, 0.0)
    """
    return float(total) / float(count) if count else 0.0


__all__ = [
    "Accuracy",
    "BinaryAccuracy",
    "CategoricalAccuracy",
    "FittingAccuracy",
    "FunctionMetric",
    "Mean",
    "MeanAbsoluteError",
    "MeanSquaredError",
    "Metric",
    "MetricLike",
    "SparseCategoricalAccuracy",
    "get",
]
