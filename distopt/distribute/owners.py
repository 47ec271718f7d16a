"""Who combines gradients and updates variables: every process alike, or servers.

A strategy hands both kinds the same thing, the hosted replicas' pairs of one apply call, and gets back updated
variables. This is where the wire cuts the gradient's path; nothing above knows where the cut is.
"""

from __future__ import annotations

import dataclasses
import functools
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from distopt.aggregation import Aggregator, GradientAggregator, JointAggregator, Meeting, Sum, WholeAggregator
from distopt.agreement import Described, disagreement
from distopt.arena import Span
from distopt.canonical_sum import Node, add_nodes
from distopt.comm import combining
from distopt.comm.communicator import Communicator, Contribution, Hosting, Withdrawn
from distopt.comm.hosting import Answer, Parcel
from distopt.distribute import row_pushes
from distopt.distribute.coded_pushes import coded_parcels, pushes_codes
from distopt.distribute.codes import gather_codes, sends_codes
from distopt.distribute.inspector import Inspector
from distopt.distribute.introduction import Introductions, Known, label_of_values
from distopt.distribute.optimizer_settings import differing
from distopt.distribute.receipts import Note
from distopt.distribute.row_exchange import Combine, gather_rows, is_row_sparse, sum_rows
from distopt.distribute.row_pushes import goes_by_rows
from distopt.distribute.variable_parts import VariablePart, parts_of, write_answer
from distopt.errors import PlacementError, UnaggregatedGradientsError, UnequalDtypesError, UnequalShapesError
from distopt.indexed_slices import IndexedSlices
from distopt.optimizers.terms import Terms
from distopt.types import Array


@dataclass
class Phases:
    """Seconds of this process spent in each phase since the last :meth:`take`."""

    gradient: float = 0.0
    combine: float = 0.0
    send: float = 0.0
    wait: float = 0.0
    apply: float = 0.0

    def take(self) -> tuple[float, ...]:
        """Return the seconds of each of ``PHASES`` and start again from zero."""
        taken = (self.gradient, self.combine, self.send, self.wait, self.apply)
        self.gradient = self.combine = self.send = self.wait = self.apply = 0.0
        return taken


PHASES = tuple(field.name for field in dataclasses.fields(Phases))


class Owners(Protocol):
    """What a strategy asks of whoever owns the spans."""

    placement: str
    re_enact_replicas: bool
    """Whether a hook over whole gradients runs at the owner, which re-enacts all replica contexts."""

    def apply(self, path: Any, pairs_of: Sequence[Any], hypers: dict[str, float]) -> None:
        """Aggregate, clip and apply.

        ``pairs_of`` holds one ``Pairs`` for each hosted replica, ``hypers`` are those of the step.
        """
        ...

    def check(self, path: Any) -> None:
        """Raise PlacementError for an apply call that cannot be carried out here."""
        ...

    def may_split(self, what: str) -> None:
        """Raise PlacementError where variables cannot hold one copy a replica."""
        ...

    def gradient_arrays(self, optimizer: Any, variables: Sequence[Any]) -> list[Array] | None:
        """Return where gradients that are written there are not copied any more; None where there is no such place."""
        ...


