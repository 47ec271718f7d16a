"""Data-parallel training for NumPy gradients, with TensorFlow's optimizer and strategy semantics."""

from __future__ import annotations

__version__ = "0.1.0"
