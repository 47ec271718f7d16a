"""``Strategy``: the face that users know, over what :mod:`distopt.distribute.extended` does.

Names, arguments and errors follow ``tf.distribute.Strategy``. ``num_replicas_in_sync`` belongs to the job: it does not
change with the number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from distopt import blas, replica_context, threads
from distopt.comm.communicator import Communicator, Hosting
from distopt.distribute import values
from distopt.distribute.contexts import require_cross_replica
from distopt.distribute.datasets import distribute_dataset, distribute_from_function
from distopt.distribute.inputs import InputContext, InputOptions, ValueContext
from distopt.distribute.owners import Phases
from distopt.distribute.strategy_extended import StrategyExtended
from distopt.errors import CountedManyTimesError, ReplicaContextError
from distopt.indexed_slices import IndexedSlices
from distopt.nest import map_structure
from distopt.tensor import Tensor
from distopt.types import ReduceOp
from distopt.variable import Variable


class Strategy:
    """Replicas that make steps together; made by the subclasses.

    Making one holds the BLAS of the process at one thread, unless :func:`distopt.blas.pin_threads` has chosen a number:
    how many there are decides the last bits, and processes of one host would fight for its cores. Where there are other
    processes, updates run in one thread, too, unless :func:`distopt.threads.set_num_threads` has chosen a number.
    """

    def __init__(self, hosting: Hosting, rank: int = 0, communicator: Communicator | None = None) -> None:
        blas.pin_threads_by_default()
        if communicator is not None and communicator.size > 1:
            threads.share_processors_by_default()
        self._cluster_resolver: Any = None
        self.extended = StrategyExtended(self, hosting, rank, communicator, Phases())
        """The interface for optimizers and other library code."""

    @property
    def num_replicas_in_sync(self) -> int:
        """How many replicas make a step, over all processes."""
        return self.extended.hosting.num_replicas

    @property
    def placement(self) -> str:
        """Where the owners of the variables live: ``"replica"``, ``"sharded"`` or ``"server"``."""
        return self.extended.owners.placement

    @contextmanager
    def scope(self) -> Iterator[Strategy]:
        """Make this the current strategy; variables created inside have one value for all replicas.

        Raises: ReplicaContextError inside another strategy's scope, or inside a replica.
        """
        current = replica_context.current()
        if not current.is_default and current.strategy is not self:
            raise ReplicaContextError(
                f"the scope of {current.strategy!r} is active; leave it before entering that of {self!r}"
            )
        if current.replica is not None and not current.is_default:
            raise ReplicaContextError("strategy.scope() was entered inside a replica; enter it outside `strategy.run`")
        with replica_context.enter(self.extended.cross_context):
            yield self

    def run(
        self,
        fn: Callable[..., Any],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
        options: Any = None,  # noqa: ARG002 - TensorFlow's argument; nothing to choose here
    ) -> Any:
        """Call ``fn`` once for each replica that this process hosts, and return the regrouped results.

        ``PerReplica`` arguments, also nested ones, are replaced by the replica's component. Replicas of one process
        run one after another and meet in ``merge_call`` and ``all_reduce``. A result that is the same object on every
        replica comes back as it is, anything else as ``PerReplica``.

        Raises: ValueError if ``args`` is not a list or tuple; InsideReplicaError inside a replica.
        """
        if not isinstance(args, list | tuple):
            raise ValueError(f"args must be a list or tuple of the function's arguments, not {type(args).__name__}")
        require_cross_replica("strategy.run")
        hosted = range(self.extended.num_hosted)
        args_of = [values.select_arguments(args, i) for i in hosted]
        kwargs_of = [values.select(kwargs, i) for i in hosted] if kwargs else ()
        return values.regroup(self.extended.run_replicas(fn, args_of, kwargs_of))

    def reduce(self, reduce_op: ReduceOp | str, value: Any, axis: int | tuple[int, ...] | None) -> Any:
        """Return ``value`` reduced over all replicas of all processes.

        ``axis=None``: element-wise over replicas, whose shapes must match. Otherwise over that axis within each
        replica and then over replicas; MEAN divides by the number of elements along the axis over *all* replicas, so
        uneven batches get their true mean. MEAN of a value that is not per replica returns it.

        Raises: CountedManyTimesError for SUM of a value that is not per replica; InsideReplicaError inside a replica.
        """
        require_cross_replica("strategy.reduce")
        operation = ReduceOp.parse(reduce_op)
        if isinstance(value, dict | list | tuple):
            return map_structure(lambda leaf: self.reduce(operation, leaf, axis), value)
        is_plain = not isinstance(value, values.DistributedValues)
        # With several processes every one of them takes part: the others cannot know that the value is plain here.
        if is_plain and self.num_replicas_in_sync > 1 and self.extended.communicator is None:
            return self._reduce_plain(operation, value, axis)
        if axis is None:
            (total,) = self.extended.all_reduce_leaves(operation, [value])
        else:
            components = [np.asarray(c) for c in values.local_components(value, self.extended.num_hosted)]
            sums = values.PerReplica([np.asarray(c.sum(axis=axis, dtype=c.dtype)) for c in components])
            total = self.extended.all_reduce_arrays(ReduceOp.SUM, sums)
            if operation is ReduceOp.MEAN:
                axes = axis if isinstance(axis, tuple) else (axis,)
                counts = [np.asarray(np.prod([c.shape[a] for a in axes]), np.int64) for c in components]
                count = self.extended.all_reduce_arrays(ReduceOp.SUM, values.PerReplica(counts))
                total = total / total.dtype.type(count)
        reduced = total if isinstance(total, IndexedSlices) else Tensor(np.array(total))
        self.extended.inspector.mark_reduced(reduced, operation.name)
        return reduced

    def _reduce_plain(self, operation: ReduceOp, value: Any, axis: Any) -> Any:
        if operation is ReduceOp.SUM and np.any(np.asarray(value) != 0):
            raise CountedManyTimesError(
                f"strategy.reduce(SUM) of {value!r}, which is not a per-replica value: it would be counted "
                f"{self.num_replicas_in_sync} times; reduce what each replica has computed: what is the very same "
                "object on all of them, `strategy.run` returns as it is"
            )
        array = np.asarray(value)
        return value if axis is None else Tensor(array.mean(axis=axis) if operation is ReduceOp.MEAN else array)

    def gather(self, value: Any, axis: int) -> Any:
        """Return the replicas' values one after another along ``axis``, in replica order, on every process.

        ``value`` is a tensor on each replica, or a nested structure of such; lengths along ``axis`` may differ.

        Raises: NotImplementedError for IndexedSlices; ValueError for scalars, an axis that does not exist, or other
        axes that differ; ReplicaContextError inside a replica.
        """
        require_cross_replica("strategy.gather")

        def gathered(leaf: Any) -> Tensor:
            local = values.local_components(leaf, 1)
            if any(isinstance(component, IndexedSlices) for component in local):
                raise NotImplementedError("IndexedSlices cannot be gathered; reduce them, or gather their values")
            return Tensor(self.extended.gather_arrays(leaf, axis))

        return map_structure(gathered, value)

    def experimental_local_results(self, value: Any) -> tuple[Any, ...]:
        """Return the components of ``value`` on the replicas of this process, none if it hosts no replica.

        A variable gives one tensor a replica, with the value of its copy; anything else that is not per replica becomes
        a 1-tuple.
        """
        extended = self.extended
        if not extended.hosted:
            return ()
        if isinstance(value, values.DistributedValues):
            return value.values
        if isinstance(value, Variable):
            return tuple(Tensor(value.copy_of(replica).copy()) for replica in extended.hosted)
        return (value,)

    def experimental_distribute_dataset(self, dataset: Any, options: InputOptions | None = None) -> Iterable[Any]:
        """Return an iterable that splits each global batch of ``dataset`` over all replicas.

        ``dataset`` is batched with the *global* batch size, and says by its options how batches are cut: see
        :mod:`distopt.distribute.datasets`.

        Raises: NotImplementedError for InputOptions that ask for a dataset a replica.
        """
        return distribute_dataset(dataset, self, options)

    def distribute_datasets_from_function(
        self, dataset_fn: Callable[[InputContext], Iterable[Any]], options: InputOptions | None = None
    ) -> Iterable[Any]:
        """Return an iterable over batches that ``dataset_fn(InputContext)`` made for single replicas.

        The function is called once on each process that hosts replicas; successive batches go to successive replicas of
        that process. It shards and batches by itself: :class:`InputContext` tells by what. With InputOptions that ask
        for a dataset a replica it is called once for each; then the data do not depend on the number of processes.
        """
        return distribute_from_function(dataset_fn, self, options)

    def experimental_distribute_values_from_function(self, value_fn: Callable[[ValueContext], Any]) -> Any:
        """Return what ``value_fn(ValueContext)`` gives for each hosted replica, always as ``PerReplica``."""
        require_cross_replica("strategy.experimental_distribute_values_from_function")
        contexts = [ValueContext(c.replica_id_in_sync_group, self.num_replicas_in_sync) for c in self.extended.contexts]
        return values.regroup([value_fn(context) for context in contexts], always_wrap=True)

    @property
    def cluster_resolver(self) -> Any:
        """The cluster resolver that the strategy was made with, or None."""
        return self._cluster_resolver

    def __deepcopy__(self, memo: dict[int, Any]) -> Strategy:
        """Return the strategy itself: what is copied goes on to share it."""
        return self

    def __copy__(self) -> Strategy:
        raise ReplicaContextError("a strategy cannot be copied; pass the object itself")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.num_replicas_in_sync} replicas, placement {self.placement!r})"
