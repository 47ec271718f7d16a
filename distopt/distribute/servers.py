"""Placement ``server``: contributions go to the owners of their spans, updated variables come back."""

from __future__ import annotations

import time
import weakref
from collections.abc import Sequence
from typing import Any

from distopt.comm.communicator import Communicator, Contribution, Hosting
from distopt.comm.hosting import Answer, Parcel
from distopt.distribute import row_pushes
from distopt.distribute.coded_pushes import coded_parcels, pushes_codes
from distopt.distribute.inspector import Inspector
from distopt.distribute.introduction import Introductions, Known
from distopt.distribute.optimizer_settings import differing
from distopt.distribute.owners import (
    Phases,
    Scratch,
    absolute_spans,
    check_path,
    contributions,
    refuse_split,
    relative_spans,
    same_variables,
)
from distopt.distribute.row_pushes import goes_by_rows
from distopt.distribute.variable_parts import VariablePart, parts_of, write_answer
from distopt.errors import PlacementError
from distopt.types import Array


class Servers:
    """Placement ``server``: contributions are pushed to the owners of their spans, updated variables come back."""

    placement = "server"

    def __init__(self, hosting: Hosting, rank: int, communicator: Any, phases: Phases, inspector: Inspector) -> None:
        self._hosting = hosting
        self._rank = rank
        self._communicator = communicator
        self._phases = phases
        self._inspector = inspector
        self._scratch = Scratch()
        self._introductions = Introductions(communicator, hosting.num_replicas, holds_values=False)
        self._parts_of_layout: weakref.WeakKeyDictionary[Any, list[tuple[VariablePart, ...]]] = (
            weakref.WeakKeyDictionary()
        )
        self._settings_of: weakref.WeakKeyDictionary[Any, dict[str, str]] = weakref.WeakKeyDictionary()
        self.re_enact_replicas = communicator.num_servers == 1

    def apply(self, path: Any, pairs_of: Sequence[Any], hypers: dict[str, float]) -> None:
        """See :class:`Owners`.

        Raises: PlacementError for row-sparse gradients that the servers cannot take, and for a setting of the optimizer
            that was changed between two steps.
        """
        optimizer = path.optimizer
        started = time.perf_counter()
        variables = same_variables(pairs_of)
        for variable in variables:
            variable.check_writable()
        inspector = self._inspector
        if inspector.looks_for_non_finite:
            inspector.refuse_non_finite_here(pairs_of, int(optimizer.iterations.storage))
        layout = optimizer.layout(variables)
        known = self._introductions.of(optimizer, pairs_of, hypers)
        label = known.label("update", hypers)
        self._refuse_changed_settings(optimizer, known)
        before = inspector.book.traffic()
        own_hypers = hypers if 0 in self._hosting.hosted[self._rank] else None
        into = list(zip(relative_spans(layout), (run.view() for run in layout.runs), strict=True))
        parcels = self._coded_parcels(path, layout, pairs_of) or self._row_parcels(path, layout, pairs_of)
        parts: list[Contribution] = []
        if parcels is None:
            flat_of = self._scratch.pack(layout, pairs_of)
            summed = path.runs_at_owners and path.aggregator.sums
            parts = contributions(self._hosting, self._rank, flat_of, summed=summed)
        traffic = self._communicator.traffic
        waited, sent = traffic.wait_s, traffic.send_s
        packed = time.perf_counter()
        optimizer.keeps_slots = False
        if parcels is None:
            answers = self._communicator.update(parts, self._hosting, own_hypers, into, label)
        else:
            answers = self._communicator.update_parcels(parcels, self._hosting, own_hypers, into, label)
        if answers:
            self._write_rows(layout, answers)
        self._phases.combine += packed - started
        self._phases.wait += traffic.wait_s - waited
        self._phases.send += traffic.send_s - sent
        inspector.note_gradients(path, layout.num_bytes * len(pairs_of), layout.variables, before)
        optimizer.advance(hypers)

    def _coded_parcels(self, path: Any, layout: Any, pairs_of: Sequence[Any]) -> list[list[Parcel]] | None:
        """Return what each server gets where codes are pushed, else None."""
        aggregator = path.aggregator
        if getattr(aggregator, "compression", None) is None or not path.runs_at_owners:
            return None
        if not self._hosting.hosted[self._rank] or not pushes_codes(aggregator, self._hosting, layout.variables):
            return None
        parts = self._parts_of_servers(layout)
        return coded_parcels(aggregator.compression, self._hosting, self._rank, pairs_of, parts)

    def _row_parcels(self, path: Any, layout: Any, pairs_of: Sequence[Any]) -> list[list[Parcel]] | None:
        """Return what each server gets where a hosted replica has a row-sparse gradient, else None."""
        hosted = self._hosting.hosted[self._rank]
        if not hosted or not any(pairs.has_rows for pairs in pairs_of):
            return None if hosted else [[] for _ in self._communicator.spans]
        gradients = {replica: [g for g, _ in pairs] for replica, pairs in zip(hosted, pairs_of, strict=True)}
        by_rows = [
            any(pairs.arrays[i] is None for pairs in pairs_of) and goes_by_rows(path, variable)
            for i, variable in enumerate(layout.variables)
        ]
        spans_of = [absolute_spans(layout, spans) for spans in self._communicator.spans]
        parts_of_servers = self._parts_of_servers(layout)
        return row_pushes.parcels(path, self._hosting, layout, spans_of, parts_of_servers, gradients, by_rows)

    def _write_rows(self, layout: Any, answers: Sequence[Answer]) -> None:
        flat_of = [variable.storage.reshape(-1) for variable in layout.variables]
        for parts, (with_rows, arrays) in zip(self._parts_of_servers(layout), answers, strict=True):
            write_answer(parts, with_rows, arrays, flat_of)

    def _parts_of_servers(self, layout: Any) -> list[tuple[VariablePart, ...]]:
        """Return which parts of variables each server owns."""
        found = self._parts_of_layout.get(layout)
        if found is None:
            found = [parts_of(layout, absolute_spans(layout, spans)) for spans in self._communicator.spans]
            self._parts_of_layout[layout] = found
        return found

    def _refuse_changed_settings(self, optimizer: Any, known: Known) -> None:
        """Refuse what servers would not see: hypers travel with every step, settings do not."""
        now = known.settings.current
        before = self._settings_of.get(optimizer)
        if before is None:
            self._settings_of[optimizer] = dict(now)
        elif now != before:
            changes = "; ".join(f"{name} was {old} and is {new} now" for name, old, new in differing(before, now))
            raise PlacementError(
                f"settings of the optimizer were changed after the first step: {changes}; but with placement 'server' "
                "the servers make the updates, with the settings that they began with; use placement 'replica'"
            )

    def survives_loss(self, optimizer: Any) -> bool:  # noqa: ARG002
        """See :class:`~distopt.distribute.owners.Owners`; a lost server has what nobody else has."""
        return False

    def settle(self, communicator: Communicator) -> bool | None:  # noqa: ARG002
        """See :class:`~distopt.distribute.owners.Owners`."""
        return None

    def check(self, path: Any) -> None:
        """Refuse what servers cannot do; see :func:`~distopt.distribute.owners.check_path`.

        Raises: PlacementError.
        """
        check_path(path, self._inspector.checks, self.placement, self._communicator.num_servers)

    def may_split(self, what: str) -> None:
        """Refuse: the servers hold one value for all replicas."""
        refuse_split(what, self.placement)

    def gradient_arrays(self, optimizer: Any, variables: Sequence[Any]) -> list[Array] | None:  # noqa: ARG002
        """See :class:`Owners`; there is none."""
        return None

    def gradient_rows(self, variable: Any, num_rows: int) -> Array | None:  # noqa: ARG002
        """See :class:`~distopt.distribute.owners.Owners`: nobody reads rows where they are."""
        return None
