"""Keras' names for the losses, and how to find one by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from distopt.losses import (
    BinaryCrossentropy,
    CategoricalCrossentropy,
    Huber,
    Loss,
    LossFunctionWrapper,
    MeanAbsoluteError,
    MeanSquaredError,
    Reduction,
    SparseCategoricalCrossentropy,
    binary_crossentropy,
    categorical_crossentropy,
    huber,
    mean_absolute_error,
    mean_squared_error,
    sparse_categorical_crossentropy,
)

mse = mean_squared_error
mae = mean_absolute_error

LossLike: TypeAlias = "str | Loss | Callable[[Any, Any], Any]"

_BY_NAME: dict[str, type[Loss]] = {
    "mean_squared_error": MeanSquaredError,
    "mse": MeanSquaredError,
    "mean_absolute_error": MeanAbsoluteError,
    "mae": MeanAbsoluteError,
    "huber": Huber,
    "huber_loss": Huber,
    "binary_crossentropy": BinaryCrossentropy,
    "categorical_crossentropy": CategoricalCrossentropy,
    "sparse_categorical_crossentropy": SparseCategoricalCrossentropy,
}


def get(identifier: LossLike) -> Loss:
    """Return the loss object of a name, of a function ``(y_true, y_pred) -> losses per example``, or the object itself.

    Raises: ValueError for an unknown name; TypeError for anything else.
    """
    if isinstance(identifier, Loss):
        return identifier
    if isinstance(identifier, str):
        by_class_name = {cls.__name__: cls for cls in _BY_NAME.values()}
        found = _BY_NAME.get(identifier) or by_class_name.get(identifier)
        if found is None:
            raise ValueError(f"unknown loss {identifier!r}; known are {', '.join(_BY_NAME)}")
        return found()
    if callable(identifier):
        return LossFunctionWrapper(identifier, name=getattr(identifier, "__name__", None))
    raise TypeError(f"a loss is a name, a loss object or a function, not {identifier!r}")


__all__ = [
    "BinaryCrossentropy",
    "CategoricalCrossentropy",
    "Huber",
    "Loss",
    "LossLike",
    "MeanAbsoluteError",
    "MeanSquaredError",
    "Reduction",
    "SparseCategoricalCrossentropy",
    "binary_crossentropy",
    "categorical_crossentropy",
    "get",
    "huber",
    "mae",
    "mean_absolute_error",
    "mean_squared_error",
    "mse",
    "sparse_categorical_crossentropy",
]
