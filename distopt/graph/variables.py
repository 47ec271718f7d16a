"""``GraphVariable``: what ``Variable(...)`` makes while a graph is being built."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from distopt import deferral
from distopt.errors import UninitializedVariableError
from distopt.graph.graph import Graph, GraphKeys, session_for
from distopt.graph.operations import Deferred, Operation, defer, defer_ufunc, defers, static_shape
from distopt.tensor import to_array
from distopt.types import Array
from distopt.variable import Variable

_SIGNATURE = inspect.signature(Variable.__init__)


class GraphVariable(Variable):
    """A variable of a graph: it has a value after a session ran its ``initializer``, and that session owns the value.

    It takes the arguments of :class:`Variable`; ``initial_value`` may be deferred. Operations on it are recorded;
    assigning methods return the deferred new value. It joins the graph's collections of variables, or ``collections``
    instead.

    Raises: as :class:`Variable`; ValueError for a deferred initial value whose shape is not known.
    """

    __slots__ = ("_owner", "_read", "graph", "initial_value", "initializer")

    def __init__(self, *args: Any, collections: Sequence[str] | None = None, **kwargs: Any) -> None:
        options = dict(_SIGNATURE.bind(self, *args, **kwargs).arguments)
        del options["self"]
        graph: Graph = deferral.building()
        given = options.get("initial_value")
        given = given() if callable(given) else given
        self.graph = graph
        self._owner: Any = None
        self.initial_value = given
        value = given
        if defers(given):
            value = _zeros_like(given)
        elif given is not None:
            # A concrete value is kept as it was given: the array may change before the initializer runs.
            dtype = options.get("dtype")
            value = self.initial_value = np.array(to_array(given, None if dtype is None else np.dtype(dtype)))
        name = options.pop("name", None)
        with deferral.build(None):
            super().__init__(**{**options, "initial_value": value})
        name = graph.unique_name((name or "Variable").rstrip("/"))
        self.name = f"{name}:0"
        with graph.control_dependencies(None):
            self._read = defer(snapshot, (self,), name=f"{name}/Read/ReadVariableOp")
            self.initializer = self._writing("AssignVariableOp", _initialize, self.initial_value, f"{name}/Assign").op
        if collections is None:
            collections = [GraphKeys.GLOBAL_VARIABLES, *([GraphKeys.TRAINABLE_VARIABLES] if self.trainable else [])]
        graph.add_to_collections(collections, self)

    @property
    def defers(self) -> bool:  # type: ignore[override]  # of an ordinary variable it is a constant of the class
        """Whether operations on it are recorded: they are, unless a session is computing some."""
        return deferral.evaluation() is None

    @property
    def op(self) -> Operation:
        """The operation that reads it."""
        operation: Operation = self._read.op
        return operation

    def record(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return defer(function, args, kwargs, graph=self.graph)

    # Reading.

    def value(self) -> Any:
        if deferral.evaluation() is not None:
            return super().value()
        return defer(snapshot, (self,), name="Identity")

    def read_operand(self) -> Any:
        if deferral.building() is not None:
            raise self._not_here()
        return super().read_operand()

    def numpy(self) -> Array:
        """Return a copy of the value, where a session is computing.

        Raises: NotImplementedError elsewhere.
        """
        if deferral.evaluation() is None:
            raise self._not_here()
        return super().numpy()

    def _not_here(self) -> NotImplementedError:
        return NotImplementedError(
            f"{self.name} belongs to a graph: its value is read by session.run(variable) or variable.eval()"
        )

    def eval(self, session: Any = None) -> Any:
        """Return the value in ``session``, by default the default one."""
        return session_for(session, f"{self.name}.eval()").run(self)

    def initialized_value(self) -> Any:
        """Return the initial value, deferred or not."""
        return self.initial_value

    def load(self, value: Any, session: Any = None) -> None:
        """Give the variable a value in ``session``, without recording an operation."""
        session_for(session, f"{self.name}.load()").own(self)
        self.write_all("assign", np.asarray(value, self.dtype))

    def check_initialized(self, session: Any) -> None:
        """Do nothing if the variable has a value in ``session``.

        Raises: UninitializedVariableError if not.
        """
        if self._owner is None or self._owner() is not session:
            raise UninitializedVariableError(
                f"variable {self.name!r} has no value in this session; run its initializer first, or that of all: "
                "session.run(tf.compat.v1.global_variables_initializer())"
            )

    def is_initialized_in(self, session: Any) -> bool:
        """Return whether the variable has a value in ``session``."""
        return self._owner is not None and self._owner() is session

    def belong_to(self, session: Any) -> None:
        """Make ``session`` the one whose value this is.

        Raises: RuntimeError if another session, which is still open, holds the value.
        """
        owner = None if self._owner is None else self._owner()
        if owner is not None and owner is not session and not owner.closed:
            raise RuntimeError(
                f"variable {self.name!r} has its value in another open session; a variable has one value here: close "
                "that session first, or build the variable in a graph of its own"
            )
        self._owner = weakref.ref(session)

    # Writing.

    def assign(self, value: Any, use_locking: bool = False, name: str | None = None, read_value: bool = True) -> Any:
        if deferral.evaluation() is not None:
            return super().assign(value, use_locking, name, read_value)
        return self._writing("AssignVariableOp", Variable.assign, value, name)

    def assign_add(
        self, delta: Any, use_locking: bool = False, name: str | None = None, read_value: bool = True
    ) -> Any:
        if deferral.evaluation() is not None:
            return super().assign_add(delta, use_locking, name, read_value)
        return self._writing("AssignAddVariableOp", Variable.assign_add, delta, name)

    def assign_sub(
        self, delta: Any, use_locking: bool = False, name: str | None = None, read_value: bool = True
    ) -> Any:
        if deferral.evaluation() is not None:
            return super().assign_sub(delta, use_locking, name, read_value)
        return self._writing("AssignSubVariableOp", Variable.assign_sub, delta, name)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if not self.defers:
            return super().__array_ufunc__(ufunc, method, *inputs, **kwargs)
        return defer_ufunc(ufunc, method, inputs, kwargs)

    def __repr__(self) -> str:
        return f"<Variable {self.name!r} shape={self.shape} dtype={self.dtype}>"

    def __deepcopy__(self, memo: dict[int, Any]) -> Variable:
        raise TypeError(f"{self.name} belongs to a graph and cannot be copied; copy its value")

    def _writing(self, kind: str, method: Any, value: Any, name: str | None) -> Deferred:
        """Record ``method(self, value)``; the result is the variable's value after it."""
        is_deferred = isinstance(value, Deferred | GraphVariable)
        if not is_deferred:
            value = self.operand("assign", value) if np.shape(value) == self.shape else _misfit(self, value)
        replaces = method in (Variable.assign, _initialize)

        def write(scope: Any) -> Any:
            if replaces:
                scope.session.own(self)
            else:
                self.check_initialized(scope.session)
            method(self, scope.plain(value))
            return Variable.value(self)

        operation = Operation(self.graph, kind, write, [value] if is_deferred else [], name=name, writes=True)
        operation.outputs = (Deferred(operation, 0, self.shape, self.dtype),)
        return operation.outputs[0]


def _initialize(variable: Variable, value: Any) -> None:
    """Give every copy the same value, in a job of several processes the one of rank 0."""
    variable.write_all("assign", value)
    if variable.strategy is not None and variable.trainable:
        variable.strategy.extended.share_initial_value(variable)


def snapshot(value: Any) -> Any:
    """Return ``value``, of a variable the tensor that it holds now."""
    return value.value() if isinstance(value, Variable) else value


def _misfit(variable: Variable, value: Any) -> Any:
    raise ValueError(
        f"{variable.name} has shape {variable.shape}; a value of shape {np.shape(value)} cannot be assigned"
    )


def _zeros_like(deferred: Any) -> Array:
    shape = static_shape(deferred)
    if shape is None or None in shape:
        raise ValueError(f"the initial value {deferred.name} has no known shape; give it one with tf.reshape")
    return np.zeros(tuple(n for n in shape if n is not None), deferred.dtype)


deferral.variable_class[:] = [GraphVariable]
