"""Which of NumPy's own functions a tape can record, by way of autograd's versions of them."""

from __future__ import annotations

from typing import Any

import autograd.numpy as anp
from autograd.core import primitive_vjps
from autograd.tracer import trace_primitives_map

from distopt.autodiff.nodes import NOT_RECORDED

# Functions over lists of arrays, which autograd rewrites in terms of its primitives.
_REWRITTEN = ("append", "column_stack", "concatenate", "hstack", "mean", "stack", "std", "var", "vstack")


def is_differentiable(primitive: Any) -> bool:
    """Return whether autograd has a derivative of ``primitive``, or knows that it is constant."""
    return primitive is not None and (primitive in primitive_vjps or primitive in NOT_RECORDED)


def recordable(function: Any) -> Any:
    """Return autograd's version of a NumPy function, or ``None`` if it cannot be recorded."""
    primitive = trace_primitives_map.get(function)
    if is_differentiable(primitive):
        return primitive
    return getattr(anp, function.__name__) if function.__name__ in _REWRITTEN else None


def unsupported(name: str) -> TypeError:
    """Return the error for a NumPy function that met a followed tensor and cannot be recorded."""
    return TypeError(
        f"{name} cannot be recorded by a gradient tape; use an operation of distopt.ops, "
        "or take the value out with .numpy() if no gradient is to flow through it"
    )
