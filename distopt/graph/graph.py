"""``Graph``: recorded operations, their names, collections of what belongs together, and which graph is the default."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from distopt import deferral

_sessions: ContextVar[tuple[Any, ...]] = ContextVar("distopt_sessions", default=())
_interactive: list[Any] = []


class GraphKeys:
    """Names of collections. Source: ``tf.compat.v1.GraphKeys``."""

    GLOBAL_VARIABLES = "variables"
    LOCAL_VARIABLES = "local_variables"
    TRAINABLE_VARIABLES = "trainable_variables"
    MOVING_AVERAGE_VARIABLES = "moving_average_variables"
    GLOBAL_STEP = "global_step"
    TRAIN_OP = "train_op"
    LOSSES = "losses"
    REGULARIZATION_LOSSES = "regularization_losses"
    SUMMARIES = "summaries"
    UPDATE_OPS = "update_ops"
    INIT_OP = "init_op"


class Graph:
    """Operations in the order in which they were recorded; made the default one by ``with graph.as_default():``.

    Source: ``tf.Graph``.
    """

    def __init__(self) -> None:
        self.operations: list[Any] = []
        self._by_name: dict[str, Any] = {}
        self._taken: dict[str, int] = {}
        self._collections: dict[str, list[Any]] = {}
        self._control: tuple[Any, ...] = ()
        self._scope = ""
        self.finalized = False

    def as_default(self) -> Any:
        """Return a context manager in which variables and operations are added to this graph."""
        return deferral.build(self)

    @property
    def control_inputs(self) -> tuple[Any, ...]:
        """What operations that are recorded now wait for."""
        return self._control

    @contextmanager
    def control_dependencies(self, control_inputs: Sequence[Any] | None) -> Iterator[None]:
        """Operations recorded in the ``with`` block wait for ``control_inputs``; ``None``: for nothing at all.

        Raises: TypeError for something that is neither an operation nor a deferred tensor or variable.
        """
        waits = [] if control_inputs is None else [self.as_operation(item) for item in control_inputs]
        before = self._control
        self._control = () if control_inputs is None else (*before, *(op for op in waits if op is not None))
        try:
            yield
        finally:
            self._control = before

    @contextmanager
    def name_scope(self, name: str | None) -> Iterator[str]:
        """Names of operations recorded in the ``with`` block begin with ``name/``; yields that prefix."""
        before = self._scope
        if not name:
            self._scope = ""
        elif name.endswith("/"):
            self._scope = name
        else:
            self._scope = self.unique_name(name) + "/"
        try:
            yield self._scope
        finally:
            self._scope = before

    def unique_name(self, name: str) -> str:
        """Return ``name`` in the current scope, with ``_1``, ``_2``, ... from its second use on."""
        base = self._scope + (re.sub(r"[^A-Za-z0-9_.\\/>-]", "_", name) or "op")
        candidate = base
        while candidate.lower() in self._taken:
            count = self._taken[base.lower()] = self._taken.get(base.lower(), 0) + 1
            candidate = f"{base}_{count}"
        self._taken[candidate.lower()] = 0
        return candidate

    def add(self, operation: Any) -> int:
        """Take an operation in and return its position.

        Raises: RuntimeError if the graph was finalized.
        """
        if self.finalized:
            raise RuntimeError("this graph was finalized; nothing can be added to it")
        self.operations.append(operation)
        self._by_name[operation.name] = operation
        return len(self.operations) - 1

    def finalize(self) -> None:
        """Refuse further operations."""
        self.finalized = True

    def get_operations(self) -> list[Any]:
        """Return the operations in the order in which they were recorded."""
        return list(self.operations)

    def get_operation_by_name(self, name: str) -> Any:
        """Return an operation.

        Raises: KeyError if there is none of that name.
        """
        if name not in self._by_name:
            raise KeyError(f"the graph has no operation named {name!r}")
        return self._by_name[name]

    def get_tensor_by_name(self, name: str) -> Any:
        """Return the tensor ``"operation:index"``.

        Raises: ValueError for a name without an index; KeyError if there is no such tensor.
        """
        operation, colon, index = name.rpartition(":")
        if not colon or not index.isdigit():
            raise ValueError(f"the name of a tensor is that of an operation and an index, as in 'add:0', not {name!r}")
        outputs = self.get_operation_by_name(operation).outputs
        if int(index) >= len(outputs):
            raise KeyError(f"operation {operation!r} has {len(outputs)} outputs, not one numbered {index}")
        return outputs[int(index)]

    def as_graph_element(self, element: Any) -> Any:
        """Return the operation, tensor or variable that ``element`` is or names.

        Raises: ValueError if it belongs to another graph; KeyError if there is no such name.
        """
        if isinstance(element, str):
            return self.get_tensor_by_name(element) if ":" in element else self.get_operation_by_name(element)
        graph = getattr(element, "graph", self)
        if graph is not self:
            raise ValueError(f"{element!r} belongs to another graph")
        return element

    def as_operation(self, item: Any) -> Any:
        """Return the operation that ``item`` is, or that computes it; ``None`` for what has been computed already.

        Raises: TypeError for anything else.
        """
        if item is None or (hasattr(item, "numpy") and not hasattr(item, "graph")):
            return None
        operation = getattr(item, "op", item)
        if not hasattr(operation, "control_inputs") or operation is self:
            raise TypeError(f"an operation or a deferred tensor is needed, not {item!r}")
        self.as_graph_element(operation)
        return operation

    def add_to_collection(self, name: str, value: Any) -> None:
        """Append ``value`` to the collection ``name``."""
        self._collections.setdefault(name, []).append(value)

    def add_to_collections(self, names: Sequence[str], value: Any) -> None:
        """Append ``value`` to each of the collections."""
        for name in names:
            self.add_to_collection(name, value)

    def get_collection(self, name: str, scope: str | None = None) -> list[Any]:
        """Return a copy of a collection; with ``scope``, of its members whose names match that regular expression."""
        members = self._collections.get(name, [])
        return [m for m in members if scope is None or re.match(scope, getattr(m, "name", ""))]

    def get_collection_ref(self, name: str) -> list[Any]:
        """Return a collection itself."""
        return self._collections.setdefault(name, [])

    def get_all_collection_keys(self) -> list[str]:
        """Return the names of the collections that have members."""
        return [name for name, members in self._collections.items() if members]

    def clear_collection(self, name: str) -> None:
        """Empty a collection."""
        self._collections.pop(name, None)

    def __repr__(self) -> str:
        return f"<Graph of {len(self.operations)} operations>"


_default: list[Graph] = [Graph()]


def get_default_graph() -> Graph:
    """Return the graph that is added to here, or, where things run eagerly, the one that holds collections."""
    graph: Graph | None = deferral.building()
    return _default[0] if graph is None else graph


def reset_default_graph() -> None:
    """Start with an empty default graph.

    Raises: RuntimeError inside ``with graph.as_default():``.
    """
    building = deferral.building()
    if building is not None and building is not _default[0]:
        raise RuntimeError("reset_default_graph was called inside `with graph.as_default()`")
    _default[:] = [Graph()]
    if building is not None:
        deferral.build_outside_of_contexts(_default[0])


def executing_eagerly() -> bool:
    """Return whether operations are carried out at once here."""
    return deferral.building() is None


def disable_eager_execution() -> None:
    """Record operations in the default graph from now on, in the whole process."""
    deferral.build_outside_of_contexts(_default[0])


def enable_eager_execution() -> None:
    """Carry operations out at once again; graphs can still be built in ``with graph.as_default():``."""
    deferral.build_outside_of_contexts(None)


def get_default_session() -> Any:
    """Return the session whose ``with`` block this is, else the interactive one, else ``None``."""
    sessions = _sessions.get()
    if sessions:
        return sessions[-1]
    return _interactive[-1] if _interactive else None


@contextmanager
def default_session(session: Any) -> Iterator[Any]:
    """Make ``session`` the default one for the length of a ``with`` block."""
    token = _sessions.set((*_sessions.get(), session))
    try:
        yield session
    finally:
        _sessions.reset(token)


def set_interactive(session: Any, present: bool) -> None:
    """Add or remove a session that is the default one outside of every ``with`` block."""
    if present:
        _interactive.append(session)
    elif session in _interactive:
        _interactive.remove(session)


def session_for(session: Any, caller: str) -> Any:
    """Return ``session`` or the default one.

    Raises: ValueError if there is neither.
    """
    found = get_default_session() if session is None else session
    if found is None:
        raise ValueError(
            f"{caller} needs a session: call it inside `with tf.compat.v1.Session():`, or give one as session=..."
        )
    return found
