"""The global step: an integer variable that counts the steps of all replicas as one."""

from __future__ import annotations

from typing import Any

import numpy as np

from distopt import deferral, replica_context
from distopt.graph import Deferred, Graph, GraphKeys, GraphVariable, get_default_graph
from distopt.tensor import Operand
from distopt.variable import Variable, VariableAggregation


def count_step(global_step: Any) -> None:
    """Add exactly 1 to ``global_step``, once for all replicas; called by every replica after an update."""
    context = replica_context.current()
    if context.replica is None:
        _add_one(context.strategy, global_step)
    else:
        context.replica.merge_call(_add_one, (global_step,))


def get_global_step(graph: Graph | None = None) -> Any:
    """Return the global step of ``graph``, by default the default one; None if there is none.

    Raises: TypeError as :func:`assert_global_step`; RuntimeError if there are several.
    """
    graph = graph or get_default_graph()
    found = graph.get_collection(GraphKeys.GLOBAL_STEP)
    if len(found) > 1:
        raise RuntimeError(f"the collection {GraphKeys.GLOBAL_STEP!r} has {len(found)} members; one is the global step")
    if not found:
        found = [v for v in graph.get_collection(GraphKeys.GLOBAL_VARIABLES) if v.name == "global_step:0"]
    if not found:
        return None
    assert_global_step(found[0])
    return found[0]


def create_global_step(graph: Graph | None = None) -> Variable:
    """Return a new global step, an int64 scalar of 0, in the collections GLOBAL_STEP and GLOBAL_VARIABLES.

    Raises: ValueError if there is one already.
    """
    graph = graph or get_default_graph()
    if get_global_step(graph) is not None:
        raise ValueError("this graph has a global step already; use get_or_create_global_step")
    with deferral.build(graph if deferral.building() is not None else None):
        step = Variable(
            0,
            dtype=np.dtype(np.int64),
            name="global_step",
            trainable=False,
            aggregation=VariableAggregation.ONLY_FIRST_REPLICA,
        )
    graph.add_to_collection(GraphKeys.GLOBAL_STEP, step)
    if not isinstance(step, GraphVariable):
        graph.add_to_collection(GraphKeys.GLOBAL_VARIABLES, step)
    return step


def get_or_create_global_step(graph: Graph | None = None) -> Any:
    """Return the global step of ``graph``, by default the default one, created if there is none."""
    found = get_global_step(graph)
    return create_global_step(graph) if found is None else found


def assert_global_step(global_step_tensor: Any) -> None:
    """Do nothing if ``global_step_tensor`` can count steps.

    Raises: TypeError if it is no variable or tensor, no integer, or has axes.
    """
    if not isinstance(global_step_tensor, Operand):
        raise TypeError(f"a global step is a variable or tensor, not {global_step_tensor!r}")
    if global_step_tensor.dtype.kind not in "iu":
        raise TypeError(f"a global step is an integer, not of dtype {global_step_tensor.dtype}")
    known = not isinstance(global_step_tensor, Deferred) or global_step_tensor.static_shape is not None
    if known and len(global_step_tensor.shape) > 0:
        raise TypeError(f"a global step is a scalar, not of shape {global_step_tensor.shape}")


def global_step(sess: Any, global_step_tensor: Any) -> int:
    """Return the number that the step is at; ``sess`` is asked for one of a graph."""
    value = sess.run(global_step_tensor) if hasattr(global_step_tensor, "graph") else global_step_tensor.numpy()
    return int(value)


def _add_one(strategy: Any, step: Any) -> None:  # noqa: ARG001 - what a merge call is given
    step = getattr(step, "values", (step,))[0]
    step.write_all("assign_add", np.asarray(1, step.dtype))
