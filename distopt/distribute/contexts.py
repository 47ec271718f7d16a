"""The replica and cross-replica contexts of a strategy, and the collectives that a replica calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from autograd.extend import defvjp, primitive

from distopt import nest, replica_context
from distopt.distribute import values
from distopt.distribute.loss_origin import Origin
from distopt.distribute.variable_access import InReplicaAccess
from distopt.errors import InsideReplicaError, UnequalReduceOpsError
from distopt.indexed_slices import IndexedSlices
from distopt.replica_context import Context
from distopt.tensor import Operand, Tensor, call, to_array
from distopt.types import ReduceOp


class StrategyReplicaContext:
    """One replica's side of ``strategy.run``; made by the strategy, found by ``get_replica_context()``."""

    __slots__ = ("_index", "_replica_id", "context", "origin", "samples", "strategy")

    def __init__(self, strategy: Any, replica_id: int, index: int) -> None:
        self.strategy = strategy
        """The strategy whose ``run`` called this replica."""
        self._replica_id = replica_id
        self._index = index
        self.context = Context(strategy, self, InReplicaAccess(strategy, index))
        """The context to enter while this replica runs."""
        self.origin: Origin | None = None
        """What is known of the loss of the gradients that this replica took last; see ``loss_origin``."""
        self.samples: int | None = None
        """How many samples they are of, where that was noted; see ``aggregation.note_samples``."""

    @property
    def replica_id_in_sync_group(self) -> int:
        """This replica's id, ``0 <= id < num_replicas_in_sync``."""
        return self._replica_id

    @property
    def num_replicas_in_sync(self) -> int:
        """How many replicas make a step, over all processes."""
        return int(self.strategy.num_replicas_in_sync)

    def merge_call(
        self, merge_fn: Callable[..., Any], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run ``merge_fn(strategy, *args, **kwargs)`` once in this process, and return this replica's part.

        Arguments that differ between the hosted replicas arrive as ``PerReplica``; a ``PerReplica`` in the result is
        split again. Every replica must make the same merge calls in the same order.
        """
        merged = self.strategy.extended.merge(merge_fn, tuple(args), kwargs or {})
        return merged if merged is None else values.select(merged, self._index)

    def all_reduce(self, reduce_op: ReduceOp | str, value: Any, options: Any = None) -> Any:  # noqa: ARG002
        """Return ``value`` reduced over all replicas of all processes, on each of them.

        ``value`` is a tensor, a variable, a number, IndexedSlices, or a nested structure of these, of the same shapes
        everywhere; a structure takes one exchange. The canonical sum decides the order of additions; ``MEAN`` divides
        it by the number of replicas. IndexedSlices stay row-sparse: all replicas' rows in order, duplicates kept; those
        that a replica has dense become dense on all of them, which the reference does not offer.
        Differentiable where dense: the gradient is the same reduction of the upstream gradients.

        Raises: UnequalShapesError, UnequalDtypesError, UnequalReduceOpsError or MergeOrderError where replicas differ;
        TypeError for None, for booleans, and for what is no number.
        """
        operation = ReduceOp.parse(reduce_op)
        leaves = nest.flatten(value)
        totals = self.merge_call(_reduce_leaves, ([_detached(leaf) for leaf in leaves], operation))
        reduced = iter([self._reduced(*each, operation) for each in zip(leaves, totals, strict=True)])
        return nest.map_structure(lambda _: next(reduced), value)

    def _reduced(self, leaf: Any, total: Any, operation: ReduceOp) -> Any:
        result = total
        if not isinstance(total, IndexedSlices):
            result = call(_reduced, _operand(leaf), total, self, operation)
        self.strategy.extended.inspector.mark_reduced(result, operation.name)
        return result

    def all_gather(self, value: Any, axis: int, options: Any = None) -> Any:  # noqa: ARG002
        """Return the replicas' values one after another along ``axis``, in replica order, on each of them.

        ``value`` is a tensor, or a nested structure of tensors, of the same shape everywhere but for ``axis``.
        Differentiable: the gradient is this replica's part of the sum of the upstream gradients.

        Raises: NotImplementedError for IndexedSlices; ValueError for a scalar, an axis that does not exist, or other
        axes that differ.
        """
        return nest.map_structure(lambda leaf: call(_gathered, _operand(_gatherable(leaf)), self, axis), value)

    def __repr__(self) -> str:
        return f"ReplicaContext(replica {self._replica_id} of {self.num_replicas_in_sync})"


def _detached(leaf: Any) -> Any:
    return leaf if isinstance(leaf, IndexedSlices) else to_array(leaf)


def _operand(leaf: Any) -> Any:
    return leaf if isinstance(leaf, Operand) else Tensor(leaf)


def _gatherable(leaf: Any) -> Any:
    if isinstance(leaf, IndexedSlices):
        raise NotImplementedError("IndexedSlices cannot be gathered; all_reduce concatenates their rows")
    return leaf


def _reduce_leaves(strategy: Any, leaves: Any, operation: ReduceOp) -> Any:
    if isinstance(operation, values.PerReplica):
        raise UnequalReduceOpsError(
            f"the replicas reduce with each other by {' and '.join(op.name for op in operation.values)}; every replica "
            "must name the same operation"
        )
    return strategy.extended.all_reduce_leaves(operation, leaves)


def _gather_in_cross_replica(strategy: Any, value: Any, axis: int) -> Any:
    return strategy.extended.gather_arrays(value, axis)


@primitive  # type: ignore[untyped-decorator]  # autograd is untyped
def _reduced(_value: Any, total: Any, _context: StrategyReplicaContext, _operation: ReduceOp) -> Any:
    return total


@primitive  # type: ignore[untyped-decorator]  # as above
def _all_reduce(value: Any, context: StrategyReplicaContext, operation: ReduceOp) -> Any:
    return context.merge_call(_reduce_leaves, ([np.asarray(value)], operation))[0]


defvjp(
    _reduced,
    lambda _result, _value, _total, context, operation: lambda gradient: _all_reduce(gradient, context, operation),
    None,
    None,
    None,
)
defvjp(
    _all_reduce,
    lambda _result, _value, context, operation: lambda gradient: _all_reduce(gradient, context, operation),
    None,
    None,
)


@primitive  # type: ignore[untyped-decorator]  # as above
def _gathered(value: Any, context: StrategyReplicaContext, axis: int) -> Any:
    return context.merge_call(_gather_in_cross_replica, (np.asarray(value), axis))


def _own_part(_result: Any, value: Any, context: StrategyReplicaContext, axis: int) -> Callable[[Any], Any]:
    def backward(gradient: Any) -> Any:
        total = _all_reduce(gradient, context, ReduceOp.SUM)
        length = np.asarray([value.shape[axis]], np.int64)
        lengths = context.merge_call(_gather_in_cross_replica, (length, 0))
        start = int(lengths[: context.replica_id_in_sync_group].sum())
        own = [slice(None)] * value.ndim
        own[axis] = slice(start, start + value.shape[axis])
        return total[tuple(own)]

    return backward


defvjp(_gathered, _own_part, None, None)


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
