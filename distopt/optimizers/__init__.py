"""Optimizers: rules, the engine that runs them, slots, hypers, and the path of a gradient."""

from __future__ import annotations