class EveryProcess:
    """Placement ``replica``: gradients are all-reduced, then every process makes the same update."""

    placement = "replica"
    re_enact_replicas = False

    def __init__(
        self, hosting: Hosting, rank: int, communicator: Communicator | None, phases: Phases, inspector: Inspector
    ) -> None:
        self._hosting = hosting
        self._rank = rank
        self._communicator = communicator
        self._phases = phases
        self._inspector = inspector
        self._scratch = _Scratch()
        self._is_alone = hosting.num_replicas == 1 and communicator is None
        self._introductions = Introductions(communicator)
        self._rows_by_shapes: dict[Any, bool] = {}

    def apply(self, path: Any, pairs_of: Sequence[Any], hypers: dict[str, float]) -> None:
        """See :class:`Owners`."""
        optimizer = path.optimizer
        started = time.perf_counter()
        variables = same_variables(pairs_of)
        if self._is_alone and path.aggregator.sums:
            # The sum over one replica is its own gradient: nothing to bring together, so nothing to copy.
            pairs = pairs_of[0]
            if type(path.aggregator) is not Sum:
                columns = [[gradient] for gradient, _ in pairs]
                pairs = list(zip(self.aggregate(path.aggregator, columns), variables, strict=True))
            combined = time.perf_counter()
            if self._inspector.looks_for_non_finite and not self._lets_pass(optimizer, [g for g, _ in pairs], pairs_of):
                return
            optimizer.finish_aggregated(pairs, hypers)
        else:
            try:
                found = self._aggregate_and_update(path, pairs_of, hypers)
            except Withdrawn:
                # A replica of some process begins to have rows with this step, which the others could not know.
                self._introductions.begin_rows(optimizer, pairs_of)
                found = self._aggregate_and_update(path, pairs_of, hypers)
            if found is None:
                return
            combined = found
        self._phases.combine += combined - started
        self._phases.apply += time.perf_counter() - combined

    def _aggregate_and_update(self, path: Any, pairs_of: Sequence[Any], hypers: dict[str, float]) -> float | None:
        """Return when all was aggregated; None if the step is skipped.

        Raises: Withdrawn where a process begins to have rows; then nothing was done, on any process.
        """
        optimizer, variables = path.optimizer, pairs_of[0].variables
        by_rows, begins_rows, label = self._introduced(path, pairs_of, hypers)
        before = self._inspector.book.traffic()
        if not by_rows and len(set(pairs_of[0].key)) == len(variables):
            layout = optimizer.layout(variables)
            total = self._total(path, layout, pairs_of, label, withdraws=begins_rows)
            combined = time.perf_counter()
            note = Note("gradients", path.aggregator, layout.num_bytes * len(pairs_of), layout.variables, before)
            skipped = self._noted(note, optimizer, total, pairs_of)
            if not skipped:
                optimizer.finish(layout, total, hypers)
            self._release(label)
            if skipped:
                return None
        else:
            columns = [[pairs[i][0] for pairs in pairs_of] for i in range(len(variables))]
            combine_rows = (sum_rows if path.may_sum_rows else gather_rows) if by_rows else None
            gradients = self.aggregate_by(path.aggregator, columns, combine_rows, label, withdraws=begins_rows)
            combined = time.perf_counter()
            num_bytes = sum(num_bytes_of(gradient) for column in columns for gradient in column)
            note = Note("gradients", path.aggregator, num_bytes, variables, before)
            if self._noted(note, optimizer, gradients, pairs_of):
                return None
            optimizer.finish_aggregated(zip(gradients, variables, strict=True), hypers)
        return combined

    def _total(
        self, path: Any, layout: Any, pairs_of: Sequence[Any], label: bytes, *, withdraws: bool
    ) -> Sequence[Array] | Terms:
        """Return the aggregate of dense gradients for each run, which holds until :meth:`_release`.

        Raises: as :meth:`combine`.
        """
        if withdraws:
            flat_of = [[np.zeros_like(array) for array in layout.empty()]] * len(pairs_of)
            return self.combine(path.aggregator, flat_of, label, withdraws=True)
        return self._combined(path.aggregator, layout, pairs_of, label)

    def _release(self, label: bytes) -> None:
        """Give back what :meth:`_total` returned."""

    def _introduced(self, path: Any, pairs_of: Sequence[Any], hypers: dict[str, float]) -> tuple[bool, bool, bytes]:
        """Return whether gradients are combined by rows, whether this process begins to have some, and the label.

        By rows: since the first apply call with these variables where a replica of any process had row-sparse ones.
        """
        have_rows = False
        for pairs in pairs_of:  # a generator costs as much as the rest
            have_rows = have_rows or pairs.has_rows
        if self._communicator is None:
            return have_rows, False, b""
        known = self._introductions.of(path.optimizer, pairs_of)
        label = known.label(path.aggregator.full_name, hypers)
        return known.rows, have_rows and not known.rows, label

    def _noted(self, note: Note, optimizer: Any, gradients: Any, pairs_of: Sequence[Any]) -> bool:
        """Leave the receipt of a reduction; return whether the step is to be skipped."""
        inspector = self._inspector
        if inspector.several:
            note.step = int(optimizer.iterations.storage)
            note.skipped = inspector.looks_for_non_finite and not self._lets_pass(optimizer, gradients, pairs_of)
            inspector.book.add(note)
        return note.skipped

    def _lets_pass(self, optimizer: Any, gradients: Sequence[Any], pairs_of: Sequence[Any]) -> bool:
        return self._inspector.lets_pass(gradients, pairs_of, int(optimizer.iterations.storage))

    def aggregate(
        self, aggregator: Aggregator, columns: Sequence[Sequence[Any]], *, rows_may_differ: bool = False
    ) -> list[Any]:
        """Return the aggregate over all replicas of each gradient; ``columns[i]`` has those of each hosted replica.

        ``rows_may_differ``: a process may have row-sparse ones where this one has none; unless it is set, all have them
        where this one has.

        Gradients that are row-sparse on all replicas stay so under an aggregator that sums: their rows in replica
        order, duplicates kept. Where some replicas have one dense, it is made dense.
        """
        if not rows_may_differ or self._communicator is None or self._communicator.size == 1:
            by_rows = _any_rows(columns) if rows_may_differ else any(map(is_row_sparse, columns))
            return self.aggregate_by(aggregator, columns, gather_rows if by_rows else None)
        key = tuple((column[0].shape, column[0].dtype) for column in columns)
        have_rows = _any_rows(columns)
        if key not in self._rows_by_shapes:
            self._rows_by_shapes[key] = any(self._communicator.all_gather_bytes(b"rows" if have_rows else b""))
        if not self._rows_by_shapes[key]:
            try:
                return self.aggregate_by(aggregator, columns, None, withdraws=have_rows)
            except Withdrawn:
                self._rows_by_shapes[key] = True
        return self.aggregate_by(aggregator, columns, gather_rows)

    def aggregate_by(
        self,
        aggregator: Aggregator,
        columns: Sequence[Sequence[Any]],
        combine_rows: Combine | None,
        label: bytes = b"",
        *,
        withdraws: bool = False,
    ) -> list[Any]:
        """Aggregate, bringing rows together by ``combine_rows``; None where no process has rows, or nobody said so.

        Raises: Withdrawn if that was an error of this process (``withdraws``) or another one.
        """
        results: list[Any] = [None] * len(columns)
        if aggregator.sums and combine_rows is not None:
            with self._exchange():
                results[:] = combine_rows(self._hosting, self._rank, self._communicator, columns, label)
            for i, rows in enumerate(results):
                if rows is not None:
                    values = aggregator.finish(rows.values.numpy(), self._hosting.num_replicas)
                    results[i] = rows.with_values(values)
        as_array = _zeros_like if withdraws else densified
        dense = {i: list(map(as_array, columns[i])) for i, result in enumerate(results) if result is None}
        if dense:
            for arrays in dense.values():
                check_alike(arrays)
            flat_of = [[np.ascontiguousarray(a).reshape(-1) for a in row] for row in zip(*dense.values(), strict=True)]
            if not label and self._communicator is not None:
                label = label_of_values(aggregator, [a[0] for a in dense.values()])
            totals = self.combine(aggregator, flat_of, label, withdraws=withdraws)
            for i, total in zip(dense, totals, strict=True):
                results[i] = total.reshape(dense[i][0].shape)
        return results

    def combine(
        self,
        aggregator: Aggregator,
        flat_of: Sequence[Sequence[Array]],
        label: bytes = b"",
        *,
        withdraws: bool = False,
    ) -> list[Array]:
        """Return the aggregate over all replicas of each flat array; ``flat_of`` has those of each hosted replica.

        ``label``: what the other processes must take it to be of, too; see :mod:`distopt.agreement`. ``withdraws``, and
        what is raised: as :meth:`~distopt.comm.communicator.Communicator.combine`.
        """
        parts = contributions(self._hosting, self._rank, flat_of, summed=aggregator.sums)
        if self._communicator is None:
            sums = {part.node: part.arrays for part in parts}
            return combining.aggregate(sums, self._hosting, aggregator, like=flat_of[0])
        with self._exchange():
            return self._communicator.combine(parts, self._hosting, aggregator, flat_of[0], label, withdraws=withdraws)

    def combine_whole(self, aggregator: GradientAggregator, pairs_of: Sequence[Any]) -> list[Array]:
        """Return what ``aggregator``, of whatever kind, makes of the contributions of all replicas, by variable.

        ``pairs_of``: what the hosted replicas contribute. Row-sparse gradients are made dense.
        """
        dense_of = [[densified(gradient) for gradient, _ in pairs] for pairs in pairs_of]
        columns = list(zip(*dense_of, strict=True))
        for arrays in columns:
            check_alike(arrays)
        aggregator.check_replicas(self._hosting.num_replicas)
        if isinstance(aggregator, Aggregator):
            return self.aggregate(aggregator, columns)
        if isinstance(aggregator, JointAggregator):
            return aggregator.combine_jointly(
                Meeting(
                    self._hosting.num_replicas,
                    self._hosting.hosted[self._rank],
                    [variable for _, variable in pairs_of[0]],
                    dense_of,
                    functools.partial(self.aggregate, Sum()),
                )
            )
        assert isinstance(aggregator, WholeAggregator), f"{aggregator.name} is none of the known kinds"
        if self._communicator is None:
            return aggregator.combine(dense_of)
        label = label_of_values(aggregator, [column[0] for column in columns])
        with self._exchange():
            return aggregator.combine(self._of_all_replicas(aggregator, pairs_of, dense_of, label))

    def _of_all_replicas(
        self, aggregator: GradientAggregator, pairs_of: Sequence[Any], dense_of: Sequence[list[Array]], label: bytes
    ) -> list[list[Array]]:
        communicator, hosting, rank = self._communicator, self._hosting, self._rank
        assert communicator is not None, "asked by the caller"
        if aggregator.compression is not None and sends_codes(aggregator, hosting, communicator, dense_of[0]):
            found = gather_codes(aggregator.compression, hosting, rank, communicator, pairs_of, label)
            found |= dict(zip(hosting.hosted[rank], dense_of, strict=False))
            return [found[replica] for replica in sorted(found)]
        packed_of = [combining.Packed(arrays) for arrays in dense_of]
        own = contributions(hosting, rank, [packed.flat for packed in packed_of], summed=False)
        gathered = communicator.gather(own, hosting, packed_of[0].flat, label)
        return [packed_of[0].views(gathered[node]) for node in sorted(gathered)]

    def _combined(self, aggregator: Aggregator, layout: Any, pairs_of: Sequence[Any], label: bytes) -> list[Array]:
        """Return the flat aggregate of dense contributions."""
        flat_of = self._scratch.pack(layout, pairs_of)
        communicator, compression = self._communicator, aggregator.compression
        if (
            communicator is None
            or compression is None
            or not sends_codes(aggregator, self._hosting, communicator, pairs_of[0].arrays)
        ):
            return self.combine(aggregator, flat_of, label)
        with self._exchange():
            others = gather_codes(compression, self._hosting, self._rank, communicator, pairs_of, label)
        sums = {leaf: tuple(flat) for leaf, flat in zip(self._hosting.leaves[self._rank], flat_of, strict=False)}
        sums |= {Node(replica, replica + 1): tuple(layout.pack(arrays)) for replica, arrays in others.items()}
        return combining.aggregate(sums, self._hosting, aggregator, like=flat_of[0])

    def check(self, path: Any) -> None:
        """See :class:`Owners`; every process can make every update."""

    def may_split(self, what: str) -> None:
        """See :class:`Owners`; every process has its own variables, so nothing is refused."""

    def gradient_arrays(self, optimizer: Any, variables: Sequence[Any]) -> list[Array] | None:  # noqa: ARG002
        """See :class:`Owners`; there is none."""
        return None

    @contextmanager
    def _exchange(self) -> Iterator[None]:
        """Count the time of an exchange as that of sending and waiting, not of combining."""
        if self._communicator is None:
            yield
            return
        traffic = self._communicator.traffic
        waited, sent = traffic.wait_s, traffic.send_s
        yield
        waited, sent = traffic.wait_s - waited, traffic.send_s - sent
        self._phases.wait += waited
        self._phases.send += sent
        self._phases.combine -= waited + sent


