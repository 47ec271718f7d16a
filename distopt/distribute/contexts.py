"""The replica and cross-replica contexts of a strategy, and what an assignment means in each.

Source: TensorFlow's table of variable writes (synchronization x aggregation x context).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from autograd.extend import defvjp, primitive

from distopt import replica_context
from distopt.distribute import values
from distopt.errors import InsideReplicaError, NumberToSumVariableError, UnequalReduceOpsError
from distopt.nest import map_structure
from distopt.replica_context import Context
from distopt.tensor import call
from distopt.types import ReduceOp
from distopt.variable import VariableAggregation, VariableSynchronization


class StrategyReplicaContext:
    """One replica's side of ``strategy.run``; made by the strategy, found by ``get_replica_context()``."""

    __slots__ = ("_context", "_index", "_replica_id", "_strategy", "origin")

    def __init__(self, strategy: Any, replica_id: int, index: int) -> None:
        self._strategy = strategy
        self._replica_id = replica_id
        self._index = index
        self._context = Context(strategy, self, InReplicaWriter(strategy))
        self.origin: Any = None
        """What is known of the loss of the gradients that this replica took last; see ``loss_origin``."""

    @property
    def context(self) -> Context:
        """The context to enter while this replica runs."""
        return self._context

    def use_context(self, context: Context) -> None:
        """Enter ``context`` instead of one made for this replica; for the default strategy."""
        self._context = context

    @property
    def replica_id_in_sync_group(self) -> int:
        """This replica's id, ``0 <= id < num_replicas_in_sync``."""
        return self._replica_id

    @property
    def num_replicas_in_sync(self) -> int:
        """How many replicas make a step, over all processes."""
        return int(self._strategy.num_replicas_in_sync)

    @property
    def strategy(self) -> Any:
        """The strategy whose ``run`` called this replica."""
        return self._strategy

    def merge_call(
        self, merge_fn: Callable[..., Any], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run ``merge_fn(strategy, *args, **kwargs)`` once in this process, and return this replica's part.

        Arguments that differ between the hosted replicas arrive as ``PerReplica``; a ``PerReplica`` in the result is
        split again. Every replica must make the same merge calls in the same order.
        """
        merged = self._strategy.extended.merge(merge_fn, tuple(args), kwargs or {})
        return merged if merged is None else values.select(merged, self._index)

    def all_reduce(self, reduce_op: ReduceOp | str, value: Any, options: Any = None) -> Any:  # noqa: ARG002
        """Return ``value`` reduced over all replicas of all processes, on each of them.

        ``value`` is a tensor, a variable, a number or a nested structure of these, of the same shapes everywhere.
        The canonical sum decides the order of additions; ``MEAN`` divides it by the number of replicas.
        Differentiable: the gradient is the same reduction of the upstream gradients.

        Raises: UnequalShapesError, UnequalDtypesError, UnequalReduceOpsError or MergeOrderError where replicas differ.
        """
        operation = ReduceOp.parse(reduce_op)
        reduced = map_structure(lambda leaf: call(_all_reduce, leaf, self, operation), value)
        map_structure(lambda leaf: self._strategy.extended.inspector.mark_reduced(leaf, operation.name), reduced)
        return reduced

    def __repr__(self) -> str:
        return f"ReplicaContext(replica {self._replica_id} of {self.num_replicas_in_sync})"


def _reduce_in_cross_replica(strategy: Any, array: Any, operation: ReduceOp) -> Any:
    if isinstance(operation, values.PerReplica):
        raise UnequalReduceOpsError(
            f"the replicas reduce with each other by {' and '.join(op.name for op in operation.values)}; every replica "
            "must name the same operation"
        )
    return strategy.extended.all_reduce_arrays(operation, array)


@primitive  # type: ignore[untyped-decorator]  # autograd is untyped
def _all_reduce(value: Any, context: StrategyReplicaContext, operation: ReduceOp) -> Any:
    return context.merge_call(_reduce_in_cross_replica, (np.asarray(value), operation))


defvjp(
    _all_reduce,
    lambda _result, _value, context, operation: lambda gradient: _all_reduce(gradient, context, operation),
    None,
    None,
)


class _StrategyWriter:
    """What writers of a strategy have in common."""

    def __init__(self, strategy: Any) -> None:
        self._strategy = strategy

    def created(self, variable: Any) -> None:
        """Give a trainable variable the value that it has on rank 0.

        Others start from constants, and may be created on some ranks only (an optimizer's hypers, when one is read).
        """
        if variable.synchronization is VariableSynchronization.ON_READ and self._strategy.num_replicas_in_sync > 1:
            raise NotImplementedError(
                f"{variable.name} is synchronized ON_READ, which strategies do not offer yet; keep one value a replica "
                "yourself and reduce it with `strategy.reduce`"
            )
        if not self._strategy.extended.inspector.is_default:
            variable.creator = weakref.ref(self._strategy)
        if variable.trainable:
            self._strategy.extended.share_initial_value(variable)


class CrossReplicaWriter(_StrategyWriter):
    """Assignments outside of replicas: every copy gets the value."""

    def assign(self, variable: Any, operation: str, value: Any) -> None:
        """Write to the stored value and to all copies."""
        variable.write_all(operation, value)


class InReplicaWriter(_StrategyWriter):
    """Assignments inside a replica, by the variable's aggregation.

    SUM, MEAN: the replicas' values are reduced, then written everywhere. ONLY_FIRST_REPLICA: replica 0's value.
    NONE: only this replica's copy changes, so the variable splits into one copy a replica.
    """

    def assign(self, variable: Any, operation: str, value: Any) -> None:
        """Write as the variable's ``aggregation`` says.

        Raises: NumberToSumVariableError for a Python number given to a SUM variable, whose meaning would depend on
        the number of replicas; PlacementError where the placement cannot hold copies.
        """
        context = replica_context.current_replica("an assignment")
        communicator = self._strategy.extended.communicator
        if context.num_replicas_in_sync == 1 and (communicator is None or communicator.size == 1):
            variable.write_all(operation, value)
            return
        aggregation = variable.aggregation
        if aggregation is VariableAggregation.NONE:
            self._strategy.extended.split((variable,))
            variable.write_copy(context.replica_id_in_sync_group, operation, value)
            return
        if aggregation is VariableAggregation.SUM and isinstance(value, int | float):
            raise NumberToSumVariableError(
                f"{variable.name} has aggregation SUM: assigning the number {value!r} on every replica would add it up "
                f"{context.num_replicas_in_sync} times; assign a tensor that each replica computed"
            )
        array = np.asarray(value, dtype=variable.dtype)
        context.merge_call(_assign_aggregated, (variable, operation, array))


def _assign_aggregated(strategy: Any, variable: Any, operation: str, value: Any) -> None:
    if variable.aggregation is VariableAggregation.ONLY_FIRST_REPLICA:
        total = strategy.extended.of_first_replica(value)
    else:
        mean = variable.aggregation is VariableAggregation.MEAN
        total = strategy.extended.all_reduce_arrays(ReduceOp.MEAN if mean else ReduceOp.SUM, value)
    variable.write_all(operation, total)


def require_cross_replica(caller: str) -> None:
    """Refuse ``caller`` inside a replica.

    Raises: InsideReplicaError.
    """
    context = replica_context.current()
    if context.replica is not None and not context.is_default:
        raise InsideReplicaError(
            f"{caller} was called inside a replica; call it in cross-replica context (outside `strategy.run`), or use "
            "`get_replica_context().all_reduce` there"
        )
