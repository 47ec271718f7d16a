"""What the apply calls for the variables of one layout share, with placement ``sharded``, in each process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from distopt import clipping
from distopt.arena import Span
from distopt.comm.communicator import Communicator, Hosting
from distopt.comm.shared_memory import HostGroup
from distopt.distribute import span_logs
from distopt.distribute.early_sums import Overlap
from distopt.distribute.shared_gradients import SharedGradients
from distopt.distribute.span_logs import SpanLogs
from distopt.distribute.span_paths import SpanPaths
from distopt.optimizers.features import makes_step
from distopt.optimizers.terms import Terms
from distopt.types import Array


class LayoutSteps:
    """The gradients, the sums of squares, the owner, and the ways between hosts.

    ``before`` is what this replaces, whose memory is used again if it fits.
    """

    def __init__(
        self,
        optimizer: Any,
        layout: Any,
        hosting: Hosting,
        communicator: Communicator,
        summed: bool,
        before: LayoutSteps | None,
        chunk_bytes: int,
        overlap: Overlap | None = None,
    ) -> None:
        self.layout = layout
        self.optimizer = optimizer
        self._group = communicator.host_group
        self._stamp = self._bindings()
        sums_bytes = 2 * len(layout.blocks) * np.dtype(np.float64).itemsize
        reused = before if before is not None and before._is_of(self._group, summed) else None
        if reused is None:
            self.gradients = SharedGradients(layout, hosting, communicator, summed=summed, extra_bytes=sums_bytes)
            saved_bytes = span_logs.SPAN_BYTES if communicator.survives_losses else None
            self.paths = SpanPaths(
                hosting, communicator, self.gradients, chunk_bytes, host_chunk_bytes=saved_bytes, overlap=overlap
            )
        else:
            self.gradients, self.paths = reused.gradients, reused.paths
        self._spans = self.paths.spans
        self._owner = optimizer.span_owner(layout, self._spans)
        self._blocks = np.array(self._owner.blocks, np.intp)
        self._all_sums: Array = self.gradients.extra.view(np.float64)
        self._own: list[Array] | None = None
        self._begun: Terms | list[Array] = []
        self._norms: Array = self._all_sums[:0]
        self.num_updates: int = 0 if before is None else before.num_updates
        self.logs: SpanLogs | None = None
        if communicator.survives_losses and not self.paths.crosses_hosts and self._owner.updates_by_span:
            spans_of = [self.paths.spans_of[rank] for rank in self._group.ranks]
            self.logs = SpanLogs(self._group, spans_of, self._written_in)

    def is_current(self, group: HostGroup, summed: bool) -> bool:
        """Return whether variables and slots are still where they were, and treated as they were."""
        return self._is_of(group, summed) and self._stamp == self._bindings()

    def begin(self, aggregator: Any, hypers: dict[str, float]) -> None:
        """Aggregate the contributions to the spans of this process; exchange the sums of squares, if it needs any."""
        sums = self.paths.sums
        # Where they are plain terms, the very loop that updates adds them up: each is read once, and no sum is stored.
        gradients: Terms | list[Array] | None = self.gradients.terms(aggregator, sums)
        if gradients is None:
            if self._own is None:
                self._own = [np.empty_like(array) for array in next(iter(sums.values()))]
            gradients = self.gradients.aggregate(aggregator, sums, self._own)
        owner = self._owner
        self._begun = gradients
        self._norms = self._sums_of_all()
        if owner.exchanges:
            by_block = self._norms.reshape(-1, owner.num_sums)
            own = owner.partials(gradients, hypers) if self._spans else by_block[:0]
            by_block[self._blocks] = own.reshape(-1, owner.num_sums)
            self.paths.exchange_sums(own, by_block)
            self._group.exchange("apply_gradients: the sums of squares of all are ready")

    def totals(self) -> list[Any]:
        """Return the sum of squares of each variable, which have been exchanged."""
        found: list[Any] = self._owner.totals(self._norms)
        return found

    def finish(
        self, hypers: dict[str, float], add_totals: Callable[[Sequence[Any]], Any] = clipping.add_totals
    ) -> None:
        """Clip, and update the spans of this process; bring those of the other hosts here.

        ``add_totals``: as :meth:`~distopt.optimizers.owner.SpanOwner.apply` takes it.
        """
        gradients, owner = self._begun, self._owner
        self.num_updates += 1
        if self.logs is not None:
            place = self._group.index
            going = owner.apply_each(gradients, hypers, self._norms, add_totals, self.logs.saves(place))
            self.logs.carry_out(place, self.num_updates, going)
        elif self.paths.crosses_hosts and makes_step(hypers):
            made = owner.apply_each(gradients, hypers, self._norms, add_totals) if self._spans else ()
            self.paths.spread(made, self._variables_of)
        elif self._spans:
            owner.apply(gradients, hypers, self._norms, add_totals)

    def end(self, aggregator: Any, hypers: dict[str, float], serial: int) -> None:
        """Do what is left of an update that some members have begun, for all of them."""
        assert self.logs is not None, "asked by the caller"
        for place, first in self.logs.unfinished(serial):
            self.logs.put_back(place, serial)
            spans = self.paths.spans_of[self._group.ranks[place]][first:]
            sums = {node: tuple(self.layout.take(flat, spans)) for node, flat in self.gradients.flat_of.items()}
            gradients: Terms | list[Array] | None = self.gradients.terms(aggregator, sums)
            if gradients is None:
                own = [np.empty_like(array) for array in next(iter(sums.values()))]
                gradients = self.gradients.aggregate(aggregator, sums, own)
            owner = self.optimizer.span_owner(self.layout, spans)
            going = owner.apply_each(gradients, hypers, self._sums_of_all(), copies_of=self.logs.saves(place, first))
            self.logs.carry_out(place, serial, going, first)

    def gather_slots(self) -> None:
        """Bring the slots from their owners to all hosts; a collective."""
        self.paths.spread(range(len(self._spans)), self._slots_of)

    def _sums_of_all(self) -> Array:
        """Return where the sums of squares of all blocks lie; nowhere if the update needs none."""
        owner = self._owner
        return self._all_sums[: len(self.layout.blocks) * owner.num_sums if owner.exchanges else 0]

    def _written_in(self, span: Span) -> list[Array]:
        return self._variables_of(span) + self._slots_of(span)

    def _variables_of(self, span: Span) -> list[Array]:
        return [self.layout.segment_of(span).buffer[span.start : span.stop]]

    def _slots_of(self, span: Span) -> list[Array]:
        slots, segment = self.optimizer.slots, self.layout.segment_of(span)
        found = [array[span.start : span.stop] for array in slots.buffers(segment).values()]
        for variable, offset in zip(segment.variables, segment.offsets, strict=True):
            if span.start <= offset < span.stop:
                found += [array.reshape(-1) for array in slots.apart(variable).values()]
        return found

    def _is_of(self, group: HostGroup, summed: bool) -> bool:
        return self.gradients.group is group and self.gradients.summed == summed

    def _bindings(self) -> tuple[int, int]:
        return self.optimizer.num_bindings, self.optimizer.slots.num_added