class Servers:
    """Placement ``server``: contributions are pushed to the owners of their spans, updated variables come back."""

    placement = "server"

    def __init__(self, hosting: Hosting, rank: int, communicator: Any, phases: Phases, inspector: Inspector) -> None:
        self._hosting = hosting
        self._rank = rank
        self._communicator = communicator
        self._phases = phases
        self._inspector = inspector
        self._scratch = _Scratch()
        self._introductions = Introductions(communicator)
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
        known = self._introductions.of(optimizer, pairs_of)
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
        if inspector.several:
            note = Note("gradients", path.aggregator, layout.num_bytes * len(pairs_of), layout.variables, before)
            note.step = int(optimizer.iterations.storage)
            inspector.book.add(note)
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

    def check(self, path: Any) -> None:
        """Refuse what servers cannot do: unaggregated gradients, and hooks over gradients that several share."""
        if not path.aggregate:
            raise UnaggregatedGradientsError(
                "experimental_aggregate_gradients=False would update each replica's own copy, but with placement "
                "'server' the servers hold one value for all; use placement 'replica'"
            )
        refuse_aggregator(path, self.placement)
        if not path.runs_at_owners and not self.re_enact_replicas:
            raise PlacementError(
                whole_gradient_refusal(path.whole_gradient_hooks(), self.placement, self._communicator.num_servers)
            )
        if self._inspector.checks.non_finite == "skip":
            raise PlacementError(
                "non_finite='skip' needs the aggregate before the update, but with placement 'server' both are made by "
                "the servers; use non_finite='raise', or placement 'replica'"
            )

    def may_split(self, what: str) -> None:
        """Refuse: the servers hold one value for all replicas."""
        refuse_split(what, self.placement)

    def gradient_arrays(self, optimizer: Any, variables: Sequence[Any]) -> list[Array] | None:  # noqa: ARG002
        """See :class:`Owners`; there is none."""
        return None


