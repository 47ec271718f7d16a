"""Optimizers by their Keras names; the classes of the legacy generation."""

from __future__ import annotations

from distopt.keras.optimizers import legacy, schedules
from distopt.optimizers import SGD, Adam, Optimizer

__all__ = ["SGD", "Adam", "Optimizer", "legacy", "schedules"]
