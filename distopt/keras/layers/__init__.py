"""Layers: parts of a model that make their variables when they first see an input."""

from __future__ import annotations

from distopt.keras.layers.base import Input, InputLayer, InputShape, Layer, is_training, training_phase
from distopt.keras.layers.core import Activation, Dense, Embedding, Flatten, ReLU, Softmax
from distopt.keras.layers.images import (
    AveragePooling2D,
    AvgPool2D,
    Conv2D,
    GlobalAveragePooling2D,
    MaxPool2D,
    MaxPooling2D,
)
from distopt.keras.layers.lookup import StringLookup
from distopt.keras.layers.shaping import Dropout, LayerNormalization, Reshape

__all__ = [
    "Activation",
    "AveragePooling2D",
    "AvgPool2D",
    "Conv2D",
    "Dense",
    "Dropout",
    "Embedding",
    "Flatten",
    "GlobalAveragePooling2D",
    "Input",
    "InputLayer",
    "InputShape",
    "Layer",
    "LayerNormalization",
    "MaxPool2D",
    "MaxPooling2D",
    "ReLU",
    "Reshape",
    "Softmax",
    "StringLookup",
    "is_training",
    "training_phase",
]