def refuse_split(what: str, placement: str) -> None:
    """Refuse to give each replica a value of its own where owners hold one for all.

    Raises: PlacementError.
    """
    held = "the servers hold one for all" if placement == "server" else "the processes of a host share one"
    raise PlacementError(
        f"{what} would give each replica a value of its own, but with placement {placement!r} {held}; "
        "use placement 'replica', or aggregate the value"
    )


def refuse_aggregator(path: Any, placement: str) -> None:
    """Refuse aggregators that no owners of one value for all replicas can carry out.

    Raises: PlacementError.
    """
    if path.local_steps:
        refuse_split(path.local_steps.full_name, placement)
    aggregator = path.aggregator
    if placement == "server" and getattr(aggregator, "by_samples", False) and not path.runs_at_owners:
        raise PlacementError(
            f"{aggregator.full_name} weighs by the samples that workers note, but "
            f"{' and '.join(path.whole_gradient_hooks())} would run on the server, which is not told them; use "
            "placement 'replica', or sum with a loss divided by the global batch"
        )


def whole_gradient_refusal(hooks: Sequence[str], placement: str, num_servers: int = 0) -> str:
    """Return why hooks over whole gradients cannot run where owners have parts of them, naming the hooks."""
    if placement == "server":
        owners, instead = f"each of {num_servers} servers has only parts", "1 server, placement 'replica'"
    else:
        owners, instead = "each process has only a part", "placement 'replica'"
    return (
        f"{' and '.join(hooks)} needs whole gradients, but with placement {placement!r} {owners} of them; use "
        f"{instead}, or an element-wise distopt.aggregation.Aggregator"
    )


