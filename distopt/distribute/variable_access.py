"""What reading a variable and assigning to it mean under a strategy: the table of contexts, in code.

=====================  ===================================  ==========================================================
                       mirrored (AUTO, ON_WRITE)            synchronized ON_READ
=====================  ===================================  ==========================================================
read, cross-replica    the first hosted copy                SUM, MEAN of the copies; ONLY_FIRST_REPLICA: replica 0's;
                                                            NONE: ValueError
read, in a replica     its copy                             its copy
assign*, cross-        every copy                           every copy; SUM: each gets its share of an assigned value,
replica                                                     and assign_add, assign_sub are a ValueError
assign*, in a          SUM, MEAN: of the replicas' values,  its copy
replica                into every copy; ONLY_FIRST_REPLICA:
                       replica 0's value; NONE: its copy
scatter_*              as assign*, but min, max and update  NotImplementedError
                       only with NONE, ONLY_FIRST_REPLICA
=====================  ===================================  ==========================================================

A mirrored variable is one stored value until a write in a replica with aggregation NONE gives each replica a copy. A
read of an ON_READ variable outside of replicas is a collective: every process makes it, at the same point.

Source: ``tf.distribute`` (``MirroredVariable``, ``SyncOnReadVariable``).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from distopt import deferral, replica_context
from distopt.assignments import is_scatter
from distopt.distribute import values
from distopt.distribute.creations import Creations
from distopt.errors import NumberToSumVariableError, ReplicaContextError
from distopt.types import Array, ReduceOp
from distopt.variable import Variable, VariableAggregation, VariableSynchronization

_REDUCED = (VariableAggregation.SUM, VariableAggregation.MEAN)
_WRITES_ROWS_AS_THEY_ARE = ("scatter_min", "scatter_max", "scatter_update")


class _Access:
    """What the contexts of a strategy have in common."""

    def __init__(self, strategy: Any) -> None:
        self._strategy = strategy

    def made_before(self, initializer: Any, args: Any, kwargs: Any) -> Variable | None:  # noqa: ARG002 - replicas do
        """Return None: outside of replicas a variable is made once."""
        return None

    def created(self, variable: Variable) -> None:
        """Give a trainable variable the value that it has on rank 0, and one synchronized ON_READ a copy a replica.

        Others start from constants, and may be created on some ranks only (an optimizer's hypers, when one is read).

        Raises: ValueError for VariableSynchronization.NONE under a strategy.
        """
        if variable.strategy is None:
            return
        if variable.synchronization is VariableSynchronization.NONE:
            raise ValueError(
                f"{variable.name} has synchronization NONE, which says nothing about its copies under "
                f"{self._strategy!r}; use ON_WRITE, ON_READ or AUTO"
            )
        if variable.synchronization is VariableSynchronization.ON_READ:
            self._strategy.extended.own_copies(variable)
        if variable.trainable:
            self._strategy.extended.share_initial_value(variable)

    def _check_owner(self, variable: Variable, what: str) -> None:
        if variable.strategy is not None and variable.strategy is not self._strategy:
            raise ReplicaContextError(
                f"{what} {variable.name}, which belongs to {variable.strategy!r}, under {self._strategy!r}; a "
                "variable is used under one strategy"
            )


class CrossReplicaAccess(_Access):
    """Outside of replicas; under the default strategy, of variables of every strategy."""

    def __init__(self, strategy: Any, *, is_default: bool = False) -> None:
        super().__init__(strategy)
        self._is_default = is_default

    def read(self, variable: Variable) -> Array:
        """Return what the copies come to.

        Raises: ValueError for an ON_READ variable with aggregation NONE.
        """
        if not self._is_default:
            self._check_owner(variable, "read of")
        if variable.synchronization is VariableSynchronization.ON_READ and variable.strategy is not None:
            value: Array = variable.strategy.extended.aggregated(variable)
            return value
        return variable.storage

    def assign(self, variable: Variable, operation: str, value: Any) -> None:
        """Write to every copy.

        Raises: ValueError for ``assign_add`` or ``assign_sub`` of an ON_READ variable with aggregation SUM;
        NotImplementedError for what :func:`check_scatter` refuses.
        """
        if not self._is_default:
            self._check_owner(variable, "write to")
        owner = variable.strategy
        if owner is not None:
            check_scatter(variable, operation)
            if _is_summed_on_read(variable):
                if operation != "assign":
                    raise ValueError(
                        f"{variable.name} is synchronized ON_READ with aggregation SUM: {operation} outside of "
                        "replicas would count once a replica; use assign, or call it inside `strategy.run`"
                    )
                total = np.asarray(variable.operand(operation, value))
                value = (total / owner.num_replicas_in_sync).astype(total.dtype)
        variable.write_all(operation, value)


class InReplicaAccess(_Access):
    """Inside a replica, the one at ``position`` of those of this process."""

    def __init__(self, strategy: Any, position: int) -> None:
        super().__init__(strategy)
        self._position = position

    def made_before(self, initializer: Any, args: Any, kwargs: Any) -> Variable | None:
        """Return the variable that the first replica of this process made here.

        Raises: VariablePerReplicaError as :class:`~distopt.distribute.creations.Creations`.
        """
        creations: Creations | None = self._strategy.extended.creations
        if self._position == 0 or creations is None or deferral.building() is not None:
            return None
        return creations.take(self._position, initializer, args, kwargs)

    def created(self, variable: Variable) -> None:
        """Do what is done elsewhere, and keep the variable for the other replicas of this process."""
        super().created(variable)
        if self._strategy.extended.creations is not None:
            self._strategy.extended.creations.add(variable)

    def read(self, variable: Variable) -> Array:
        """Return this replica's copy."""
        self._check_owner(variable, "read of")
        return variable.copy_of(replica_context.current_replica("a read").replica_id_in_sync_group)

    def assign(self, variable: Variable, operation: str, value: Any) -> None:
        """Write to this replica's copy, or reduce the replicas' values and write the result everywhere.

        Raises: NumberToSumVariableError for Python numbers given to a SUM variable, whose meaning would depend on the
        number of replicas; PlacementError where the placement cannot hold copies; NotImplementedError for what
        :func:`check_scatter` refuses.
        """
        self._check_owner(variable, "write to")
        context = replica_context.current_replica("an assignment")
        extended = self._strategy.extended
        check_scatter(variable, operation)
        aggregation = variable.aggregation
        if variable.synchronization is VariableSynchronization.ON_READ and variable.is_split:
            variable.write_copy(context.replica_id_in_sync_group, operation, value)
            return
        if context.num_replicas_in_sync == 1 and (extended.communicator is None or extended.communicator.size == 1):
            variable.write_all(operation, value)
            return
        if aggregation is VariableAggregation.NONE:
            extended.split((variable,))
            variable.write_copy(context.replica_id_in_sync_group, operation, value)
            return
        if aggregation is VariableAggregation.SUM and isinstance(value, int | float | list | tuple):
            raise NumberToSumVariableError(
                f"{variable.name} has aggregation SUM: assigning the number {value!r} on every replica would add it up "
                f"{context.num_replicas_in_sync} times; assign a tensor that each replica computed"
            )
        context.merge_call(_assign_aggregated, (variable, operation, variable.operand(operation, value)))


class UpdateAccess(_Access):
    """Inside a function given to ``extended.update``: one replica's copy, in a cross-replica context."""

    def __init__(self, strategy: Any, replica_id: int) -> None:
        super().__init__(strategy)
        self._replica_id = replica_id

    def read(self, variable: Variable) -> Array:
        """Return the copy that is being updated."""
        self._check_owner(variable, "read of")
        return variable.copy_of(self._replica_id)

    def assign(self, variable: Variable, operation: str, value: Any) -> None:
        """Write to the copy that is being updated, or to the one value."""
        self._check_owner(variable, "write to")
        variable.write_copy(self._replica_id, operation, value)


def check_scatter(variable: Variable, operation: str) -> None:
    """Refuse to write rows where the result would not be defined.

    Raises: NotImplementedError.
    """
    if not is_scatter(operation):
        return
    if variable.synchronization is VariableSynchronization.ON_READ:
        raise NotImplementedError(f"{variable.name} is synchronized ON_READ, which does not offer {operation}")
    if operation in _WRITES_ROWS_AS_THEY_ARE and variable.strategy is not None and variable.aggregation in _REDUCED:
        raise NotImplementedError(
            f"{operation} of {variable.name} needs aggregation NONE or ONLY_FIRST_REPLICA, not "
            f"{variable.aggregation.name}"
        )


def _is_summed_on_read(variable: Variable) -> bool:
    return (
        variable.synchronization is VariableSynchronization.ON_READ and variable.aggregation is VariableAggregation.SUM
    )


def _assign_aggregated(strategy: Any, variable: Variable, operation: str, value: Any) -> None:
    extended = strategy.extended
    if variable.aggregation is VariableAggregation.ONLY_FIRST_REPLICA:
        total = extended.of_first_replica(value)
    else:
        mean = variable.aggregation is VariableAggregation.MEAN
        column = values.local_components(value, extended.num_hosted)
        (total,) = extended.all_reduce_leaves(ReduceOp.MEAN if mean else ReduceOp.SUM, [values.PerReplica(column)])
    variable.write_all(operation, total)
