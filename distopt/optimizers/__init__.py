"""Optimizers: rules, the engine that runs them, slots, hypers, and the path of a gradient."""

from __future__ import annotations

from distopt.optimizers.adam import Adam
from distopt.optimizers.engine import Engine, get_engine, set_default_engine
from distopt.optimizers.keras_legacy import Optimizer
from distopt.optimizers.sgd import SGD

__all__ = ["SGD", "Adam", "Engine", "Optimizer", "get_engine", "set_default_engine"]
