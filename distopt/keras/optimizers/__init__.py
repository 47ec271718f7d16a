"""Optimizers by their Keras names; the classes of the legacy generation."""

from __future__ import annotations

from distopt.keras.optimizers import experimental, legacy, schedules
from distopt.keras.optimizers.serialization import deserialize, get, serialize
from distopt.optimizers import SGD, Adadelta, Adagrad, Adam, Adamax, Ftrl, Nadam, Optimizer, RMSprop

__all__ = [
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "Adamax",
    "Ftrl",
    "Nadam",
    "Optimizer",
    "RMSprop",
    "deserialize",
    "experimental",
    "get",
    "legacy",
    "schedules",
    "serialize",
]
