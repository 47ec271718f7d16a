"""Steps of several replicas' gradients, of which as many as wanted are averaged.

Theory of operation. TensorFlow 1's workers push gradients on their own, and the first ones to arrive make the step.
Here all replicas of a strategy make one apply call together, so what makes a step is chosen, not raced for: of R
replicas the ``n = replicas_to_aggregate`` whose ids follow each other from ``(step * n) mod R`` on, around the circle.
Every replica's data has its turn, all variables of a step come from the same replicas, and every process and run
chooses the same ones. The gradients of the others are dropped, as late ones are in TensorFlow. Where n is larger than
R, the contributions of several apply calls make a step.
"""

# ruff: noqa: ARG002  (TensorFlow's arguments, in its order, some of which have no meaning here)
from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from distopt import deferral, replica_context
from distopt.aggregation import Aggregator, Mean
from distopt.canonical_sum import add_rows
from distopt.graph import GraphVariable, Operation, functions
from distopt.indexed_slices import IndexedSlices
from distopt.optimizers.pipeline import GradientPath, check_gradients
from distopt.optimizers.v1.optimizer import Optimizer
from distopt.optimizers.v1.steps import count_step
from distopt.tensor import Operand, Tensor
from distopt.types import Array
from distopt.variable import Variable


class AggregatedRound(NamedTuple):
    """What made a step: ``participants`` are the replicas whose gradients were averaged, ``left_out`` the others.

    ``step`` counts from 0. Where several apply calls make a step, a replica may be listed more than once.
    """

    step: int
    participants: tuple[int, ...]
    left_out: tuple[int, ...]


