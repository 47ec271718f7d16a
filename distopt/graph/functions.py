"""What TensorFlow 1 offers to build a graph with: placeholders, groups, assignments, initializers, collections.

Where things run eagerly, the same functions do their work at once.
"""

# ruff: noqa: ARG001  (TensorFlow's arguments, in its order, some of which have no meaning here)
from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np

from distopt import deferral
from distopt.errors import UninitializedVariableError
from distopt.graph.graph import GraphKeys, get_default_graph
from distopt.graph.operations import Deferred, Operation, defer, defers
from distopt.graph.variables import GraphVariable, snapshot
from distopt.nest import flatten
from distopt.tensor import Tensor, to_array


def placeholder(dtype: Any, shape: Sequence[int | None] | None = None, name: str | None = None) -> Deferred:
    """Return a deferred tensor whose value is fed to each run; a length of None, or no ``shape``, fits everything.

    Raises: RuntimeError where things run eagerly.
    """
    graph = _graph("placeholder")

    def missing(scope: Any) -> Any:
        raise ValueError(f"the placeholder {operation.name!r} needs a value: session.run(..., feed_dict={{it: value}})")

    operation = Operation(graph, "Placeholder", missing, name=name)
    operation.outputs = (Deferred(operation, 0, shape, np.dtype(dtype)),)
    return operation.outputs[0]


def placeholder_with_default(
    input: Any, shape: Sequence[int | None] | None = None, name: str | None = None
) -> Deferred:
    """Return a deferred tensor that is ``input`` unless a value is fed to it."""
    graph = _graph("placeholder_with_default")
    value = input if defers(input) else Tensor(to_array(input))
    operation = Operation(
        graph,
        "PlaceholderWithDefault",
        lambda scope: scope.plain(value),
        [value] if defers(value) else [],
        name=name or "PlaceholderWithDefault",
    )
    operation.outputs = (Deferred(operation, 0, shape, value.dtype),)
    return operation.outputs[0]


def no_op(name: str | None = None) -> Operation | None:
    """Return an operation that does nothing but wait for its control inputs; where things run eagerly, None."""
    graph = deferral.building()
    return None if graph is None else Operation(graph, "NoOp", _nothing, name=name)


def group(*inputs: Any, name: str | None = None) -> Operation | None:
    """Return an operation that is done when all ``inputs`` (nested, operations or tensors) are computed.

    Where things run eagerly they have been computed: None is returned.

    Raises: TypeError for an input that is neither an operation nor a tensor.
    """
    leaves = flatten(list(inputs))
    graph = next((leaf.graph for leaf in leaves if hasattr(leaf, "graph")), deferral.building())
    if graph is None:
        return None
    waits = [graph.as_operation(leaf) for leaf in leaves]
    return Operation(
        graph,
        "NoOp",
        _nothing,
        name=name or "group_deps",
        control_inputs=[op for op in waits if op is not None],
        writes=any(op is not None and op.writes for op in waits),
    )


def tuple(tensors: Sequence[Any], name: str | None = None, control_inputs: Sequence[Any] | None = None) -> list[Any]:
    """Return the tensors, none of which can be used before all of them (and ``control_inputs``) are computed."""
    present = [tensor for tensor in tensors if tensor is not None]
    graph = next((tensor.graph for tensor in present if hasattr(tensor, "graph")), deferral.building())
    if graph is None:
        return list(tensors)
    with graph.control_dependencies([*present, *(control_inputs or [])]):
        return [None if tensor is None else identity(tensor, name=name) for tensor in tensors]


def identity(input: Any, name: str | None = None) -> Any:
    """Return a tensor with the value that ``input`` has at this point of the order: in a graph, a recorded read."""
    graph = getattr(input, "graph", None) or deferral.building()
    if graph is None or deferral.evaluation() is not None:
        value = snapshot(input)
        return value if isinstance(value, Tensor) else Tensor(to_array(value))
    return defer(snapshot, (input,), graph=graph, name=name or "Identity")


def assign(ref: Any, value: Any, validate_shape: bool | None = None, use_locking: Any = None, name: Any = None) -> Any:
    """Return ``ref.assign(value)``."""
    return ref.assign(value, name=name)


def assign_add(ref: Any, value: Any, use_locking: Any = None, name: Any = None) -> Any:
    """Return ``ref.assign_add(value)``."""
    return ref.assign_add(value, name=name)


def assign_sub(ref: Any, value: Any, use_locking: Any = None, name: Any = None) -> Any:
    """Return ``ref.assign_sub(value)``."""
    return ref.assign_sub(value, name=name)


def control_dependencies(control_inputs: Any) -> Any:
    """Return a context manager in which recorded operations wait for ``control_inputs``.

    Where things run eagerly, whatever stands before has happened: callables among the inputs are called.
    """
    graph = deferral.building()
    if graph is not None:
        return graph.control_dependencies(control_inputs)
    for item in control_inputs or []:
        if callable(item):
            item()
    return nullcontext()


