"""Optimizers by their Keras names: the classes of the legacy generation, and those that only Keras 3 has."""

from __future__ import annotations

from distopt.keras.optimizers import experimental, legacy, schedules
from distopt.keras.optimizers.serialization import deserialize, get, serialize
from distopt.optimizers import (
    SGD,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    Ftrl,
    Lamb,
    Lion,
    LossScaleOptimizer,
    LossScaleOptimizerV3,
    Muon,
    Nadam,
    Optimizer,
    RMSprop,
)

__all__ = [
    "SGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Ftrl",
    "Lamb",
    "Lion",
    "LossScaleOptimizer",
    "LossScaleOptimizerV3",
    "Muon",
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