class _Scratch:
    """Flat arrays that are filled anew by every apply call with the same layout."""

    def __init__(self) -> None:
        self._of_layout: weakref.WeakKeyDictionary[Any, list[list[Array]]] = weakref.WeakKeyDictionary()

    def pack(self, layout: Any, pairs_of: Sequence[Any]) -> list[list[Array]]:
        """Return the flat gradients of each hosted replica; they hold until the next call."""
        flat_of = self._of_layout.get(layout)
        if flat_of is None:
            flat_of = self._of_layout[layout] = [layout.empty() for _ in pairs_of]
        for pairs, flat in zip(pairs_of, flat_of, strict=True):
            layout.pack(pairs.arrays, flat)
        return flat_of


def densified(gradient: Any) -> Array:
    """Return a gradient as an array, duplicates of row-sparse ones added left to right."""
    return gradient.to_dense() if isinstance(gradient, IndexedSlices) else np.asarray(gradient)


def _zeros_like(gradient: Any) -> Array:
    """Return zeros of the shape and dtype that :func:`densified` would give."""
    return np.zeros(gradient.shape, gradient.dtype)


def _any_rows(columns: Sequence[Sequence[Any]]) -> bool:
    return any(isinstance(gradient, IndexedSlices) for column in columns for gradient in column)


