"""Models, layers, losses, metrics and optimizers by the names of ``tf.keras``."""

from distopt import initializers
from distopt.keras import activations, layers, losses, metrics, models, optimizers, regularizers
from distopt.keras.layers import Input
from distopt.keras.models import Model, Sequential

__all__ = [
    "Input",
    "Model",
    "Sequential",
    "activations",
    "initializers",
    "layers",
    "losses",
    "metrics",
    "models",
    "optimizers",
    "regularizers",
]
