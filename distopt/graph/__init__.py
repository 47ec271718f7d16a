"""Deferred computation: operations that are recorded in a graph and computed by a session, as in TensorFlow 1.

Theory of operation. While a graph is being built (:mod:`distopt.deferral`), variables belong to it, and an eager
function that meets one of its operands is not carried out: the function and its arguments become an ``Operation``, and
a ``Deferred`` stands for the result. A session computes operations by calling those same functions, so there is one
implementation of the arithmetic; gradients come from the same tape, opened when they are computed.

Rules of this package:

- Shapes and dtypes of deferred tensors are found by carrying the function out once on zeros, when it is recorded.
- A run of a session is sequential and always in the same order. Whatever is computed is computed before anything is
  written, unless an input or a control dependency asks for the opposite (:mod:`.session`).
- A variable has one value, which belongs to the session that initialized it. Another session finds it uninitialized;
  initializing it there while the first session is open is an error, not a second value.
"""

from distopt.graph.gradients import gradients
from distopt.graph.graph import (
    Graph,
    GraphKeys,
    disable_eager_execution,
    enable_eager_execution,
    executing_eagerly,
    get_default_graph,
    get_default_session,
    reset_default_graph,
)
from distopt.graph.operations import Deferred, Operation, defer, defers
from distopt.graph.session import IndexedSlicesValue, InteractiveSession, Session
from distopt.graph.variables import GraphVariable

__all__ = [
    "Deferred",
    "Graph",
    "GraphKeys",
    "GraphVariable",
    "IndexedSlicesValue",
    "InteractiveSession",
    "Operation",
    "Session",
    "defer",
    "defers",
    "disable_eager_execution",
    "enable_eager_execution",
    "executing_eagerly",
    "get_default_graph",
    "get_default_session",
    "gradients",
    "reset_default_graph",
]
