"""Optimizers by the names that they have in ``tf.keras.optimizers.legacy``."""

from __future__ import annotations

from distopt.optimizers import SGD, Adam, Optimizer

__all__ = ["SGD", "Adam", "Optimizer"]
