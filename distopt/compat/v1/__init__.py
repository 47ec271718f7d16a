"""The names of TensorFlow 1: ``import distopt.compat.v1 as tf``.

Operations run eagerly unless a graph is being built, by ``with tf.Graph().as_default():`` or for the whole process by
``tf.disable_eager_execution()``; then those on deferred tensors and on the graph's variables are recorded.
"""

from __future__ import annotations

from typing import Any

from distopt import distribute, errors, ops
from distopt import losses as _losses
from distopt import nn as _nn
from distopt.autodiff.tape import GradientTape
from distopt.compat.v1 import train
from distopt.compat.v1.lifting import LiftedModule, lifted
from distopt.graph import (
    Graph,
    GraphKeys,
    InteractiveSession,
    Operation,
    Session,
    disable_eager_execution,
    enable_eager_execution,
    executing_eagerly,
    functions,
    get_default_graph,
    get_default_session,
    gradients,
    reset_default_graph,
)
from distopt.graph.functions import *  # noqa: F403 - exactly its __all__
from distopt.indexed_slices import IndexedSlices
from distopt.optimizers.v1 import AggregationMethod
from distopt.tensor import Tensor
from distopt.variable import Variable, VariableAggregation, VariableSynchronization

nn: Any = LiftedModule(_nn)
losses: Any = LiftedModule(_losses)

_GATHERED = {name: lifted(getattr(ops, name)) for name in ops.__all__ if name not in functions.__all__}
globals().update(_GATHERED)

__all__ = [
    "AggregationMethod",
    "train",
    "GradientTape",
    "Graph",
    "GraphKeys",
    "IndexedSlices",
    "InteractiveSession",
    "Operation",
    "Session",
    "Tensor",
    "Variable",
    "VariableAggregation",
    "VariableSynchronization",
    "disable_eager_execution",
    "distribute",
    "enable_eager_execution",
    "errors",
    "executing_eagerly",
    "get_default_graph",
    "get_default_session",
    "gradients",
    "losses",
    "nn",
    "reset_default_graph",
    *functions.__all__,
    *_GATHERED,
]