class SyncReplicasOptimizer(Optimizer):
    """Apply the mean of ``replicas_to_aggregate`` gradients as one step of ``opt``.

    ``total_num_replicas`` (None: as many) is the number of replicas that compute gradients; under a strategy it must be
    the strategy's. :attr:`last_round` says whose gradients made the last step, and whose were left out; the
    choice is a function of the step, described in this module. Outside of a strategy each apply call brings one
    contribution. ``variable_averages``, an ``ExponentialMovingAverage``, sees ``variables_to_average`` after each step.

    TensorFlow's tokens, which release its workers into the next step, have nothing to do here: the operations for them
    exist and do nothing.

    Raises: ValueError for numbers below 1.

    Source: Chen et al. 2016; v1 ``SyncReplicasOptimizer``.
    """

    def __init__(
        self,
        opt: Optimizer,
        replicas_to_aggregate: int,
        total_num_replicas: int | None = None,
        variable_averages: Any = None,
        variables_to_average: Sequence[Variable] | None = None,
        use_locking: bool = False,
        name: str = "sync_replicas",
    ) -> None:
        total = replicas_to_aggregate if total_num_replicas is None else total_num_replicas
        if replicas_to_aggregate < 1 or total < 1:
            raise ValueError(
                "replicas_to_aggregate and total_num_replicas must be at least 1, but are "
                f"{replicas_to_aggregate} and {total}"
            )
        super().__init__(use_locking, name)
        self._opt = opt
        self._wanted = replicas_to_aggregate
        self._total = total
        self._variable_averages = variable_averages
        self._variables_to_average = variables_to_average
        self._collected: dict[int, Array] = {}
        self._contributors: list[int] = []
        self._applied = False
        self.last_round: AggregatedRound | None = None
        """The round that made the last step; None before the first."""
        opt.gradient_aggregator = Mean() if self._wanted == total else _MeanOfParticipants(opt, self._wanted)

    def compute_gradients(self, *args: Any, **kwargs: Any) -> list[tuple[Any, Any]]:
        """Return what ``compute_gradients`` of the wrapped optimizer does."""
        return self._opt.compute_gradients(*args, **kwargs)

    def apply_gradients(
        self,
        grads_and_vars: Iterable[tuple[Any, Any]],
        global_step: Any = None,
        name: str | None = None,
        skip_gradients_aggregation: bool = False,
    ) -> Operation | None:
        """Contribute gradients; the contribution that completes a round makes a step and counts it.

        Raises: ValueError without ``global_step`` or gradients, for a gradient that is no tensor, and if
            ``total_num_replicas`` is not the number of replicas of the strategy; PlacementError if several apply calls
            make a step and servers hold the variables.
        """
        pairs = list(grads_and_vars)
        if not pairs:
            raise ValueError("there are no variables to apply gradients to")
        if global_step is None:
            raise ValueError("SyncReplicasOptimizer needs global_step, which counts the steps of all replicas")
        for gradient, variable in pairs:
            if gradient is not None and not isinstance(gradient, Operand | IndexedSlices | np.ndarray):
                raise ValueError(
                    f"the gradient of {variable.name!r} is neither a tensor nor IndexedSlices: {gradient!r}"
                )
        if skip_gradients_aggregation:
            raise ValueError("SyncReplicasOptimizer aggregates gradients; use the wrapped optimizer to skip that")
        self._applied = True
        self._global_step = global_step
        if self._variable_averages is not None:
            self._variable_averages.create(self._variables_to_average)
        return super().apply_gradients(pairs, None, name)

    def _apply(self, pairs: Sequence[tuple[Any, Any]], skip_aggregation: bool = False) -> None:
        replica = replica_context.current_replica("apply_gradients")
        run = deferral.evaluation()
        if run is not None and isinstance(self._global_step, GraphVariable):
            self._global_step.check_initialized(run.session)
        count = replica.num_replicas_in_sync
        if count > 1 and count != self._total:
            raise ValueError(
                f"total_num_replicas is {self._total}, but the strategy has {count} replicas; "
                f"pass total_num_replicas={count}"
            )
        pairs = [(_with_shape(gradient, variable), variable) for gradient, variable in pairs]
        if self._wanted <= count:
            step = int(self._opt.iterations.storage)
            self._opt._apply(pairs)
            chosen = participants(step, self._wanted, count)
            self._close(step, chosen, tuple(r for r in range(count) if r not in chosen))
            return
        replica.strategy.extended.check(GradientPath(self._opt, aggregate=False))
        missing = self._wanted - len(self._contributors)
        aggregator = _sum_of_first(min(missing, count))
        with self._opt._held():
            replica.merge_call(_collect, (self, check_gradients(aggregator(pairs)), min(missing, count)))

    def _collect(self, strategy: Any, pairs: Any, added: int) -> None:
        """Take in the sum of ``added`` contributions; with the last one of the round, make the step."""
        count = strategy.num_replicas_in_sync
        for gradient, variable in pairs:
            held = self._collected.get(id(variable))
            array = gradient.to_dense() if isinstance(gradient, IndexedSlices) else gradient.numpy()
            self._collected[id(variable)] = array.copy() if held is None else held + array
        self._contributors += range(added)
        if len(self._contributors) < self._wanted:
            return
        chosen, step = tuple(self._contributors), int(self._opt.iterations.storage)
        means = []
        for _, variable in pairs:
            total = self._collected[id(variable)]
            means.append((Tensor(total / total.dtype.type(self._wanted)), variable))
        self._collected, self._contributors = {}, []
        self._opt.build([variable for _, variable in means])
        strategy.extended.update_copies(GradientPath(self._opt, aggregate=False), check_gradients(means))
        self._close(step, chosen, tuple(range(added, count)))

    def _close(self, step: int, chosen: tuple[int, ...], left_out: tuple[int, ...]) -> None:
        self.last_round = AggregatedRound(step, chosen, left_out)
        count_step(self._global_step)
        if self._variable_averages is not None:
            self._variable_averages.update(self._variables_to_average)

    def build(self, var_list: Iterable[Variable]) -> None:
        """Create what the wrapped optimizer needs for ``var_list``."""
        self._opt.build(var_list)

    def _check_methods(self, pairs: Any) -> None:
        self._opt._check_methods(pairs)

    def _deferred_hypers(self) -> list[Any]:
        return self._opt._deferred_hypers()

    def get_slot(self, var: Any, name: str) -> Variable | None:
        """Return a slot of the wrapped optimizer."""
        return self._opt.get_slot(var, name)

    def get_slot_names(self) -> list[str]:
        """Return the names of the slots of the wrapped optimizer."""
        return self._opt.get_slot_names()

    def variables(self) -> list[Variable]:
        """Return the variables of the wrapped optimizer."""
        return self._opt.variables()

    # TensorFlow's queue of tokens.

    def get_chief_queue_runner(self) -> Any:
        """Return a queue runner without anything to run.

        Raises: ValueError before gradients were applied.
        """
        self._require_applied("get_chief_queue_runner")
        return _QueueRunner()

    def get_init_tokens_op(self, num_tokens: int = -1) -> Operation | None:
        """Return an operation that does nothing.

        Raises: ValueError before gradients were applied, and for fewer tokens than replicas are missing.
        """
        self._require_applied("get_init_tokens_op")
        needed = self._wanted - self._total
        if num_tokens != -1 and num_tokens < needed:
            raise ValueError(
                f"num_tokens is {num_tokens}; at least replicas_to_aggregate - total_num_replicas = {needed}"
            )
        return functions.no_op(name="init_tokens")

    def make_session_run_hook(self, is_chief: bool, num_tokens: int = -1) -> Any:
        """Return a hook whose ``begin`` checks that gradients were applied; it has nothing else to do."""
        return _SyncHook(self, num_tokens)

    def _require_applied(self, caller: str) -> None:
        if not self._applied:
            raise ValueError(f"{caller} is to be called after apply_gradients or minimize")


