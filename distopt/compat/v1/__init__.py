"""The names of TensorFlow 1: ``import distopt.compat.v1 as tf``.

Operations run eagerly unless a graph is being built, by ``with tf.Graph().as_default():`` or for the whole process by
``tf.disable_eager_execution()``; then those on deferred tensors and on the graph's variables are recorded.
"""

from __future__ import annotations

from typing import Any

from distopt import distribute, dtypes, errors, keras, ops
from distopt import linalg as _linalg
from distopt import losses as _losses
from distopt import math as _math
from distopt import nn as _nn
from distopt import random as _random
from distopt.autodiff.tape import GradientTape
from distopt.compat.v1 import train
from distopt.compat.v1.lifting import LiftedModule, lifted
from distopt.compat.v1.variables import Variable
from distopt.dtypes import *  # noqa: F403 - exactly its __all__
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
from distopt.variable import VariableAggregation, VariableSynchronization

nn: Any = LiftedModule(_nn)
math: Any = LiftedModule(_math)
linalg: Any = LiftedModule(_linalg)
losses: Any = LiftedModule(_losses)
random: Any = LiftedModule(_random, always=True)

_GATHERED = {
    name: lifted(getattr(ops, name)) for name in ops.__all__ if name not in (*functions.__all__, *dtypes.__all__)
}
globals().update(_GATHERED)

__all__ = [
    "AggregationMethod",
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
    "keras",
    "linalg",
    "executing_eagerly",
    "get_default_graph",
    "get_default_session",
    "gradients",
    "losses",
    "math",
    "nn",
    "random",
    "reset_default_graph",
    "train",
    *dtypes.__all__,
    *functions.__all__,
    *_GATHERED,
]
