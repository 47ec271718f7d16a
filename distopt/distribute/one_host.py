"""Placement ``replica`` where all processes are on one host: they read each other's gradients where these lie.

Nothing is sent. Each process writes what it contributes, all meet, each adds up the contributions of all in the loop
that updates its own variables, and all meet again before anything is overwritten. Where there are so many contributions
that adding all of them up in every process costs more than another meeting, each process adds up a part for all.
Compressed contributions whose codes are shorter than the sums are exchanged as codes instead.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from distopt.arena import ALIGNMENT
from distopt.comm.communicator import Communicator, Hosting, Withdrawn
from distopt.comm.shared_memory import HostGroup
from distopt.distribute.codes import sends_codes
from distopt.distribute.inspector import Inspector
from distopt.distribute.owners import EveryProcess, Phases
from distopt.distribute.shared_gradients import SharedGradients
from distopt.optimizers.terms import Terms
from distopt.types import Array


def every_process(
    hosting: Hosting, rank: int, communicator: Communicator | None, phases: Phases, inspector: Inspector
) -> EveryProcess:
    """Return what makes the same update in every process; a collective."""
    if communicator is None or communicator.size == 1 or not communicator.shares_memory:
        return EveryProcess(hosting, rank, communicator, phases, inspector)
    group = communicator.host_group
    if not group.holds_all:
        return EveryProcess(hosting, rank, communicator, phases, inspector)
    return EveryProcessOfHost(hosting, rank, communicator, phases, inspector, group)


class EveryProcessOfHost(EveryProcess):
    """As :class:`EveryProcess`, for the processes of ``group``, which are all there are."""

    def __init__(
        self,
        hosting: Hosting,
        rank: int,
        communicator: Communicator,
        phases: Phases,
        inspector: Inspector,
        group: HostGroup,
    ) -> None:
        super().__init__(hosting, rank, communicator, phases, inspector)
        self._group = group
        self._ranks = communicator

    def gradient_arrays(self, optimizer: Any, variables: Sequence[Any]) -> list[Array] | None:
        """See :class:`~distopt.distribute.owners.Owners`."""
        return self._gradients(optimizer.layout(variables), optimizer.gradient_aggregator.sums).shared.arrays

    def _total(
        self, path: Any, layout: Any, pairs_of: Sequence[Any], label: bytes, *, withdraws: bool
    ) -> Sequence[Array] | Terms:
        if sends_codes(path.aggregator, self._hosting, self._ranks, pairs_of[0].arrays):
            return super()._total(path, layout, pairs_of, label, withdraws=withdraws)
        gradients = self._gradients(layout, path.aggregator.sums)
        if not withdraws:
            gradients.shared.write(pairs_of)
        with self._exchange():
            # A replica of some process may begin to have rows with this step, which the others could not know.
            told = self._group.exchange("the gradients of all are ready", label, b"rows" if withdraws else b"")
        if any(told):
            raise Withdrawn
        traffic = self._ranks.traffic
        traffic.bytes_received += gradients.num_bytes_read
        traffic.bytes_sent += gradients.num_bytes_told
        terms = gradients.shared.terms(path.aggregator, gradients.whole)
        wants_terms = path.optimizer.takes_terms(layout) and not self._inspector.looks_for_non_finite
        if terms is not None and wants_terms and not gradients.in_parts:
            return terms
        if not gradients.in_parts:
            return gradients.shared.aggregate(path.aggregator, gradients.whole, gradients.totals)
        gradients.shared.aggregate(path.aggregator, gradients.own_parts, gradients.own_totals)
        with self._exchange():
            self._group.exchange("the parts of all are added up", label)
        return gradients.totals

    def _release(self, label: bytes) -> None:
        started = time.perf_counter()
        self._group.exchange("the gradients of all are used", label)
        # The caller takes this for a part of the update.
        waited = time.perf_counter() - started
        self._phases.wait += waited
        self._phases.apply -= waited

    def _gradients(self, layout: Any, summed: bool) -> _Gradients:
        found: _Gradients | None = layout.kept
        if not isinstance(found, _Gradients) or found.shared.group is not self._group or found.shared.summed != summed:
            found = layout.kept = _Gradients(layout, self._hosting, self._ranks, summed)
        return found


class _Gradients:
    """Of one layout: the contributions of all, and the totals of parts."""

    def __init__(self, layout: Any, hosting: Hosting, communicator: Communicator, summed: bool) -> None:
        group = communicator.host_group
        num_bytes = sum(run.size * run.segment.dtype.itemsize for run in layout.runs)
        index, size = group.index, group.size
        num_nodes = sum(map(len, hosting.covers if summed else hosting.leaves))
        # Each process reads all contributions; or a part of them, writes a part of the totals, and reads these.
        self.bytes_saved_by_parts = num_bytes * (size * num_nodes - num_nodes - 2 - size) // size
        extra_bytes = num_bytes if self.bytes_saved_by_parts > communicator.exchange_cost_bytes else 0
        self.shared = SharedGradients(layout, hosting, communicator, summed=summed, extra_bytes=extra_bytes)
        self.whole = {node: tuple(flat) for node, flat in self.shared.flat_of.items()}
        self.in_parts = extra_bytes > 0
        self.totals = self.shared.flat_arrays(self.shared.extra) if self.in_parts else layout.empty()
        """The aggregate for each run: in parts every process adds up a part, for all; else this one all of it."""
        parts = [_part(run.size, index, size) for run in layout.runs]
        self.own_parts = {
            node: tuple(array[part] for array, part in zip(flat, parts, strict=True))
            for node, flat in self.shared.flat_of.items()
        }
        self.own_totals = [array[part] for array, part in zip(self.totals, parts, strict=True)]
        self.num_bytes_read = num_bytes * (num_nodes - len(self.shared.own_nodes))
        self.num_bytes_told = num_bytes * len(self.shared.own_nodes)


def _part(length: int, index: int, size: int) -> slice:
    """Return one of ``size`` about equal parts, which begin where no cache line is shared with another.

    >>> _part(200, 0, 2), _part(200, 1, 2)
    (slice(0, 64, None), slice(64, 200, None))
    """
    start, stop = (length * i // size // ALIGNMENT * ALIGNMENT for i in (index, index + 1))
    return slice(start, length if index == size - 1 else stop)