def participants(step: int, wanted: int, total: int) -> tuple[int, ...]:
    """Return the ids of the ``wanted`` of ``total`` replicas that make step ``step``, sorted.

    >>> [participants(step, 2, 5) for step in range(3)]
    [(0, 1), (2, 3), (0, 4)]
    """
    return tuple(sorted((step * wanted + i) % total for i in range(wanted)))


class _MeanOfParticipants(Aggregator):
    """The canonical sum of the step's participants, divided by their number."""

    name: ClassVar[str] = "mean_of_participants"

    def __init__(self, optimizer: Optimizer, wanted: int) -> None:
        self._optimizer = optimizer
        self._wanted = wanted

    def combine(self, contributions: Array) -> Array:
        chosen = participants(int(self._optimizer.iterations.storage), self._wanted, len(contributions))
        mean: Array = add_rows(contributions[list(chosen)]) / contributions.dtype.type(len(chosen))
        return mean


@functools.cache
def _sum_of_first(wanted: int) -> Aggregator:
    """Return one aggregator for all replicas, which give it to the strategy together."""
    return _SumOfFirst(wanted)


class _SumOfFirst(Aggregator):
    """The canonical sum of the first ``wanted`` replicas."""

    name: ClassVar[str] = "sum_of_first"

    def __init__(self, wanted: int) -> None:
        self._wanted = wanted

    def combine(self, contributions: Array) -> Array:
        return add_rows(contributions[: self._wanted])


class _QueueRunner:
    """Stands where TensorFlow has the runner of the token queue."""

    def create_threads(self, sess: Any, coord: Any = None, daemon: bool = False, start: bool = False) -> list[Any]:
        """Return no threads."""
        return []


class _SyncHook:
    """A session hook of TensorFlow's, reduced to its check."""

    def __init__(self, optimizer: SyncReplicasOptimizer, num_tokens: int) -> None:
        self._optimizer = optimizer
        self._num_tokens = num_tokens

    def begin(self) -> None:
        """Check that gradients were applied, and the number of tokens.

        Raises: ValueError if not.
        """
        self._optimizer.get_init_tokens_op(self._num_tokens)

    def after_create_session(self, session: Any, coord: Any) -> None:
        """Do nothing."""


def _collect(strategy: Any, optimizer: Any, pairs: Any, added: Any) -> None:
    optimizer._collect(strategy, getattr(pairs, "values", (pairs,))[0], getattr(added, "values", (added,))[0])


def _with_shape(gradient: Any, variable: Any) -> Any:
    """Return row-sparse slices with their dense shape: the mean of some replicas is a dense gradient."""
    if not isinstance(gradient, IndexedSlices) or gradient.dense_shape is not None:
        return gradient
    return IndexedSlices(gradient.values, gradient.indices, variable.shape)
