"""``Session``: computes recorded operations, in one order.

The order of a run. What the fetches need is found; then, again and again, the first operation is computed of those
whose inputs and control inputs are there: placeholders and constants before gradients, these before other operations,
those before what writes; among equals the one recorded first. So a fetch of a loss together with a training operation
gives the loss that the step was made from. Gradients leave what they computed on the way to be used by the others.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from distopt import deferral
from distopt.autodiff.nodes import strip_all
from distopt.graph.graph import Graph, default_session, get_default_graph, set_interactive
from distopt.graph.operations import Deferred, Operation, replaced
from distopt.graph.variables import GraphVariable
from distopt.indexed_slices import IndexedSlices
from distopt.nest import flatten, map_structure
from distopt.tensor import Operand, Tensor, to_array
from distopt.types import Array


class IndexedSlicesValue(NamedTuple):
    """What a session returns for a row-sparse tensor: row ``i`` of ``values`` adds to row ``indices[i]``."""

    values: Array
    indices: Array
    dense_shape: tuple[int, ...] | None


class Scope:
    """The values of operations, by operation; where one is not here, that of ``outer``.

    The scope of a run holds what was computed. That of a gradient holds what is computed once more under its tape.
    """

    def __init__(self, session: Session, fed: dict[Deferred, Any], outer: Scope | None = None) -> None:
        self.session = session
        self.fed = fed
        self.outer = outer
        self.values: dict[Operation, Any] = {}

    @property
    def run(self) -> Run:
        """The run that this scope is part of."""
        scope: Scope = self
        while scope.outer is not None:
            scope = scope.outer
        assert isinstance(scope, Run)
        return scope

    def value_of(self, operand: Any) -> Any:
        """Return what stands for ``operand`` in an eager call: a tensor, row-sparse slices, or the variable itself."""
        if isinstance(operand, GraphVariable):
            operand.check_initialized(self.session)
            return operand
        scope: Scope | None = self
        while scope is not None:
            if scope.outer is None and operand in scope.fed:
                return scope.fed[operand]
            if operand.op in scope.values:
                value = scope.values[operand.op]
                return value[operand.index] if isinstance(value, tuple) else value
            scope = scope.outer
        self.run.compute([operand.op])
        return self.run.value_of(operand)

    def plain(self, value: Any) -> Any:
        """Return ``value`` with the operands of graphs in it replaced by their values."""
        return replaced(value, self.value_of)

    def dense(self, value: Any) -> Any:
        """Return :meth:`plain`, row-sparse values made dense."""
        return replaced(value, lambda operand: _densified(self.value_of(operand)))

    def look_up(self, operand: Any) -> Any:
        """Return the value of a deferred tensor, for code that reads it while the session computes."""
        return _densified(self.value_of(operand))


class Run(Scope):
    """One call of :meth:`Session.run`; ``wanted`` are the tensors that something of this run uses."""

    def __init__(self, session: Session, fed: dict[Deferred, Any]) -> None:
        super().__init__(session, fed)
        self.wanted: set[Deferred] = set()

    def compute(self, operations: Iterable[Operation]) -> None:
        """Compute ``operations`` and all that they need, in the order that this module describes."""
        needed = self._closure(operations)
        missing = {op: sum(before in needed for before in op.waits_for) for op in needed}
        followers: dict[Operation, list[Operation]] = {op: [] for op in needed}
        for op in needed:
            for before in op.waits_for:
                if before in needed:
                    followers[before].append(op)
        ready = [_priority(op) for op in needed if not missing[op]]
        heapq.heapify(ready)
        while ready:
            op = heapq.heappop(ready)[-1]
            if op not in self.values:
                self.values[op] = op.compute(self)
            for follower in followers[op]:
                missing[follower] -= 1
                if not missing[follower]:
                    heapq.heappush(ready, _priority(follower))

    def _closure(self, operations: Iterable[Operation]) -> set[Operation]:
        needed: set[Operation] = set()
        waiting = list(operations)
        while waiting:
            op = waiting.pop()
            if op in needed or op in self.values:
                continue
            needed.add(op)
            self.wanted.update(operand for operand in op.inputs if isinstance(operand, Deferred))
            produced_elsewhere = {o.op for o in op.inputs if isinstance(o, Deferred) and o not in self.fed}
            waiting += produced_elsewhere
            waiting += op.control_inputs
        return needed


def _priority(op: Operation) -> tuple[int, int, Operation]:
    if op.writes:
        rank = 3
    elif not op.inputs and not op.control_inputs:
        rank = 0
    else:
        rank = 1 if op.type == "Gradients" else 2
    return rank, op.position, op


class Session:
    """Computes operations of ``graph``, by default the default one; the variables that it initialized have values.

    ``config`` has no effect here: processes are started by MPI or by ``distopt``. Used in a ``with``
    statement, it is the default session inside and closed at the end.

    Raises: ValueError for a ``target``, which would be a process that runs elsewhere.

    Source: ``tf.compat.v1.Session``.
    """

    def __init__(self, target: str = "", graph: Graph | None = None, config: Any = None) -> None:
        del config
        if target:
            raise ValueError(
                f"a session computes in this process; target {target!r} cannot be reached: use "
                "tf.distribute.MultiWorkerMirroredStrategy or SyncParameterServerStrategy for several processes"
            )
        self.graph = get_default_graph() if graph is None else graph
        self.closed = False
        self._contexts: list[Any] = []

    def run(
        self, fetches: Any, feed_dict: Mapping[Any, Any] | None = None, options: Any = None, run_metadata: Any = None
    ) -> Any:
        """Compute ``fetches`` and return their values, in the same structure; of an operation, None.

        A fetch is a deferred tensor, a variable, an operation, the name of one, or nested tuples, lists and
        dictionaries of these. ``feed_dict`` gives values to placeholders, or to other deferred tensors instead of what
        they would be computed from.

        Raises: RuntimeError if the session is closed; TypeError for what cannot be fetched or fed; ValueError for a
        value that does not fit, a placeholder without one, or an element of another graph; UninitializedVariableError.
        """
        del options, run_metadata
        if self.closed:
            raise RuntimeError("this session is closed; make another one")
        leaves = [self._element(leaf) for leaf in flatten(fetches)]
        run = Run(self, self._feeds(feed_dict or {}))
        run.wanted.update(leaf for leaf in leaves if isinstance(leaf, Deferred))
        with deferral.evaluate(run):
            run.compute(_operation_of(leaf) for leaf in leaves if _is_computed(leaf, run))
            results = iter([_fetched(leaf, run) for leaf in leaves])
        return map_structure(lambda _: next(results), fetches)

    def own(self, variable: GraphVariable) -> None:
        """Note that the value of ``variable`` is this session's; errors as :meth:`GraphVariable.belong_to`."""
        variable.belong_to(self)

    def close(self) -> None:
        """Give up the values of the variables that this session initialized."""
        self.closed = True

    def as_default(self) -> Any:
        """Return a context manager in which this is the default session; it does not close it."""
        return default_session(self)

    def make_callable(self, fetches: Any, feed_list: Any = None, accept_options: bool = False) -> Any:
        """Return a function of the values of ``feed_list`` that runs ``fetches``."""
        del accept_options
        keys = list(feed_list or [])
        return lambda *values: self.run(fetches, dict(zip(keys, values, strict=True)))

    def __enter__(self) -> Session:
        contexts = [deferral.build(self.graph), default_session(self)]
        for context in contexts:
            context.__enter__()
        self._contexts.append(contexts)
        return self

    def __exit__(self, *error: Any) -> None:
        for context in reversed(self._contexts.pop()):
            context.__exit__(*error)
        self.close()

    def _element(self, leaf: Any) -> Any:
        if leaf is None:
            raise TypeError("None cannot be fetched; if it is a gradient, the loss does not depend on that variable")
        if isinstance(leaf, Tensor | IndexedSlices) or (isinstance(leaf, Operand) and not hasattr(leaf, "graph")):
            return leaf
        if not isinstance(leaf, str | Operation | Deferred | GraphVariable):
            raise TypeError(f"a fetch is a tensor, a variable, an operation or the name of one, not {leaf!r}")
        return self.graph.as_graph_element(leaf)

    def _feeds(self, feed_dict: Mapping[Any, Any]) -> dict[Deferred, Any]:
        fed: dict[Deferred, Any] = {}
        for key, value in feed_dict.items():
            target = self.graph.as_graph_element(key)
            if not isinstance(target, Deferred):
                raise TypeError(f"a value can be fed to a placeholder or another deferred tensor, not to {key!r}")
            if isinstance(value, Deferred | GraphVariable):
                raise TypeError(f"{target.name} is fed the deferred {value.name}; run that first, and feed its value")
            fed[target] = _fitting(target, value)
        return fed


