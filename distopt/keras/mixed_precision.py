"""The optimizer of scaled losses, where TensorFlow has it. There are no policies: variables have the dtype they get."""

from __future__ import annotations

from distopt.optimizers import LossScaleOptimizer

__all__ = ["LossScaleOptimizer"]
