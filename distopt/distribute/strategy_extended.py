"""What library code calls as ``strategy.extended.<name>``: devices, placement of reductions, updates of copies.

Names, arguments and errors follow ``tf.distribute.StrategyExtended``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from distopt import replica_context
from distopt.distribute import values
from distopt.distribute.contexts import require_cross_replica
from distopt.distribute.extended import Extended
from distopt.distribute.variable_access import UpdateAccess
from distopt.errors import ReplicaContextError
from distopt.indexed_slices import IndexedSlices
from distopt.replica_context import Context
from distopt.tensor import Tensor
from distopt.types import Array, ReduceOp
from distopt.variable import Variable


class StrategyExtended(Extended):
    """The whole interface: what optimizers here need (:class:`~distopt.distribute.extended.Extended`), and the rest."""

    @property
    def worker_devices(self) -> tuple[str, ...]:
        """A name for what each replica of this process runs on."""
        return tuple(f"/replica:{replica}/device:CPU" for replica in self.hosted)

    @property
    def parameter_devices(self) -> tuple[str, ...]:
        """Names of what holds the variables: what the replicas run on."""
        return self.worker_devices

    @property
    def should_checkpoint(self) -> bool:
        """Whether this process is the one that writes checkpoints."""
        return self.rank == 0

    @property
    def should_save_summary(self) -> bool:
        """Whether this process is the one that writes summaries."""
        return self.rank == 0

    @property
    def experimental_require_static_shapes(self) -> bool:
        """False: shapes may change from step to step."""
        return False

    def gradient_arrays(self, optimizer: Any, variables: Sequence[Variable]) -> list[Array]:
        """Return an array for each of ``variables``, of its shape and dtype, to write a gradient into.

        With placement ``sharded``, where this process hosts one replica, they lie where the owners read: gradients that
        are written there, and given to ``apply_gradients`` as these very arrays, all in the order of ``variables``, are
        not copied. Elsewhere they are arrays as any other. What is in them is the caller's until ``apply_gradients``,
        and again after it. Every process must make the call, at the same point.

        Raises: SharedMemoryError if there is not enough memory.
        """
        optimizer.build(variables)
        shared = self.owners.gradient_arrays(optimizer, variables)
        if shared is None:
            return [np.empty(v.shape, v.dtype) for v in variables]
        optimizer.fits.add(variables, shared)
        return list(shared)

    def gradient_rows(self, variable: Variable, num_rows: int) -> Array:
        """Return an array for the values of at most ``num_rows`` rows of a row-sparse gradient of ``variable``.

        Where processes share the memory of their host, the others read what lies there: ``IndexedSlices`` whose values
        are this array, or some rows of it one after another, are not copied, as long as no row comes twice or the rule
        takes occurrences one by one, and no hook has changed them before. Elsewhere it is an array as any other. What
        is in it is the caller's until ``apply_gradients``, and again after it. A process has one such array for a
        variable: a later call gives another, of other memory, and what is in the first is copied from then on. Each
        process may ask for another number of rows, but every one must make the call, at the same point.

        Shapes: ``[num_rows, ...]``, otherwise as ``variable``, whose dtype it has.

        Raises: SharedMemoryError if there is not enough memory; ValueError for a negative number.

        >>> import numpy as np
        >>> import distopt as tf
        >>> strategy, table = tf.distribute.MirroredStrategy(1), tf.Variable(np.zeros((1000, 4), np.float32))
        >>> values = strategy.extended.gradient_rows(table, 100)
        >>> values[:2] = 1.0
        >>> optimizer = tf.keras.optimizers.SGD(0.5)
        >>> gradient = tf.IndexedSlices(values[:2], [7, 3], table.shape)
        >>> _ = strategy.run(lambda: optimizer.apply_gradients([(gradient, table)]))
        >>> table.numpy()[[3, 7, 8], 0]
        array([-0.5, -0.5,  0. ], dtype=float32)
        """
        if num_rows < 0:
            raise ValueError(f"gradient_rows needs a number of rows that is 0 or more, not {num_rows}")
        shared = self.owners.gradient_rows(variable, num_rows)
        return np.empty((num_rows, *variable.shape[1:]), variable.dtype) if shared is None else shared

    def call_for_each_replica(
        self, fn: Callable[..., Any], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Return ``strategy.run(fn, args, kwargs)``."""
        return self.strategy.run(fn, args, kwargs)

    def reduce_to(self, reduce_op: ReduceOp | str, value: Any, destinations: Any, options: Any = None) -> Any:  # noqa: ARG002
        """Return ``value`` reduced over all replicas, as ``Mirrored``; every process holds it, wherever it is to go."""
        require_cross_replica("extended.reduce_to")
        total = self.strategy.reduce(reduce_op, value, axis=None)
        return values.Mirrored([total] * self.num_hosted)

    def batch_reduce_to(
        self,
        reduce_op: ReduceOp | str,
        value_destination_pairs: Sequence[tuple[Any, Any]],
        options: Any = None,
    ) -> list[Any]:
        """Return :meth:`reduce_to` of each value, all in one exchange."""
        del options
        require_cross_replica("extended.batch_reduce_to")
        operation = ReduceOp.parse(reduce_op)
        totals = self.all_reduce_leaves(operation, [value for value, _ in value_destination_pairs])
        tensors = [total if isinstance(total, IndexedSlices) else Tensor(total) for total in totals]
        return [values.Mirrored([tensor] * self.num_hosted) for tensor in tensors]

    def broadcast_to(self, tensor: Any, destinations: Any) -> Any:  # noqa: ARG002
        """Return ``tensor`` as ``Mirrored``."""
        require_cross_replica("extended.broadcast_to")
        return values.Mirrored([tensor] * self.num_hosted)

    def update(
        self,
        var: Variable,
        fn: Callable[..., Any],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
        group: bool = True,
    ) -> Any:
        """Call ``fn(var, *args, **kwargs)`` once for each copy that this process hosts, and return what it returns.

        While it runs, reading and assigning mean that copy; per-replica arguments are those of its replica. Copies that
        end up alike are one value again. With ``group`` the results come back regrouped, else as a tuple of one a copy,
        or of one where all are the same object. In a replica, all replicas meet for it.

        Raises: ValueError for a variable of another strategy.
        """
        current = replica_context.current()
        if current.replica is not None and not current.is_default:
            return current.replica.merge_call(_update, (var, fn, tuple(args), kwargs or {}, group))
        self.check_variables([var])
        var.check_writable()
        was_split = var.is_split
        if not was_split and self.num_hosted > 1:
            self.split([var])
        results = []
        try:
            for index, context in enumerate(self.contexts):
                access = UpdateAccess(self.strategy, context.replica_id_in_sync_group)
                with replica_context.enter(Context(self.strategy, None, access, self.cross_context.is_default)):
                    own_kwargs = values.select(kwargs, index) if kwargs else {}
                    results.append(fn(var, *values.select_arguments(args, index), **own_kwargs))
        finally:
            if not was_split and var.is_split:
                var.merge_equal_copies()
        return self._grouped(results, group)

    def update_non_slot(
        self,
        colocate_with: Any,
        fn: Callable[..., Any],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
        group: bool = True,
    ) -> Any:
        """Call ``fn(*args, **kwargs)`` once for each replica of this process; results as those of :meth:`update`."""
        del colocate_with
        require_cross_replica("extended.update_non_slot")
        results = [
            fn(*values.select_arguments(args, index), **(values.select(kwargs, index) if kwargs else {}))
            for index in range(self.num_hosted)
        ]
        return self._grouped(results, group)

    def _grouped(self, results: list[Any], group: bool) -> Any:
        merged = values.regroup(results)
        if group:
            return merged
        return merged.values if isinstance(merged, values.DistributedValues) else (merged,)

    def non_slot_devices(self, var_list: Any) -> tuple[str, ...]:  # noqa: ARG002
        """Return where what belongs to no variable lies: on every replica."""
        return self.worker_devices

    def read_var(self, v: Variable) -> Tensor:
        """Return the value of a variable, as it is read here."""
        return v.read_value()

    def variable_created_in_scope(self, v: Any) -> bool:
        """Return whether a variable was created in the scope of this strategy (of no strategy, for the default one)."""
        owner = getattr(v, "strategy", None)
        return owner is None if self.cross_context.is_default else owner is self.strategy

    @contextmanager
    def colocate_vars_with(self, colocate_with_variable: Any) -> Iterator[None]:
        """Create variables beside another one; here all of them lie in this process anyway.

        Raises: ValueError for anything but a variable of this strategy; ReplicaContextError outside of its scope.
        """
        if replica_context.get_strategy() is not self.strategy:
            raise ReplicaContextError(f"colocate_vars_with is used inside the scope of {self.strategy!r}")
        if not isinstance(colocate_with_variable, Variable) or not self.variable_created_in_scope(
            colocate_with_variable
        ):
            raise ValueError(
                f"{colocate_with_variable!r} is no variable that was created in the scope of {self.strategy!r}"
            )
        yield


def _update(strategy: Any, var: Any, fn: Any, args: Any, kwargs: Any, group: Any) -> Any:
    return strategy.extended.update(var, fn, args, kwargs, group)
