"""Which replica is running here: a protocol and one context variable, and no knowledge of strategies.

A *context* is what code between two points of a step runs in: the default one (no strategy), a strategy's
cross-replica one (inside ``scope``, ``merge_call``), or that of one replica (inside ``strategy.run``).
Replica threads each have their own value, because context variables are per thread.

Source: the table of contexts in TensorFlow's ``tf.distribute`` (``get_replica_context`` and friends).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

from distopt.errors import OutsideReplicaError, ReplicaContextError


class ReplicaContext(Protocol):
    """One replica's view of the step it takes part in."""

    @property
    def replica_id_in_sync_group(self) -> int:
        """Which of the replicas this is, from 0 on."""
        ...

    @property
    def num_replicas_in_sync(self) -> int:
        """How many replicas take part in a step."""
        ...

    @property
    def strategy(self) -> Any:
        """The strategy that the replica belongs to."""
        ...

    def merge_call(self, merge_fn: Callable[..., Any], args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        """Run ``merge_fn(strategy, *args)`` once per process, its arguments regrouped over the replicas."""
        ...

    def all_reduce(self, reduce_op: Any, value: Any, options: Any = None) -> Any:
        """Reduce ``value`` over all replicas and return the result on each."""
        ...


class VariableAccess(Protocol):
    """What reading a variable and assigning to it mean where it is done; see :mod:`distopt.variable`."""

    def read(self, variable: Any) -> Any:
        """Return the array that a read sees here, of a variable that holds one copy a replica."""
        ...

    def assign(self, variable: Any, operation: str, value: Any) -> None:
        """Carry out ``operation``, the name of one of the variable's methods (``"assign_add"``), on ``variable``."""
        ...

    def made_before(self, initializer: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return the variable that another replica made where one is to be made with these arguments; None: nobody."""
        ...

    def created(self, variable: Any) -> None:
        """Take note of a new variable; a strategy of several processes gives it one initial value."""
        ...


@dataclass(frozen=True, slots=True)
class Context:
    """Where code runs: under which strategy, and as which replica (``None``: cross-replica)."""

    strategy: Any
    replica: ReplicaContext | None
    access: VariableAccess
    is_default: bool = False


class _OneReplica:
    """The default context before :mod:`distopt.distribute` is imported: one replica, no strategy."""

    replica_id_in_sync_group = 0
    num_replicas_in_sync = 1
    strategy = None

    def merge_call(self, merge_fn: Callable[..., Any], args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        return merge_fn(self.strategy, *args, **(kwargs or {}))

    def all_reduce(self, reduce_op: Any, value: Any, options: Any = None) -> Any:  # noqa: ARG002
        return value


class _OneValue:
    """Variables outside of every strategy."""

    def read(self, variable: Any) -> Any:
        return variable.storage

    def assign(self, variable: Any, operation: str, value: Any) -> None:
        variable.write_all(operation, value)

    def made_before(self, initializer: Any, args: Any, kwargs: Any) -> Any:  # noqa: ARG002 - there is nobody else
        return None

    def created(self, variable: Any) -> None:
        pass


_current: ContextVar[Context] = ContextVar("distopt_context")
_default: list[Context] = [Context(strategy=None, replica=_OneReplica(), access=_OneValue(), is_default=True)]


def install_default(context: Context) -> None:
    """Set the context that holds outside of every strategy; done once, by :mod:`distopt.distribute`."""
    _default[:] = [context]


def current() -> Context:
    """Return the context of the calling thread."""
    return _current.get(None) or _default[0]


def current_replica(caller: str) -> ReplicaContext:
    """Return the current replica context.

    Raises: OutsideReplicaError if ``caller`` was called in a cross-replica context.
    """
    replica = current().replica
    if replica is None:
        raise OutsideReplicaError(
            f"{caller} was called in a cross-replica context; call it inside the function given to `strategy.run`"
        )
    return replica


class enter:
    """Make ``context`` the current one of this thread for the length of a ``with`` block."""

    __slots__ = ("_context", "_token")

    def __init__(self, context: Context) -> None:
        self._context = context

    def __enter__(self) -> None:
        self._token = _current.set(self._context)

    def __exit__(self, *error: object) -> None:
        _current.reset(self._token)


def call_in(context: Context, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Return ``function(*args, **kwargs)``, called with ``context`` as the current one of this thread."""
    token = _current.set(context)
    try:
        return function(*args, **kwargs)
    finally:
        _current.reset(token)


_set_for_good: ContextVar[Any] = ContextVar("distopt_global_strategy")


def experimental_set_strategy(strategy: Any) -> None:
    """Make ``strategy`` the current one from here on, as if its scope were never left; ``None`` ends that.

    Raises: ReplicaContextError inside a scope.
    """
    if _set_for_good.get(None) is not None and get_strategy() is _set_for_good.get(None):
        _current.set(_default[0])
        _set_for_good.set(None)
    if has_strategy():
        raise ReplicaContextError(
            "experimental_set_strategy was called inside the scope of a strategy; leave it before"
        )
    if strategy is not None:
        _current.set(strategy.extended.cross_context)
        _set_for_good.set(strategy)


def has_strategy() -> bool:
    """Return whether a strategy other than the default one is current."""
    return not current().is_default


def get_strategy() -> Any:
    """Return the current strategy, or the default one."""
    return current().strategy


def get_replica_context() -> ReplicaContext | None:
    """Return the current replica context, or ``None`` in a cross-replica context."""
    return current().replica


def in_cross_replica_context() -> bool:
    """Return whether the caller is outside of any replica."""
    return current().replica is None
