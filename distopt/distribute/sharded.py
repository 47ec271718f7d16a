"""Placement ``sharded``: every process owns a part of the variables, which lie once in the memory of the host.

How an apply call goes, in each process::

    write     the sums of the hosted replicas' gradients go into this process's segment
    ready     all meet; what they are about to do is compared
    combine   the owner of a span reads the contributions of all to it where they lie, and adds them in canonical order
    norms     where a clip or a rule needs them, all write the sums of squares of their blocks, and meet
    update    the owner updates variables and slots of its spans in place
    done      all meet; everyone sees the new variables

Until ``ready`` nothing has changed, and from ``done`` on nothing is read: so a mistake is an error before the step, and
the next gradients can be written where these were.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from distopt.arena import Span
from distopt.comm.communicator import Communicator, Hosting
from distopt.comm.shared_memory import HostGroup
from distopt.distribute.inspector import Inspector
from distopt.distribute.introduction import Introductions
from distopt.distribute.owners import (
    EveryProcess,
    Phases,
    num_bytes_of,
    refuse_aggregator,
    refuse_split,
    same_variables,
    whole_gradient_refusal,
)
from distopt.distribute.receipts import Note
from distopt.distribute.row_exchange import gather_rows, sum_rows
from distopt.distribute.shared_arena import SharedArena
from distopt.distribute.shared_gradients import SharedGradients
from distopt.errors import PlacementError, UnaggregatedGradientsError
from distopt.optimizers.terms import Terms
from distopt.types import Array


class Sharded:
    """Owners of spans of variables that all processes of one host map.

    Raises: PlacementError if the processes are not on one host.
    """

    placement = "sharded"
    re_enact_replicas = False

    def __init__(
        self, hosting: Hosting, rank: int, communicator: Communicator, phases: Phases, inspector: Inspector
    ) -> None:
        self._group = communicator.host_group
        if not self._group.holds_all:
            hosts = "; ".join(", ".join(map(str, ranks)) for ranks in self._group.hosts)
            raise PlacementError(
                "placement 'sharded' needs all processes on one host, where they can map the same memory, but the "
                f"ranks by host are: {hosts}; use placement 'replica'"
            )
        self._hosting = hosting
        self._communicator = communicator
        self._phases = phases
        self._inspector = inspector
        self._introductions = Introductions(communicator)
        self._arena = SharedArena(self._group)
        self._every_process = EveryProcess(hosting, rank, communicator, phases, inspector)

    def apply(self, path: Any, pairs_of: Sequence[Any], hypers: dict[str, float]) -> None:
        """See :class:`~distopt.distribute.owners.Owners`.

        Raises: SharedMemoryError at the first call with some variables, if there is not enough memory.
        """
        optimizer = path.optimizer
        started = time.perf_counter()
        for variable in same_variables(pairs_of):
            if variable.readers:
                variable.check_writable()
        inspector = self._inspector
        if inspector.looks_for_non_finite:
            inspector.refuse_non_finite_here(pairs_of, int(optimizer.iterations.storage))
        known = self._introductions.of(optimizer, pairs_of)
        label = known.label(path.aggregator.full_name, hypers)
        if known.rows or len(set(pairs_of[0].key)) < len(pairs_of[0].key):
            self._apply_whole(path, pairs_of, hypers, label, by_rows=known.rows)
            return
        steps = self._steps(optimizer, pairs_of[0].variables, path.aggregator.sums)
        before = inspector.book.traffic()
        begins_rows = any(pairs.has_rows for pairs in pairs_of)
        if not begins_rows:
            steps.gradients.write(pairs_of)
        written = time.perf_counter()
        traffic = self._communicator.traffic
        waited = traffic.wait_s
        if any(self._group.exchange("the gradients of all are ready", label, b"rows" if begins_rows else b"")):
            # A replica of some process begins to have rows with this step, which the others could not know.
            self._introductions.begin_rows(optimizer, pairs_of)
            self._apply_whole(path, pairs_of, hypers, label, by_rows=True)
            return
        traffic.bytes_received += steps.num_bytes_read
        traffic.bytes_sent += steps.num_bytes_told
        if inspector.several:
            num_bytes = steps.layout.num_bytes * len(pairs_of)
            note = Note("gradients", path.aggregator, num_bytes, steps.layout.variables, before)
            note.step = int(optimizer.iterations.storage)
            inspector.book.add(note)
        steps.update(path.aggregator, hypers)
        self._advance(optimizer, hypers, steps.layout.variables)
        self._group.exchange("the variables of all are updated", label)
        waited = traffic.wait_s - waited
        self._phases.combine += written - started
        self._phases.wait += waited
        self._phases.apply += time.perf_counter() - written - waited

    def _apply_whole(
        self, path: Any, pairs_of: Sequence[Any], hypers: dict[str, float], label: bytes, *, by_rows: bool
    ) -> None:
        """Apply gradients that are no flat arrays: all processes aggregate them, and the first one makes the update."""
        optimizer, group = path.optimizer, self._group
        started = time.perf_counter()
        variables = pairs_of[0].variables
        optimizer.build(variables)
        self._arena.take(optimizer, {id(v.placement[0]): v.placement[0] for v in variables}.values())
        columns = [[pairs[i][0] for pairs in pairs_of] for i in range(len(variables))]
        combine_rows = sum_rows if path.may_sum_rows else gather_rows
        before = self._inspector.book.traffic()
        gradients = self._every_process.aggregate_by(path.aggregator, columns, combine_rows if by_rows else None, label)
        if self._inspector.several:
            num_bytes = sum(num_bytes_of(gradient) for column in columns for gradient in column)
            note = Note("gradients", path.aggregator, num_bytes, variables, before)
            note.step = int(optimizer.iterations.storage)
            self._inspector.book.add(note)
        combined = time.perf_counter()
        group.exchange("the gradients of all are aggregated")
        if group.index == 0:
            optimizer.finish_aggregated(zip(gradients, variables, strict=True), hypers)
        else:
            optimizer.advance(hypers)
        group.exchange("the variables are updated")
        self._phases.combine += combined - started
        self._phases.apply += time.perf_counter() - combined

    def _advance(self, optimizer: Any, hypers: dict[str, float], variables: Sequence[Any]) -> None:
        if optimizer.features.accumulation_steps > 1:
            # One process clears the accumulators of all: nobody may be using one.
            self._group.exchange("the accumulated gradients of all are used")
        optimizer.advance(hypers, variables)

    def _steps(self, optimizer: Any, variables: Sequence[Any], summed: bool) -> _LayoutSteps:
        layout = optimizer.layout(variables)
        found = layout.kept if isinstance(layout.kept, _LayoutSteps) else None
        if found is None or not found.is_current(self._group, summed):
            self._arena.take(optimizer, layout.segments)
            found = layout.kept = _LayoutSteps(optimizer, layout, self._hosting, self._group, summed, found)
        return found

    def gradient_arrays(self, optimizer: Any, variables: Sequence[Any]) -> list[Array] | None:
        """See :class:`~distopt.distribute.owners.Owners`."""
        steps = self._steps(optimizer, variables, optimizer.gradient_aggregator.sums)
        return steps.gradients.arrays

    def check(self, path: Any) -> None:
        """Refuse what owners of parts cannot do: unaggregated gradients, and hooks over whole gradients.

        Raises: PlacementError.
        """
        if not path.aggregate:
            raise UnaggregatedGradientsError(
                "experimental_aggregate_gradients=False would update each replica's own copy, but with placement "
                "'sharded' the processes of a host share one value; use placement 'replica'"
            )
        refuse_aggregator(path, self.placement)
        if not path.runs_at_owners:
            raise PlacementError(whole_gradient_refusal(path.whole_gradient_hooks(), self.placement))
        if self._inspector.checks.non_finite == "skip":
            raise PlacementError(
                "non_finite='skip' needs the aggregate before the update, but with placement 'sharded' each process "
                "has only a part of it; use non_finite='raise', or placement 'replica'"
            )

    def may_split(self, what: str) -> None:
        """Refuse: the processes of a host share one value.

        Raises: PlacementError.
        """
        refuse_split(what, self.placement)


class _LayoutSteps:
    """What the apply calls for the variables of one layout share: the gradients, the sums of squares, and the owner.

    ``before`` is what this replaces, whose memory is used again if it fits.
    """

    def __init__(
        self,
        optimizer: Any,
        layout: Any,
        hosting: Hosting,
        group: HostGroup,
        summed: bool,
        before: _LayoutSteps | None,
    ) -> None:
        self.layout = layout
        self._optimizer = optimizer
        self._group = group
        self._stamp = self._bindings()
        self._spans: tuple[Span, ...] = layout.divide(group.size)[group.index]
        self._owner = optimizer.span_owner(layout, self._spans)
        self._blocks = list(self._owner.blocks)
        sums_bytes = 2 * len(layout.blocks) * np.dtype(np.float64).itemsize
        self.gradients: SharedGradients = (
            before.gradients
            if before is not None and before._is_of(group, summed)
            else SharedGradients(layout, hosting, group, summed=summed, extra_bytes=sums_bytes)
        )
        self._all_sums: Array = self.gradients.extra.view(np.float64)
        self._sums = {node: tuple(layout.take(flat, self._spans)) for node, flat in self.gradients.flat_of.items()}
        self._own: list[Array] | None = None
        own_bytes = sum((s.stop - s.start) * layout.runs[layout.run_of(s)].segment.dtype.itemsize for s in self._spans)
        num_own = len(self.gradients.own_nodes)
        self.num_bytes_read = own_bytes * (self.gradients.num_nodes - num_own)
        """Of the contributions of the other processes to the spans of this one."""
        self.num_bytes_told = (layout.num_bytes - own_bytes) * num_own
        """Of the contributions of this process to the spans of the others."""

    def is_current(self, group: HostGroup, summed: bool) -> bool:
        """Return whether variables and slots are still where they were, and treated as they were."""
        return self._is_of(group, summed) and self._stamp == self._bindings()

    def update(self, aggregator: Any, hypers: dict[str, float]) -> None:
        """Aggregate the contributions to the spans of this process, and update them."""
        # Where they are plain terms, the very loop that updates adds them up: each is read once, and no sum is stored.
        gradients: Terms | list[Array] | None = self.gradients.terms(aggregator, self._sums)
        if gradients is None:
            if self._own is None:
                self._own = [np.empty_like(array) for array in next(iter(self._sums.values()))]
            gradients = self.gradients.aggregate(aggregator, self._sums, self._own)
        owner = self._owner
        all_sums = self._all_sums[:0]
        if owner.exchanges:
            all_sums = self._all_sums[: len(self.layout.blocks) * owner.num_sums]
            if self._spans:
                by_block = all_sums.reshape(-1, owner.num_sums)
                by_block[self._blocks] = owner.partials(gradients, hypers).reshape(-1, owner.num_sums)
            self._group.exchange("the sums of squares of all are ready")
        if self._spans:
            owner.apply(gradients, hypers, all_sums)

    def _is_of(self, group: HostGroup, summed: bool) -> bool:
        return self.gradients.group is group and self.gradients.summed == summed

    def _bindings(self) -> tuple[int, int]:
        return self._optimizer.num_bindings, self._optimizer.slots.num_added
