"""Placement ``sharded``: every process owns a part of the variables, which lie once in the memory of the host.

How an apply call goes, in each process::

    write     the sums of the hosted replicas' gradients go into this process's segment
    ready     all meet; what they are about to do is compared
    combine   the owner of a span reads the contributions of all to it where they lie, and adds them in canonical order
    norms     where a clip or a rule needs them, all write the sums of squares of their blocks, and meet
    update    the owner updates variables and slots of its spans in place
    done      all meet; everyone sees the new variables

Each host has the variables and room for the slots. With several hosts, owners get the sums of the other hosts before
they combine, and send them the new variables of each chunk once it is updated (:mod:`distopt.comm.between_hosts`). The
slots of a span are then current on its owner's host alone: who reads one, has all hosts gather them.

Until ``ready`` nothing has changed, and from ``done`` on nothing is read: so a mistake is an error before the step, and
the next gradients can be written where these were.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

from distopt import clipping
from distopt.comm.communicator import Communicator, Hosting
from distopt.distribute.early_sums import Overlap
from distopt.distribute.every_process import EveryProcess
from distopt.distribute.inspector import Inspector
from distopt.distribute.introduction import Introductions
from distopt.distribute.layout_steps import LayoutSteps
from distopt.distribute.owners import (
    Phases,
    check_path,
    densified,
    num_bytes_of_all,
    refuse_split,
    same_variables,
)
from distopt.distribute.sharded_rows import ShardedRows
from distopt.distribute.shared_arena import SharedArena
from distopt.distribute.span_paths import CHUNK_BYTES, ROWS, spans_of_ranks, told_of
from distopt.types import Array
from distopt.variable import check_all_writable


class Sharded:
    """Owners of spans of variables that all processes of one host map."""

    placement = "sharded"
    re_enact_replicas = False
    chunk_bytes = CHUNK_BYTES
    """Of what is on its way between hosts at a time."""
    overlap: Overlap | None = None
    """What sends partial sums while backward goes on, if that is wanted."""

    def __init__(
        self, hosting: Hosting, rank: int, communicator: Communicator, phases: Phases, inspector: Inspector
    ) -> None:
        self._group = communicator.host_group
        self._hosting = hosting
        self._communicator = communicator
        self._phases = phases
        self._inspector = inspector
        self._introductions = Introductions(communicator, hosting.num_replicas)
        self._arena = SharedArena(self._group)
        self._every_process = EveryProcess(hosting, rank, communicator, phases, inspector)
        self._rows: ShardedRows | None = None
        self._under_way: _UnderWay | None = None
        """The apply call that this process is in."""
        self._has_applied_others = False
        self._steps_made: weakref.WeakKeyDictionary[Any, LayoutSteps] = weakref.WeakKeyDictionary()
        """By optimizer, those that were made last."""
        self._shared: weakref.WeakKeyDictionary[Any, tuple[tuple[int, ...], int]] = weakref.WeakKeyDictionary()
        """By optimizer, the variables that were shared last, and how many slots there were."""
        self._latest: weakref.WeakKeyDictionary[Any, _Latest] = weakref.WeakKeyDictionary()
        """By optimizer, whose slots are current at their owners alone."""

    def apply(self, path: Any, pairs_of: Sequence[Any], hypers: dict[str, float]) -> None:
        """See :class:`~distopt.distribute.owners.Owners`.

        Raises: SharedMemoryError at the first call with some variables, if there is not enough memory.
        """
        optimizer = path.optimizer
        started = time.perf_counter()
        same_variables(pairs_of)
        inspector = self._inspector
        if inspector.looks_for_non_finite:
            inspector.refuse_non_finite_here(pairs_of, int(optimizer.iterations.storage))
        known = self._introductions.of(optimizer, pairs_of, hypers)
        label = known.label(optimizer.gradient_aggregator, hypers)
        check_all_writable(pairs_of[0].variables, known.readers)
        if known.rows or known.repeats:
            self._apply_others(path, pairs_of, hypers, label, has_rows=known.rows)
            return
        steps = self._steps(optimizer, pairs_of[0].variables, path.aggregator.sums)
        under_way = self._under_way = _UnderWay(steps, path.aggregator, hypers, steps.num_updates + 1)
        before = inspector.book.traffic()
        begins_rows = any(pairs.has_rows for pairs in pairs_of)
        differs = begins_rows or steps.paths.write(pairs_of)
        written = time.perf_counter()
        traffic = self._communicator.traffic
        waited = traffic.wait_s
        told = self._group.exchange(
            "apply_gradients: the gradients of all are ready", label, told_of(begins_rows, differs)
        )
        if steps.paths.collect(label, withdraws=ROWS in told, differs=any(told)):
            # A replica of some process begins to have rows with this step, which the others could not know.
            self._introductions.begin_rows(optimizer, pairs_of)
            self._apply_others(path, pairs_of, hypers, label, has_rows=True)
            return
        traffic.bytes_received += steps.paths.num_bytes_read
        traffic.bytes_sent += steps.paths.num_bytes_told
        inspector.note_gradients(path, steps.layout.num_bytes * len(pairs_of), steps.layout.variables, before)
        if steps.paths.crosses_hosts:
            self._latest[optimizer] = _Latest(steps)
        steps.begin(path.aggregator, hypers)
        steps.finish(hypers)
        self._advance(optimizer, hypers, steps.layout.variables)
        under_way.has_advanced = True
        self._group.exchange("apply_gradients: the variables of all are updated", label)
        self._under_way = None
        self._note_times(started, written, traffic.wait_s - waited)

    def _apply_others(
        self, path: Any, pairs_of: Sequence[Any], hypers: dict[str, float], label: bytes, *, has_rows: bool
    ) -> None:
        """Apply gradients that are no flat arrays."""
        optimizer = path.optimizer
        self._under_way = _UnderWay(None, path.aggregator, hypers, 0)
        self._has_applied_others = True
        variables = pairs_of[0].variables
        optimizer.build(variables)
        needs_whole = optimizer.clips.active and not all(optimizer.rule_of(v).is_element_wise for v in variables)
        if has_rows and not needs_whole and len(set(pairs_of[0].key)) == len(variables):
            self._apply_by_rows(path, pairs_of, hypers, label)
        else:
            self._apply_whole(path, pairs_of, hypers, label, by_rows=has_rows)
        self._under_way = None

    def _apply_by_rows(self, path: Any, pairs_of: Sequence[Any], hypers: dict[str, float], label: bytes) -> None:
        """Apply gradients of which some are row-sparse: each by the owners of its rows, or of its spans."""
        optimizer, inspector, group = path.optimizer, self._inspector, self._group
        started = time.perf_counter()
        traffic, variables = self._communicator.traffic, pairs_of[0].variables
        waited, before = traffic.wait_s, inspector.book.traffic()
        own_rows = self._own_rows()
        self._share(optimizer, pairs_of[0])
        steps: LayoutSteps | None = None

        def write_dense(with_rows: tuple[int, ...]) -> None:
            nonlocal steps
            positions = [i for i in range(len(variables)) if i not in with_rows]
            tables = tuple(variables[i] for i in with_rows)
            steps = None
            if positions:
                dense = [variables[i] for i in positions]
                steps = self._steps(optimizer, dense, path.aggregator.sums, tables)
                steps.gradients.write([_Dense([densified(pairs[i][0]) for i in positions]) for pairs in pairs_of])
            elif (latest := self._latest.get(optimizer)) is not None and not latest.is_of(None, tables):
                self._gather_slots(optimizer)

        met = own_rows.meet(path, pairs_of, label, write_dense)
        written = time.perf_counter()
        tables = tuple(variables[i] for i in met.with_rows)
        if steps is not None:
            steps.paths.collect(label, withdraws=False, differs=True)
            traffic.bytes_received += steps.paths.num_bytes_read
            traffic.bytes_sent += steps.paths.num_bytes_told
        num_bytes = num_bytes_of_all([gradient for gradient, _ in pairs] for pairs in pairs_of)
        inspector.note_gradients(path, num_bytes, variables, before)
        if not group.holds_all:
            self._latest[optimizer] = _Latest(steps, tables, own_rows)
        totals = own_rows.totals(variables, met)
        if steps is not None:
            steps.begin(path.aggregator, hypers)
            if optimizer.clips.needs_norms:
                positions = [i for i in range(len(variables)) if i not in met.with_rows]
                totals |= zip(positions, steps.totals(), strict=True)
        total = clipping.add_totals([totals[i] for i in sorted(totals)]) if totals else None
        if steps is not None:
            steps.finish(hypers, lambda _: total)
        own_rows.update(path, variables, met, hypers, totals, total)
        self._advance(optimizer, hypers, variables)
        group.exchange("apply_gradients: the variables of all are updated", label)
        self._note_times(started, written, traffic.wait_s - waited)

    def _apply_whole(
        self, path: Any, pairs_of: Sequence[Any], hypers: dict[str, float], label: bytes, *, by_rows: bool
    ) -> None:
        """Apply gradients that are no flat arrays: all processes aggregate them, and the first one makes the update."""
        optimizer, group = path.optimizer, self._group
        started = time.perf_counter()
        variables = pairs_of[0].variables
        self._gather_slots(optimizer)
        self._share(optimizer, pairs_of[0])
        columns = [[pairs[i][0] for pairs in pairs_of] for i in range(len(variables))]
        before = self._inspector.book.traffic()
        combine_rows = self._every_process.combine_rows(may_sum=path.may_sum_rows) if by_rows else None
        gradients = self._every_process.aggregate_by(path.aggregator, columns, combine_rows, label)
        num_bytes = num_bytes_of_all(columns)
        self._inspector.note_gradients(path, num_bytes, variables, before)
        combined = time.perf_counter()
        group.exchange("apply_gradients: the gradients of all are aggregated")
        if group.index == 0:
            optimizer.finish_aggregated(zip(gradients, variables, strict=True), hypers)
        else:
            optimizer.advance(hypers, variables)
        group.exchange("apply_gradients: the variables are updated")
        self._phases.combine += combined - started
        self._phases.apply += time.perf_counter() - combined

    def _share(self, optimizer: Any, pairs: Any) -> None:
        """Have the variables of ``pairs``, and their slots, lie in the memory of the host."""
        state = pairs.key, optimizer.slots.num_added
        if self._shared.get(optimizer) != state:
            segments = {id(v.placement[0]): v.placement[0] for v in pairs.variables}.values()
            self._arena.take(optimizer, segments, self._gather_slots)
            self._shared[optimizer] = state

    def _note_times(self, started: float, written: float, waited_s: float) -> None:
        """Note the phases of an apply call that ends now."""
        self._phases.combine += written - started
        self._phases.wait += waited_s
        self._phases.apply += time.perf_counter() - written - waited_s

    def _advance(self, optimizer: Any, hypers: dict[str, float], variables: Sequence[Any]) -> None:
        if optimizer.features.accumulation_steps > 1:
            # One process clears the accumulators of all: nobody may be using one.
            self._group.exchange("apply_gradients: the accumulated gradients of all are used")
        optimizer.advance(hypers, variables)

    def _steps(
        self, optimizer: Any, variables: Sequence[Any], summed: bool, tables: tuple[Any, ...] = ()
    ) -> LayoutSteps:
        """Return what updates ``variables`` from dense gradients, in a step with row-sparse ones of ``tables``."""
        layout = optimizer.layout(variables)
        found = layout.kept if isinstance(layout.kept, LayoutSteps) else None
        latest = self._latest.get(optimizer)
        if latest is not None and not latest.is_of(layout, tables):
            self._gather_slots(optimizer)  # other owners
        if found is None or not found.is_current(self._group, summed):
            spans_of = spans_of_ranks(layout, self._group.hosts)
            owned = [spans_of[rank] for rank in self._group.ranks]
            self._arena.take(optimizer, layout.segments, self._gather_slots, owned)
            found = layout.kept = LayoutSteps(
                optimizer, layout, self._hosting, self._communicator, summed, found, self.chunk_bytes, self.overlap
            )
            self._steps_made[optimizer] = found
        return found

    def _gather_slots(self, optimizer: Any) -> None:
        """Make the slots current on all hosts; a collective, and nothing where they are."""
        latest = self._latest.pop(optimizer, None)
        if latest is None:
            return
        self._group.exchange("the slots are wanted on all hosts")
        if latest.steps is not None:
            latest.steps.gather_slots()
        if latest.rows is not None:
            latest.rows.gather_slots(optimizer, latest.tables)
        self._group.exchange("the slots are on all hosts")

    def gradient_arrays(self, optimizer: Any, variables: Sequence[Any]) -> list[Array] | None:
        """See :class:`~distopt.distribute.owners.Owners`."""
        steps = self._steps(optimizer, variables, optimizer.gradient_aggregator.sums)
        steps.paths.send_nothing_early()
        return steps.gradients.arrays

    def gradient_rows(self, variable: Any, num_rows: int) -> Array | None:
        """See :class:`~distopt.distribute.owners.Owners`."""
        return self._own_rows().arrays.make(variable, num_rows)

    def _own_rows(self) -> ShardedRows:
        if self._rows is None:
            self._rows = ShardedRows(self._hosting, self._communicator)
        return self._rows

    def survives_loss(self, optimizer: Any) -> bool:
        """See :class:`~distopt.distribute.owners.Owners`; where another host is lost, its slots are."""
        steps = self._steps_made.get(optimizer)
        return steps is not None and steps.logs is not None and not self._has_applied_others

    def settle(self, communicator: Communicator) -> bool | None:
        """See :class:`~distopt.distribute.owners.Owners`."""
        under_way = self._under_way
        can_be_ended = self._group.holds_all and (under_way is None or under_way.logs is not None)
        if not all(communicator.all_gather_bytes(b"1" if can_be_ended else b"")):
            return None
        if under_way is not None and communicator.rank == 0:
            under_way.end()
        communicator.barrier()
        return under_way is not None and under_way.settle()

    def check(self, path: Any) -> None:
        """Refuse what owners of parts cannot do; see :func:`~distopt.distribute.owners.check_path`.

        Raises: PlacementError.
        """
        check_path(path, self._inspector.checks, self.placement)

    def may_split(self, what: str) -> None:
        """Refuse: the processes of a host share one value.

        Raises: PlacementError.
        """
        refuse_split(what, self.placement)


class _Dense(NamedTuple):
    """The gradients of one replica that are no rows."""

    arrays: Sequence[Array]


class _Latest(NamedTuple):
    """Who owns the slots of an optimizer: what updated it last, of which ``tables`` by their rows."""

    steps: LayoutSteps | None
    tables: tuple[Any, ...] = ()
    rows: ShardedRows | None = None

    def is_of(self, layout: Any, tables: Sequence[Any]) -> bool:
        """Return whether the owners are those of ``layout``, None for no dense variable, and of ``tables``."""
        own_layout = None if self.steps is None else self.steps.layout
        return own_layout is layout and list(map(id, self.tables)) == list(map(id, tables))


class _UnderWay:
    """An apply call; ``steps`` is None for one whose update others could not end."""

    def __init__(self, steps: LayoutSteps | None, aggregator: Any, hypers: dict[str, float], serial: int) -> None:
        self._steps = steps
        self._aggregator = aggregator
        self._hypers = hypers
        self._serial = serial
        self.logs = None if steps is None else steps.logs
        self.has_advanced = False
        """Whether the optimizer of this process has counted it."""

    def end(self) -> None:
        """Do what is left of the updates of all members, if any of them has begun."""
        if self._steps is not None and self.logs is not None and self.logs.latest >= self._serial:
            self._steps.end(self._aggregator, self._hypers, self._serial)

    def settle(self) -> bool:
        """Return whether the update is made; the optimizer then has counted it."""
        assert self._steps is not None, "asked before"
        assert self.logs is not None, "asked before"
        is_made = self.logs.latest >= self._serial
        if is_made and not self.has_advanced:
            self._steps.optimizer.advance(self._hypers, self._steps.layout.variables)
            self.has_advanced = True
        return is_made
