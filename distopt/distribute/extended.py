"""The part of a strategy that optimizers, aggregators and contexts call: merging, reducing, splitting, applying."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
import numpy as np

from distopt import replica_context
from distopt.aggregation import Aggregator, GradientAggregator, Mean, Sum
from distopt.autodiff.nodes import state
from distopt.comm.communicator import Communicator, Hosting
from distopt.distribute import gathering, values
from distopt.distribute.checks import Checks
from distopt.distribute.contexts import StrategyReplicaContext
from distopt.distribute.contributing import contributed, refuse_repeated
from distopt.distribute.creations import Creations, share_value
from distopt.distribute.in_host_memory import every_process
from distopt.distribute.inspector import Inspector
from distopt.distribute.introduction import with_own_values
from distopt.distribute.loss_origin import note_origin
from distopt.distribute.owners import Owners, Phases, num_bytes_of_all, same_variables
from distopt.distribute.receipts import Receipt, ReceiptBook, path_name
from distopt.distribute.replica_greenlets import ReplicaGreenlets
from distopt.distribute.variable_access import CrossReplicaAccess
from distopt.errors import UnequalHypersError
from distopt.indexed_slices import IndexedSlices
from distopt.nans import same_bits
from distopt.optimizers.pipeline import Pairs, check_gradients
from distopt.replica_context import Context
from distopt.types import Array, ReduceOp
from distopt.variable import VariableAggregation

_NO_KWARGS: dict[str, Any] = {}
_SUM, _MEAN = Sum(), Mean()
_OPERATION_OF = {VariableAggregation.SUM: ReduceOp.SUM, VariableAggregation.MEAN: ReduceOp.MEAN}


class Extended:
    """What one process of a strategy hosts, and the collectives over all processes.

    A process that hosts no replica runs one *stand-in*: it gets empty data and takes part in every collective, but
    contributes nothing. So user code needs no branch for it.
    """

    def __init__(
        self, strategy: Any, hosting: Hosting, rank: int, communicator: Communicator | None, phases: Phases
    ) -> None:
        self.hosting = hosting
        self.rank = rank
        self.communicator = communicator
        self.phases = phases
        self.hosted = hosting.hosted[rank]
        ids = self.hosted or (hosting.num_replicas - 1,)
        self.contexts = tuple(StrategyReplicaContext(strategy, replica, i) for i, replica in enumerate(ids))
        self.book = ReceiptBook(hosting, communicator, path_name(hosting, communicator))
        self.listener: Callable[[Sequence[Any]], Any] | None = None
        """Told of gradients before a backward pass has ended, where they leave this process meanwhile."""
        self.inspector = Inspector(strategy, hosting, self.contexts, communicator, self.book, rank)
        self.every_process = every_process(hosting, rank, communicator, phases, self.inspector)
        self.owners: Owners = self.every_process
        self.num_hosted = len(self.contexts)
        """How many replica contexts run in this process, a stand-in included."""
        self.cross_context = Context(strategy, None, CrossReplicaAccess(strategy))
        self.given_hypers: dict[str, float] | None = None
        """Hypers that were evaluated elsewhere, for a server that re-enacts replicas."""
        self._written_alone: tuple[int, ...] = ()
        """The variables of the latest update without aggregation, by identity."""
        self._host_of_first_replica = next(rank for rank, replicas in enumerate(hosting.hosted) if 0 in replicas)
        self.strategy = strategy
        self.creations = Creations(ids) if len(ids) > 1 else None
        """What replicas have made in the run that is under way; None where there is one replica in this process."""
        self._greenlets = ReplicaGreenlets()
        self._merging_s = 0.0
        self.merge: Callable[[Callable[..., Any], Any, Any], Any]
        self.merge = self._merge_now if self.num_hosted == 1 else self._greenlets.merge
        """Meet the other hosted replicas, run the given function once, return its result for all of them."""

    @property
    def owners_re_enact_replicas(self) -> bool:
        """Whether the owner runs whole-gradient hooks; see :class:`~distopt.distribute.owners.Owners`."""
        return self.owners.re_enact_replicas

    @property
    def checks(self) -> Checks:
        """What is checked in every step, and what is done about it; may be set at any time, alike on all processes."""
        return self.inspector.checks

    @checks.setter
    def checks(self, checks: Checks) -> None:
        self.inspector.checks = checks

    @property
    def last_receipts(self) -> tuple[Receipt, ...]:
        """The receipts of the reductions of the latest ``strategy.run``, in their order; the last 256 at most.

        One replica reduces nothing and leaves none.

        >>> import numpy as np
        >>> import distopt as tf
        >>> strategy, w = tf.distribute.MirroredStrategy(2), tf.Variable(np.zeros(3, np.float32), name="w")
        >>> optimizer = tf.keras.optimizers.SGD(0.1)
        >>> _ = strategy.run(lambda: optimizer.apply_gradients([(np.ones(3, np.float32), w)]))
        >>> (receipt,) = strategy.extended.last_receipts
        >>> receipt.variables, receipt.participants, receipt.operation, receipt.weight, receipt.num_bytes
        (('w:0',), (0, 1), 'sum', 1.0, 24)
        """
        return self.book.receipts()

    def observe_reductions(self, observer: Callable[[Receipt], Any]) -> Callable[[], None]:
        """Call ``observer`` with the receipt of every reduction from now on; return a function that ends it."""
        return self.book.observe(observer)

    def run_replicas(
        self, function: Callable[..., Any], args_of: Sequence[Sequence[Any]], kwargs_of: Sequence[dict[str, Any]] = ()
    ) -> Sequence[Any]:
        """Call ``function`` on every hosted replica, each with its own arguments, and return the results in order."""
        started = time.perf_counter()
        self._merging_s = 0.0
        watcher, listener = state.watcher, state.listener
        if self.inspector.several:
            self.book.begin()
            state.watcher = note_origin if self.inspector.begin_run() else None
            state.listener = self.listener
        try:
            if self.num_hosted == 1:
                kwargs = kwargs_of[0] if kwargs_of else _NO_KWARGS
                return (replica_context.call_in(self.contexts[0].context, function, args_of[0], kwargs),)
            calls = [
                functools.partial(
                    replica_context.call_in, context.context, function, args_of[i], kwargs_of[i] if kwargs_of else {}
                )
                for i, context in enumerate(self.contexts)
            ]
            results = self._greenlets.run(calls, self._merge_laps)
            if self.creations:
                self.creations.check()
            return results
        finally:
            if self.creations:
                self.creations.clear()
            state.watcher, state.listener = watcher, listener
            self.phases.gradient += time.perf_counter() - started - self._merging_s

    def combine(
        self, aggregator: GradientAggregator, gradients: Any, variables: Sequence[Any], may_sum_rows: bool
    ) -> list[Any]:
        """Return the aggregate over all replicas of the gradients of ``variables``; called through ``merge_call``."""
        self.inspector.before_hook(aggregator, gradients)
        columns: Sequence[Sequence[Any]]
        columns = [values.local_components(gradient, self.num_hosted) for gradient in gradients]
        if aggregator.contributes or not isinstance(aggregator, Aggregator):
            before = self.book.traffic()
            pairs_of: Sequence[Pairs]
            pairs_of = [check_gradients(zip(row, variables, strict=True)) for row in zip(*columns, strict=True)]
            refuse_repeated(aggregator, pairs_of)
            if aggregator.contributes:
                pairs_of = contributed(self, aggregator, pairs_of)
            combined: list[Any] = self.every_process.combine_whole(aggregator, pairs_of)
            self._note_reduction("gradients (hook)", aggregator, columns, before)
            return combined
        return self._aggregate("gradients (hook)", aggregator, columns, may_sum_rows=may_sum_rows)

    def all_reduce_arrays(self, operation: ReduceOp | str, value: Any) -> Array:
        """Return ``value`` (an array, or one a hosted replica) reduced over all replicas."""
        return np.asarray(self.all_reduce_leaves(ReduceOp.parse(operation), [value])[0])

    def _aggregate(
        self,
        what: str,
        aggregator: Aggregator,
        columns: Sequence[Sequence[Any]],
        noted: Aggregator | None = None,
        *,
        may_sum_rows: bool = False,
    ) -> list[Any]:
        """Return the aggregate of each column, and leave a receipt; ``noted`` is what it is for, where that differs."""
        before = self.book.traffic()
        totals = self.every_process.aggregate(aggregator, columns, may_sum_rows=may_sum_rows)
        self._note_reduction(what, noted or aggregator, columns, before)
        return totals

    def _note_reduction(
        self,
        what: str,
        aggregator: GradientAggregator,
        columns: Sequence[Sequence[Any]],
        traffic_before: tuple[int, int],
    ) -> None:
        if self.inspector.several:
            self.book.add(what, aggregator, num_bytes_of_all(columns), traffic_before)

    def all_reduce_leaves(self, operation: ReduceOp, leaves: Sequence[Any]) -> list[Any]:
        """Return each leaf (an array or IndexedSlices, or one a hosted replica) reduced over all replicas, together.

        The mean of integers is a float64.
        """
        columns = [values.local_components(leaf, self.num_hosted) for leaf in leaves]
        if operation is ReduceOp.SUM:
            return self._aggregate("value", _SUM, columns)
        if not any(_holds_integers(column[0]) for column in columns):
            return self._aggregate("value", _MEAN, columns)
        return [self._mean(total) for total in self._aggregate("value", _SUM, columns, noted=_MEAN)]

    def _mean(self, total: Any) -> Any:
        replicas = self.hosting.num_replicas
        if isinstance(total, IndexedSlices):
            return total.with_values(_MEAN.finish(total.values.numpy(), replicas))
        total = np.asarray(total)
        return np.asarray(total / replicas if total.dtype.kind in "biu" else _MEAN.finish(total, replicas))

    def gather_arrays(self, value: Any, axis: int) -> Array:
        """Return the replicas' arrays one after another along ``axis``, in replica order, on every process.

        Raises: as :func:`distopt.distribute.gathering.concatenated`.
        """
        arrays = [np.asarray(component) for component in values.local_components(value, self.num_hosted)]
        own = dict(zip(self.hosted, arrays, strict=False))
        return gathering.concatenated(gathering.of_all_replicas(own, self.communicator), axis)

    def of_first_replica(self, value: Any) -> Any:
        """Return replica 0's ``value``, an array or IndexedSlices, on every process."""
        component = values.local_components(value, self.num_hosted)[0]
        if self.communicator is None:
            return component if isinstance(component, IndexedSlices) else np.asarray(component)
        if isinstance(component, IndexedSlices):
            rows = self._from_first_host(gathering.encode({0: component.values.numpy(), 1: component.indices}))
            found = gathering.decode(rows)
            return IndexedSlices(found[0], found[1], component.dense_shape)
        return gathering.decode(self._from_first_host(gathering.encode({0: np.asarray(component)})))[0]

    def _from_first_host(self, payload: bytes) -> bytes:
        assert self.communicator is not None, "asked by the callers"
        root = self._host_of_first_replica
        return self.communicator.broadcast_bytes(payload if self.rank == root else None, root)

    def share_initial_value(self, variable: Any) -> None:
        """Give a new variable the value that it has on rank 0.

        Raises: VariablePerReplicaError if rank 0 makes another variable here.
        """
        if self.communicator is not None and self.communicator.size > 1:
            share_value(variable, self.communicator)

    def own_copies(self, variable: Any) -> None:
        """Give each hosted replica a copy of a variable that is synchronized when it is read."""
        variable.split([context.replica_id_in_sync_group for context in self.contexts])

    def aggregated(self, variable: Any) -> Array:
        """Return what the copies of an ON_READ variable come to; a collective.

        Raises: ValueError for aggregation NONE.
        """
        aggregation = variable.aggregation
        if aggregation is VariableAggregation.NONE:
            raise ValueError(
                f"{variable.name} is synchronized ON_READ with aggregation NONE, which says nothing about its value "
                "outside of replicas; read it inside `strategy.run`, or give it an aggregation"
            )
        copies = values.PerReplica([variable.copy_of(c.replica_id_in_sync_group) for c in self.contexts])
        if aggregation is VariableAggregation.ONLY_FIRST_REPLICA:
            return np.asarray(self.of_first_replica(copies))
        return self.all_reduce_arrays(_OPERATION_OF[aggregation], copies)

    def split(self, variables: Sequence[Any]) -> None:
        """Give every hosted replica its own copy of ``variables``; nothing happens to those that have them.

        Raises: PlacementError where the placement cannot hold copies; ValueError for a variable of another strategy.
        """
        self.check_variables(variables)
        for variable in variables:
            if self.hosting.num_replicas > 1:
                self.owners.may_split(f"an unaggregated write to {variable.name}")
                variable.may_differ = True
            variable.strategy = self.strategy
            if not variable.is_split and self.num_hosted > 1:
                self.own_copies(variable)

    def check_variables(self, variables: Iterable[Any]) -> None:
        """Refuse variables that belong to another strategy.

        Raises: ValueError that names the first.
        """
        strategy = self.strategy
        for variable in variables:
            owner = variable.strategy
            if owner is not strategy and owner is not None:
                raise ValueError(
                    f"{variable.name} belongs to {owner!r} and cannot be updated under {strategy!r}; create variables "
                    "in the scope of the strategy that trains them"
                )

    def check(self, path: Any) -> None:
        """Refuse an apply call that the owners cannot carry out, before anything is done for it.

        Raises: PlacementError.
        """
        self.owners.check(path)

    def apply_at_owners(self, path: Any, pairs: Any) -> None:
        """Run the rest of the gradient's path at the owners of the variables."""
        pairs_of: Sequence[Pairs]
        if self.num_hosted == 1:
            pairs_of = (pairs,)
        else:
            path = values.local_components(path, self.num_hosted)[0]
            pairs_of = values.local_components(pairs, self.num_hosted)
        self.inspector.adopt(path.optimizer)
        if self.inspector.looks_at_applies:
            self.inspector.before_apply(path, pairs_of)
        if path.has_contributions:
            refuse_repeated(path.aggregator, pairs_of)
            pairs_of = tuple(contributed(self, path.aggregator, pairs_of))
        hypers = self._hypers_of(path.optimizer)
        try:
            self.owners.apply(path, pairs_of, hypers)
        except UnequalHypersError as error:
            raise with_own_values(error, self.rank, path.optimizer, hypers) from None

    def update_copies(self, path: Any, pairs: Any) -> None:
        """Apply each replica's finished gradients; where they are bit-equal, one update serves all copies."""
        path = values.local_components(path, self.num_hosted)[0]
        optimizer = path.optimizer
        started = time.perf_counter()
        pairs_of = values.local_components(pairs, self.num_hosted)
        first = pairs_of[0]
        variables = same_variables(pairs_of)
        if first.key is not self._written_alone:
            self._written_alone = first.key
            for variable in variables:
                variable.may_differ = True
        alike = all(same_gradients(first, other) for other in pairs_of[1:])
        self.inspector.adopt(optimizer)
        if optimizer.features.accumulation_steps > 1:
            self.inspector.refuse_unlike_accumulation(path, first, alike)
        if self.inspector.looks_at_applies:
            self.inspector.before_update(path, pairs_of, alike)
        if self.inspector.looks_for_non_finite and not self.inspector.lets_copies_pass(path, pairs_of):
            return
        hypers = self._hypers_of(optimizer)
        if optimizer.features.accumulation_steps > 1:
            optimizer.finish_aggregated(first, hypers)
            self.phases.apply += time.perf_counter() - started
            return
        if self.num_hosted == 1 or (alike and not any(v.is_split for v in variables)):
            optimizer.finish_pairs(first, hypers)
        else:
            self.split(variables)
            optimizer.split_slots(variables)
            for context, own in zip(self.contexts, pairs_of, strict=True):
                optimizer.finish_pairs(own, hypers, replica_id=context.replica_id_in_sync_group)
        optimizer.advance(hypers, variables)
        self.phases.apply += time.perf_counter() - started
        if path.local_steps and optimizer.steps_taken() % path.local_steps.every == 0:
            self._average_copies(path.local_steps.average, variables)

    def _average_copies(self, average: GradientAggregator, variables: Sequence[Any]) -> None:
        """Give every replica's copy of ``variables`` the value that ``average`` makes of all of them; a collective."""
        ids = [context.replica_id_in_sync_group for context in self.contexts]
        copies_of = [[v.copy_of(replica).copy() if v.is_split else v.numpy() for v in variables] for replica in ids]
        before = self.book.traffic()
        combined = self.every_process.combine_whole(average, [list(zip(c, variables, strict=True)) for c in copies_of])
        self._note_reduction("variables", average, list(zip(*copies_of, strict=True)), before)
        for variable, value in zip(variables, combined, strict=True):
            variable.write_all("assign", value)

    def _hypers_of(self, optimizer: Any) -> dict[str, float]:
        """Return the hypers of this step, which callables and schedules are asked for once.

        What a callable returns may differ between processes: the host of replica 0 says what holds for all.
        """
        if self.given_hypers is not None:
            return self.given_hypers
        hypers: dict[str, float] = optimizer.step_hypers()
        if self.communicator is None or self.communicator.size == 1 or not optimizer.has_callable_hypers:
            return hypers
        root = self._host_of_first_replica
        payload = msgspec.json.encode(hypers) if self.rank == root else None
        return msgspec.json.decode(self.communicator.broadcast_bytes(payload, root), type=dict[str, float])

    def _merge_laps(
        self, merge_fn: Callable[..., Any], args_of: Sequence[tuple[Any, ...]], kwargs_of: Sequence[dict[str, Any]]
    ) -> list[Any]:
        if self.creations:
            self.creations.check()
        args, kwargs = values.regroup(args_of), values.regroup(kwargs_of)
        return [self._merge_now(merge_fn, args, kwargs)] * self.num_hosted

    def _merge_now(self, merge_fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        started = time.perf_counter()
        result = replica_context.call_in(self.cross_context, merge_fn, (self.strategy, *args), kwargs)
        self._merging_s += time.perf_counter() - started
        return result


def same_gradients(first: Any, second: Any) -> bool:
    """Return whether two lists of pairs, of the same variables, hold bit-equal gradients."""
    for (a, _), (b, _) in zip(first, second, strict=True):
        if a is b:
            continue
        left, right = _parts(a), _parts(b)
        if not all(same_bits(x, y) for x, y in zip(left, right, strict=True)):
            return False
    return True


def _holds_integers(value: Any) -> bool:
    return (value if isinstance(value, IndexedSlices) else np.asarray(value)).dtype.kind in "biu"


def _parts(gradient: Any) -> tuple[Array, Array]:
    indices = getattr(gradient, "indices", None)
    if indices is None:
        return np.asarray(gradient), np.empty(0)
    return np.asarray(gradient.values), np.asarray(indices)
