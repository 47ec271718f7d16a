"""Placement ``replica`` where processes share the memory of a host: they read each other's gradients where these lie.

On one host nothing is sent. Each process writes what it contributes, all meet, each adds up the contributions of all in
the loop that updates its own variables, and all meet again before anything is overwritten. Where there are so many
contributions that adding all of them up in every process costs more than another meeting, and on several hosts, each
process adds up spans for all; what the other hosts contribute to these, and their totals of the others, go the ways of
:mod:`distopt.distribute.span_paths`. Compressed contributions whose codes are shorter than the sums are exchanged as
codes instead.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

from distopt.aggregation import Aggregator
from distopt.arena import Span
from distopt.canonical_sum import Node
from distopt.comm import combining
from distopt.comm.communicator import Communicator, Hosting, Withdrawn
from distopt.distribute.codes import sends_codes
from distopt.distribute.early_sums import Overlap
from distopt.distribute.every_process import EveryProcess
from distopt.distribute.inspector import Inspector
from distopt.distribute.owners import Phases
from distopt.distribute.row_exchange import Combine
from distopt.distribute.rows_in_host_memory import RowsInHostMemory
from distopt.distribute.shared_gradients import SharedGradients
from distopt.distribute.span_paths import ROWS, SpanPaths, told_of
from distopt.optimizers.terms import Terms
from distopt.types import Array


def every_process(
    hosting: Hosting, rank: int, communicator: Communicator | None, phases: Phases, inspector: Inspector
) -> EveryProcess:
    """Return what makes the same update in every process; a collective."""
    if communicator is None or communicator.size == 1 or not communicator.shares_memory:
        return EveryProcess(hosting, rank, communicator, phases, inspector)
    return EveryProcessInHostMemory(hosting, rank, communicator, phases, inspector)


class EveryProcessInHostMemory(EveryProcess):
    """As :class:`EveryProcess`, for processes that share memory with those of their host; of one or several hosts.

    Gradients of few bytes are exchanged whole between hosts, as there, which takes one message instead of two.
    """

    def __init__(
        self, hosting: Hosting, rank: int, communicator: Communicator, phases: Phases, inspector: Inspector
    ) -> None:
        super().__init__(hosting, rank, communicator, phases, inspector)
        self._group = communicator.host_group
        self._ranks = communicator
        self._sent_whole: weakref.WeakSet[Any] = weakref.WeakSet()
        """Layouts of which the gradients are too few to be worth more than one message."""
        self._holds_memory = False
        self._rows: RowsInHostMemory | None = None

    def gradient_arrays(self, optimizer: Any, variables: Sequence[Any]) -> list[Array] | None:
        """See :class:`~distopt.distribute.owners.Owners`."""
        gradients = self._gradients(optimizer.layout(variables), optimizer.gradient_aggregator.sums)
        if gradients is None:
            return None
        gradients.paths.send_nothing_early()
        return gradients.shared.arrays

    def gradient_rows(self, variable: Any, num_rows: int) -> Array | None:
        """See :class:`~distopt.distribute.owners.Owners`."""
        return self._own_rows().arrays.make(variable, num_rows)

    def _total(
        self, path: Any, layout: Any, pairs_of: Sequence[Any], label: bytes, *, withdraws: bool
    ) -> Sequence[Array] | Terms:
        codes = sends_codes(path.aggregator, self._hosting, self._ranks, pairs_of[0].arrays)
        gradients = None if codes else self._gradients(layout, path.aggregator.sums)
        self._holds_memory = gradients is not None
        if gradients is None:
            return super()._total(path, layout, pairs_of, label, withdraws=withdraws)
        differs = withdraws or gradients.paths.write(pairs_of)
        with self._exchange():
            # A replica of some process may begin to have rows with this step, which the others could not know.
            told = self._group.exchange(
                "apply_gradients: the gradients of all are ready", label, told_of(withdraws, differs)
            )
            if gradients.paths.collect(label, withdraws=ROWS in told, differs=any(told)):
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
        with self._exchange():
            gradients.paths.spread(gradients.add_own(path.aggregator), gradients.totals_of)
            self._group.exchange("apply_gradients: the parts of all are added up", label)
        return gradients.totals

    def combine_rows(self, *, may_sum: bool) -> Combine:
        rows = self._own_rows()
        return rows.sum if may_sum else rows.gather

    def _own_rows(self) -> RowsInHostMemory:
        if self._rows is None:
            self._rows = RowsInHostMemory(self._hosting, self._ranks)
        return self._rows

    def _release(self, label: bytes) -> None:
        if not self._holds_memory:
            return
        started = time.perf_counter()
        self._group.exchange("apply_gradients: the gradients of all are used", label)
        # The caller takes this for a part of the update.
        waited = time.perf_counter() - started
        self._phases.wait += waited
        self._phases.apply -= waited

    def _gradients(self, layout: Any, summed: bool) -> _Gradients | None:
        """Return the memory for the gradients of ``layout``; None where they are exchanged whole."""
        found = layout.kept
        if isinstance(found, _Gradients) and found.shared.group is self._group and found.shared.summed == summed:
            return found
        if layout in self._sent_whole:
            return None
        if not self._group.holds_all:
            num_nodes = sum(map(len, self._hosting.contributed(summed=summed)))
            saved = combining.bytes_saved_by_parts(layout.num_flat_bytes, num_nodes, self._ranks.size)
            if saved <= self._ranks.exchange_cost_bytes:
                self._sent_whole.add(layout)
                return None
        made = layout.kept = _Gradients(layout, self._hosting, self._ranks, summed, self.chunk_bytes, self.overlap)
        return made


class _Gradients:
    """Of one layout: the contributions of all, and the totals of what each process adds up for all."""

    def __init__(
        self,
        layout: Any,
        hosting: Hosting,
        communicator: Communicator,
        summed: bool,
        chunk_bytes: int,
        overlap: Overlap | None,
    ) -> None:
        num_bytes = layout.num_flat_bytes
        contributed = hosting.contributed(summed=summed)
        group = communicator.host_group
        size, num_nodes = group.size, sum(len(contributed[rank]) for rank in group.ranks)
        # Each process reads all contributions; or a part of them, writes a part of the totals, and reads these.
        bytes_saved_by_parts = num_bytes * (size * num_nodes - num_nodes - 2 - size) // size
        self.in_parts = not group.holds_all or bytes_saved_by_parts > communicator.meeting_cost_bytes
        extra_bytes = num_bytes if self.in_parts else 0
        self.shared = SharedGradients(layout, hosting, communicator, summed=summed, extra_bytes=extra_bytes)
        self.paths = SpanPaths(hosting, communicator, self.shared, chunk_bytes, anywhere=True, overlap=overlap)
        self.whole = {node: tuple(flat) for node, flat in self.shared.flat_of.items()}
        self.totals = self.shared.flat_arrays(self.shared.extra) if self.in_parts else layout.empty()
        """The aggregate for each run: in parts every process adds up a part, for all; else this one all of it."""
        self._own_totals = layout.take(self.totals, self.paths.spans)
        self._layout = layout
        self.num_bytes_read = num_bytes * (num_nodes - len(self.shared.own_nodes))
        self.num_bytes_told = num_bytes * len(self.shared.own_nodes)
        if self.paths.crosses_hosts:
            self.num_bytes_read, self.num_bytes_told = self.paths.num_bytes_read, self.paths.num_bytes_told

    def add_own(self, aggregator: Aggregator) -> Iterator[int]:
        """Aggregate the spans of this process; yield the position of each as soon as its total is there."""
        for index, total in enumerate(self._own_totals):
            sums: dict[Node, tuple[Array, ...]] = {node: (own[index],) for node, own in self.paths.sums.items()}
            self.shared.aggregate(aggregator, sums, [total])
            yield index

    def totals_of(self, span: Span) -> list[Array]:
        """Return where the total of a span lies."""
        found: list[Array] = self._layout.take(self.totals, [span])
        return found