def name_scope(name: str | None, default_name: str | None = None, values: Any = None) -> Any:
    """Return a context manager in which the names of recorded operations begin with ``name/``."""
    graph = deferral.building()
    return nullcontext("") if graph is None else graph.name_scope(name or default_name)


@contextmanager
def init_scope() -> Any:
    """Run eagerly inside the ``with`` block."""
    with deferral.build(None):
        yield


def variables_initializer(var_list: Sequence[Any], name: str = "init") -> Operation | None:
    """Return an operation that gives ``var_list`` their initial values; where things run eagerly, None: they have them.

    A variable whose initial value is computed from another variable is initialized after it.
    """
    members = [variable for variable in var_list if isinstance(variable, GraphVariable)]
    if not members:
        return no_op(name)
    graph = members[0].graph

    def initialize(scope: Any) -> None:
        # In the order of creation; the initial value of one may be computed from those before it.
        for variable in members:
            if variable.initializer not in scope.run.values:
                scope.run.compute([variable.initializer])

    return Operation(graph, "NoOp", initialize, name=name, writes=True)


def global_variables_initializer() -> Operation | None:
    """Return an operation that gives all variables of the graph their initial values."""
    return variables_initializer(global_variables())


def local_variables_initializer() -> Operation | None:
    """Return an operation that gives the variables in the collection LOCAL_VARIABLES their initial values."""
    return variables_initializer(get_collection(GraphKeys.LOCAL_VARIABLES))


def initialize_all_variables() -> Operation | None:
    """Return :func:`global_variables_initializer`, by its first name."""
    return global_variables_initializer()


def is_variable_initialized(variable: Any) -> Any:
    """Return whether ``variable`` has a value: in a graph a deferred truth value, else True."""
    if not isinstance(variable, GraphVariable):
        return Tensor(np.array(True))
    operation = Operation(
        variable.graph,
        "IsVariableInitialized",
        lambda scope: Tensor(np.array(variable.is_initialized_in(scope.session))),
    )
    operation.outputs = (Deferred(operation, 0, (), np.bool_),)
    return operation.outputs[0]


def assert_variables_initialized(var_list: Sequence[Any] | None = None) -> Operation | None:
    """Return an operation that raises UninitializedVariableError if a variable has no value."""
    members = global_variables() if var_list is None else list(var_list)
    graph = deferral.building()
    if graph is None:
        return None

    def check(scope: Any) -> None:
        for variable in members:
            variable.check_initialized(scope.session)

    return Operation(graph, "NoOp", check, name="assert_variables_initialized")


def get_collection(key: str, scope: str | None = None) -> list[Any]:
    """Return the members of a collection of the default graph."""
    return get_default_graph().get_collection(key, scope)


def get_collection_ref(key: str) -> list[Any]:
    """Return a collection of the default graph itself."""
    return get_default_graph().get_collection_ref(key)


def add_to_collection(name: str, value: Any) -> None:
    """Append ``value`` to a collection of the default graph."""
    get_default_graph().add_to_collection(name, value)


def global_variables(scope: str | None = None) -> list[Any]:
    """Return the variables of the default graph."""
    return get_collection(GraphKeys.GLOBAL_VARIABLES, scope)


def trainable_variables(scope: str | None = None) -> list[Any]:
    """Return the trainable variables of the default graph."""
    return get_collection(GraphKeys.TRAINABLE_VARIABLES, scope)


def local_variables(scope: str | None = None) -> list[Any]:
    """Return the variables in the collection LOCAL_VARIABLES of the default graph."""
    return get_collection(GraphKeys.LOCAL_VARIABLES, scope)


def _graph(caller: str) -> Any:
    graph = deferral.building()
    if graph is None:
        raise RuntimeError(
            f"{caller} belongs to a graph: use it inside `with tf.Graph().as_default():`, or after "
            "tf.compat.v1.disable_eager_execution(); where things run eagerly, pass values as arguments"
        )
    return graph


def _nothing(scope: Any) -> None:
    return None


__all__ = [
    "UninitializedVariableError",
    "add_to_collection",
    "assert_variables_initialized",
    "assign",
    "assign_add",
    "assign_sub",
    "control_dependencies",
    "get_collection",
    "get_collection_ref",
    "global_variables",
    "global_variables_initializer",
    "group",
    "identity",
    "init_scope",
    "initialize_all_variables",
    "is_variable_initialized",
    "local_variables",
    "local_variables_initializer",
    "name_scope",
    "no_op",
    "placeholder",
    "placeholder_with_default",
    "trainable_variables",
    "tuple",
    "variables_initializer",
]
