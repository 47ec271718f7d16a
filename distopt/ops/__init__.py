"""Differentiable operations on tensors, variables, arrays and numbers.

``call`` runs any autograd primitive; the others are the operations of our own.
"""

from __future__ import annotations

from distopt.ops.dense import dense
from distopt.tensor import call

__all__ = ["call", "dense"]