class InteractiveSession(Session):
    """A session that is the default one from its making until it is closed, outside of every ``with`` block."""

    def __init__(self, target: str = "", graph: Graph | None = None, config: Any = None) -> None:
        super().__init__(target, graph, config)
        set_interactive(self, True)

    def close(self) -> None:
        set_interactive(self, False)
        super().close()


def _operation_of(leaf: Any) -> Operation:
    operation: Operation = leaf if isinstance(leaf, Operation) else leaf.op
    return operation


def _is_computed(leaf: Any, run: Run) -> bool:
    return isinstance(leaf, Operation | Deferred | GraphVariable) and leaf not in run.fed


def _fetched(leaf: Any, run: Run) -> Any:
    if isinstance(leaf, Operation):
        return None
    if isinstance(leaf, Deferred | GraphVariable):
        operand = leaf if isinstance(leaf, Deferred) else leaf.op.outputs[0]
        leaf = run.value_of(operand)
    if isinstance(leaf, IndexedSlices):
        return IndexedSlicesValue(leaf.values.numpy(), leaf.indices, leaf.dense_shape)
    array = np.array(strip_all(leaf.numpy() if isinstance(leaf, Operand) else leaf))
    return array[()] if array.ndim == 0 else array


def _fitting(target: Deferred, value: Any) -> Tensor:
    array = np.asarray(value.numpy() if isinstance(value, Tensor) else value)
    if array.dtype != target.dtype:
        allowed = np.can_cast(array.dtype, target.dtype, "same_kind") or not isinstance(value, np.ndarray)
        if not allowed:
            raise ValueError(f"{target.name} has dtype {target.dtype}; an array of {array.dtype} was fed")
        array = to_array(value, target.dtype) if not isinstance(value, np.ndarray) else array.astype(target.dtype)
    shape = target.static_shape
    if shape is not None:
        fits = len(shape) == array.ndim and all(w is None or n == w for n, w in zip(array.shape, shape, strict=True))
        if not fits:
            raise ValueError(f"{target.name} has shape {shape}; a value of shape {array.shape} was fed")
    return Tensor(array)


def _densified(value: Any) -> Any:
    return Tensor(value.to_dense()) if isinstance(value, IndexedSlices) else value
