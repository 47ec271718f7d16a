"""Models, layers, losses, metrics and optimizers by the names of ``tf.keras``."""

from distopt import initializers
from distopt.keras import (
    activations,
    callbacks,
    layers,
    losses,
    metrics,
    mixed_precision,
    models,
    optimizers,
    regularizers,
    utils,
)
from distopt.keras.layers import Input, Layer
from distopt.keras.losses import Loss
from distopt.keras.metrics import Metric
from distopt.keras.models import Model, Sequential
from distopt.keras.optimizers import Optimizer

__all__ = [
    "Input",
    "Layer",
    "Loss",
    "Metric",
    "Model",
    "Optimizer",
    "Sequential",
    "activations",
    "callbacks",
    "initializers",
    "layers",
    "losses",
    "metrics",
    "mixed_precision",
    "models",
    "optimizers",
    "regularizers",
    "utils",
]
