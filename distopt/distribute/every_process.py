"""Placement ``replica``: gradients are all-reduced, then every process makes the same update."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from distopt.aggregation import Aggregator, GradientAggregator, JointAggregator, Meeting, Sum, WholeAggregator
from distopt.arena import flattened
from distopt.canonical_sum import Node
from distopt.comm import combining
from distopt.comm.communicator import Communicator, Hosting, Withdrawn
from distopt.distribute.codes import gather_codes, sends_codes
from distopt.distribute.early_sums import Overlap
from distopt.distribute.inspector import Inspector
from distopt.distribute.introduced_values import IntroducedValues, label_of_values
from distopt.distribute.introduction import Introductions
from distopt.distribute.owners import (
    Phases,
    Scratch,
    addable,
    any_rows,
    check_alike,
    contributions,
    densified,
    num_bytes_of_all,
    same_variables,
    zeros_like,
)
from distopt.distribute.row_exchange import Combine, gather_rows, sum_rows
from distopt.distribute.span_paths import CHUNK_BYTES
from distopt.optimizers.terms import Terms
from distopt.types import Array

_APPLY, _VALUES = "apply_gradients", "a reduction of values"
"""What is waited for, as errors name it."""


class EveryProcess:
    """Placement ``replica``: gradients are all-reduced, then every process makes the same update."""

    placement = "replica"
    re_enact_replicas = False
    chunk_bytes = CHUNK_BYTES
    """Of what is on its way between hosts at a time, where processes share the memory of their host."""
    overlap: Overlap | None = None
    """What sends partial sums while backward goes on, if that is wanted."""

    def __init__(
        self, hosting: Hosting, rank: int, communicator: Communicator | None, phases: Phases, inspector: Inspector
    ) -> None:
        self._hosting = hosting
        self._rank = rank
        self._communicator = communicator
        self._phases = phases
        self._inspector = inspector
        self._scratch = Scratch()
        self._is_alone = hosting.num_replicas == 1 and communicator is None
        self._introductions = Introductions(communicator, hosting.num_replicas)
        self._values = IntroducedValues(communicator)
        self._latest_key: tuple[tuple[int, ...], bool] = (), True
        self._has_updated = False
        """Whether the apply call that is under way has made its update."""

    def apply(self, path: Any, pairs_of: Sequence[Any], hypers: dict[str, float]) -> None:
        """See :class:`Owners`."""
        optimizer = path.optimizer
        started = time.perf_counter()
        aggregator = optimizer.gradient_aggregator
        if self._is_alone and aggregator.sums:
            # The sum over one replica is its own gradient: nothing to bring together, so nothing to copy.
            pairs = pairs_of[0]
            gradients = None if pairs.has_rows else pairs.arrays
            if type(aggregator) is not Sum:
                columns = [[gradient] for gradient, _ in pairs]
                gradients = self.aggregate(aggregator, columns)
                pairs = list(zip(gradients, pairs.variables, strict=True))
            combined = time.perf_counter()
            if self._inspector.looks_for_non_finite:
                found = [gradient for gradient, _ in pairs] if gradients is None else gradients
                if self._is_skipped(optimizer, found, pairs_of):
                    return
            optimizer.finish_aggregated(pairs, hypers)
        else:
            same_variables(pairs_of)
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
        if not by_rows and self._are_different(pairs_of[0].key):
            layout = optimizer.layout(variables)
            total = self._total(path, layout, pairs_of, label, withdraws=begins_rows)
            combined = time.perf_counter()
            skipped = self._is_skipped(optimizer, total, pairs_of)
            num_bytes = layout.num_bytes * len(pairs_of)
            self._inspector.note_gradients(path, num_bytes, layout.variables, before, skipped=skipped)
            if not skipped:
                optimizer.finish(layout, total, hypers)
            self._has_updated = True
            self._release(label)
            self._has_updated = False
            if skipped:
                return None
        else:
            columns = [[pairs[i][0] for pairs in pairs_of] for i in range(len(variables))]
            combine_rows = self.combine_rows(may_sum=path.may_sum_rows) if by_rows else None
            gradients = self.aggregate_by(path.aggregator, columns, combine_rows, label, withdraws=begins_rows)
            combined = time.perf_counter()
            num_bytes = num_bytes_of_all(columns)
            skipped = self._is_skipped(optimizer, gradients, pairs_of)
            self._inspector.note_gradients(path, num_bytes, variables, before, skipped=skipped)
            if skipped:
                return None
            optimizer.finish_aggregated(zip(gradients, variables, strict=True), hypers)
        return combined

    def _are_different(self, key: tuple[int, ...]) -> bool:
        """Return whether no variable is listed twice."""
        if key is not self._latest_key[0]:
            self._latest_key = key, len(set(key)) == len(key)
        return self._latest_key[1]

    def _total(
        self, path: Any, layout: Any, pairs_of: Sequence[Any], label: bytes, *, withdraws: bool
    ) -> Sequence[Array] | Terms:
        """Return the aggregate of dense gradients for each run, which holds until :meth:`_release`.

        Raises: as :meth:`combine`.
        """
        if withdraws:
            flat_of = [layout.empty()] * len(pairs_of)
            return self.combine(path.aggregator, flat_of, label, withdraws=True)
        return self._combined(path.aggregator, layout, pairs_of, label)

    def _release(self, label: bytes) -> None:
        """Give back what :meth:`_total` returned."""

    def _introduced(self, path: Any, pairs_of: Sequence[Any], hypers: dict[str, float]) -> tuple[bool, bool, bytes]:
        """Return whether gradients are combined by rows, whether this process begins to have some, and the label.

        By rows: since the first apply call with these variables where a replica of any process had row-sparse ones.
        """
        have_rows = pairs_of[0].has_rows or any(pairs.has_rows for pairs in pairs_of[1:])
        if self._communicator is None:
            return have_rows, False, b""
        optimizer = path.optimizer
        known = self._introductions.of(optimizer, pairs_of, hypers)
        label = known.label(optimizer.gradient_aggregator, hypers)
        return known.rows, have_rows and not known.rows, label

    def _is_skipped(self, optimizer: Any, gradients: Any, pairs_of: Sequence[Any]) -> bool:
        """Return whether the step is to be skipped; raises, where the checks say so, as :meth:`Inspector.lets_pass`."""
        inspector = self._inspector
        if not inspector.looks_for_non_finite:
            return False
        return not inspector.lets_pass(gradients, pairs_of, int(optimizer.iterations.storage))

    def aggregate(
        self, aggregator: Aggregator, columns: Sequence[Sequence[Any]], *, may_sum_rows: bool = False
    ) -> list[Any]:
        """Return the aggregate over all replicas of each gradient; ``columns[i]`` has those of each hosted replica.

        Gradients that are row-sparse on all replicas stay so under an aggregator that sums: their rows in replica
        order, duplicates kept; with ``may_sum_rows``, each row once. One that some replica has dense is made dense,
        wherever that replica is.

        Raises: UnequalShapesError, UnequalDtypesError, UnequalReduceOpsError or MergeOrderError where replicas differ;
            TypeError for what cannot be added.
        """
        columns = [list(map(addable, column)) for column in columns]
        for column in columns:
            check_alike(column)
        have_rows = any_rows(columns)
        if not aggregator.sums:
            return self.aggregate_by(aggregator, columns, None, what=_VALUES)
        if self._communicator is None or self._communicator.size == 1:
            combine_rows = self.combine_rows(may_sum=may_sum_rows) if have_rows else None
            return self.aggregate_by(aggregator, columns, combine_rows)
        firsts = [column[0] for column in columns]
        label = label_of_values(aggregator, firsts)
        if not self._values.may_be_rows(label, aggregator, firsts, have_rows=have_rows):
            try:
                return self.aggregate_by(aggregator, columns, None, label, withdraws=have_rows, what=_VALUES)
            except Withdrawn:
                self._values.begin_rows(label)
        combine_rows = self.combine_rows(may_sum=may_sum_rows)
        return self.aggregate_by(aggregator, columns, combine_rows, label, what=_VALUES)

    def combine_rows(self, *, may_sum: bool) -> Combine:
        """Return what brings rows together: their sums, if nothing looks at them before, or as they were stored."""
        return functools.partial(sum_rows if may_sum else gather_rows, self._hosting, self._rank, self._communicator)

    def aggregate_by(
        self,
        aggregator: Aggregator,
        columns: Sequence[Sequence[Any]],
        combine_rows: Combine | None,
        label: bytes = b"",
        *,
        withdraws: bool = False,
        what: str = _APPLY,
    ) -> list[Any]:
        """Aggregate, bringing rows together by ``combine_rows``; None where no process has rows, or nobody said so.

        Raises: Withdrawn if that was an error of this process (``withdraws``) or another one.
        """
        results: list[Any] = [None] * len(columns)
        if aggregator.sums and combine_rows is not None:
            with self._exchange():
                results[:] = combine_rows(columns, label)
            for i, rows in enumerate(results):
                if rows is not None:
                    values = aggregator.finish(rows.values.numpy(), self._hosting.num_replicas)
                    results[i] = rows.with_values(values)
        as_array = zeros_like if withdraws else densified
        dense = {i: list(map(as_array, columns[i])) for i, result in enumerate(results) if result is None}
        if dense:
            for arrays in dense.values():
                check_alike(arrays)
            flat_of = [[flattened(a) for a in row] for row in zip(*dense.values(), strict=True)]
            if not label and self._communicator is not None:
                label = label_of_values(aggregator, [a[0] for a in dense.values()])
            totals = self.combine(aggregator, flat_of, label, withdraws=withdraws, what=what)
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
        what: str = _APPLY,
    ) -> list[Array]:
        """Return the aggregate over all replicas of each flat array; ``flat_of`` has those of each hosted replica.

        ``label``: what the other processes must take it to be of, too; see :mod:`distopt.agreement`. ``withdraws``,
        ``what`` and what is raised: as :meth:`~distopt.comm.communicator.Communicator.combine`.
        """
        parts = contributions(self._hosting, self._rank, flat_of, summed=aggregator.sums)
        if self._communicator is None:
            sums = {part.node: part.arrays for part in parts}
            return combining.aggregate(sums, self._hosting, aggregator, like=flat_of[0])
        with self._exchange():
            return self._communicator.combine(
                parts, self._hosting, aggregator, flat_of[0], label, withdraws=withdraws, what=what
            )

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
            return self.aggregate_by(aggregator, columns, None)
        if isinstance(aggregator, JointAggregator):
            return aggregator.combine_jointly(
                Meeting(
                    self._hosting.num_replicas,
                    self._hosting.hosted[self._rank],
                    [variable for _, variable in pairs_of[0]],
                    dense_of,
                    functools.partial(self.aggregate_by, Sum(), combine_rows=None),
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

    def survives_loss(self, optimizer: Any) -> bool:  # noqa: ARG002
        """See :class:`Owners`; every process has everything."""
        return True

    def settle(self, communicator: Communicator) -> bool | None:  # noqa: ARG002
        """See :class:`Owners`."""
        return self._has_updated

    def check(self, path: Any) -> None:
        """See :class:`Owners`; every process can make every update."""

    def may_split(self, what: str) -> None:
        """See :class:`Owners`; every process has its own variables, so nothing is refused."""

    def gradient_arrays(self, optimizer: Any, variables: Sequence[Any]) -> list[Array] | None:  # noqa: ARG002
        """See :class:`Owners`; there is none."""
        return None

    def gradient_rows(self, variable: Any, num_rows: int) -> Array | None:  # noqa: ARG002
        """See :class:`~distopt.distribute.owners.Owners`: nobody reads rows where they are."""
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