def num_bytes_of(gradient: Any) -> int:
    """Return the bytes that a gradient contributes to a reduction."""
    if isinstance(gradient, IndexedSlices):
        return np.asarray(gradient.values).nbytes + np.asarray(gradient.indices).nbytes
    return np.asarray(gradient).nbytes


def check_alike(arrays: Sequence[Array]) -> None:
    """Refuse values that cannot be reduced with each other.

    Raises: UnequalShapesError or UnequalDtypesError that lists what the hosted replicas hold.
    """
    first = arrays[0]
    if any(array.shape != first.shape for array in arrays):
        held = ", ".join(str(list(array.shape)) for array in arrays)
        raise UnequalShapesError(f"the replicas reduce values of different shapes with each other: {held}")
    if any(array.dtype != first.dtype for array in arrays):
        held = ", ".join(str(array.dtype) for array in arrays)
        raise UnequalDtypesError(f"the replicas reduce values of different dtypes with each other: {held}")


def same_variables(pairs_of: Sequence[Any]) -> tuple[Any, ...]:
    """Return the variables that every hosted replica has gradients for.

    Raises: the MistakeError that says how the replicas' lists differ; see :mod:`distopt.agreement`.
    """
    first = pairs_of[0]
    for index, pairs in enumerate(pairs_of[1:], start=1):
        if pairs.key != first.key:
            raise disagreement(
                "the first replica of this process", described(first), f"the one at position {index}", described(pairs)
            )
    variables: tuple[Any, ...] = first.variables
    return variables


def described(pairs: Iterable[tuple[Any, Any]]) -> list[Described]:
    """Return what :func:`~distopt.agreement.disagreement` compares, variables being themselves."""
    return [Described(id(v), v.name, tuple(v.shape), str(v.dtype)) for _, v in pairs]


def contributions(
    hosting: Hosting, rank: int, flat_of: Sequence[Sequence[Array]], *, summed: bool
) -> list[Contribution]:
    """Return what ``rank`` contributes: its subtree sums, or one entry a replica where ``summed`` is false.

    ``flat_of`` has the flat arrays of each hosted replica, or of one stand-in where none is hosted.
    """
    leaves = hosting.leaves[rank]
    if not leaves:
        return []
    if not summed:
        return [Contribution(leaf, tuple(flat)) for leaf, flat in zip(leaves, flat_of, strict=True)]
    columns = [dict(zip(leaves, column, strict=True)) for column in zip(*flat_of, strict=True)]
    return [
        Contribution(node, tuple(add_nodes(hosting.tree, column, node) for column in columns))
        for node in hosting.covers[rank]
    ]


def relative_spans(layout: Any) -> list[Span]:
    """Return the layout's runs as spans whose segments are numbered within the layout, as processes tell each other."""
    number = {segment.index: i for i, segment in enumerate(layout.segments)}
    return [span._replace(segment_index=number[span.segment_index]) for span in layout.spans]


def absolute_spans(layout: Any, spans: Sequence[Span]) -> tuple[Span, ...]:
    """Return spans numbered within ``layout`` as spans of this process's segments."""
    segments = layout.segments
    return tuple(Span(segments[s.segment_index].index, s.start, s.stop) for s in (Span(*span) for span in spans))
