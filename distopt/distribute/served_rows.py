"""An update on a server of which some gradients are row-sparse: which variables are, their rows, and what goes back.

A variable is updated by rows if all replicas have its gradient row-sparse; where one has it dense, it is made dense, as
in one process. Dense variables go the way of every dense update, through a layout of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from distopt import clipping
from distopt.aggregation import Aggregator
from distopt.arena import Span, aligned_zeros
from distopt.canonical_sum import Node, SumTree, add_nodes
from distopt.distribute.row_owner import (
    aggregated_occurrences,
    clipped_by_norm,
    total_of_rows,
    update_part,
)
from distopt.distribute.variable_parts import NodeRows, VariablePart, parts_of, unpacked
from distopt.errors import RemoteProtocolError
from distopt.indexed_slices import IndexedSlices
from distopt.optimizers.features import Step
from distopt.optimizers.pipeline import GradientPath
from distopt.optimizers.sparse import as_table, moves_all_rows, rows_for
from distopt.row_sums import RowSum, add_row_sums, sum_of_replicas
from distopt.types import Array


class Contributed(NamedTuple):
    """The buffers of one contribution, and the variables, by position, of which it holds rows.

    Without such variables there is one flat buffer for each span; else see :mod:`~distopt.distribute.variable_parts`,
    and, where norms are clipped, one last buffer of float64: the sums of squares ``[variables with rows, replicas]``.
    """

    with_rows: tuple[int, ...]
    buffers: tuple[Array, ...]


class TakenApart(NamedTuple):
    """A contribution by parts of variables, and its sums of squares by variable that has rows."""

    of_parts: list[Array | NodeRows]
    squares: dict[int, Array]


class ServedRows:
    """What a server that owns ``spans`` needs for such updates; ``aggregator`` sums."""

    def __init__(self, optimizer: Any, layout: Any, spans: Sequence[Span], aggregator: Aggregator) -> None:
        self.optimizer = optimizer
        self.aggregator = aggregator
        self.variables = layout.variables
        self.spans = tuple(spans)
        self.parts = parts_of(layout, spans)
        self._layout = layout
        self._dense: dict[tuple[int, ...], _Dense] = {}

    def take_apart(self, node: Node, contributed: Contributed) -> TakenApart:
        """Return what a node contributes by parts.

        Raises: RemoteProtocolError for what does not fit the layout.
        """
        with_rows, buffers = contributed
        if not with_rows:
            return TakenApart([buffers[i][start : start + part.size] for part, i, start in self._places()], {})
        if max(with_rows) >= len(self.variables) or len(set(with_rows)) < len(with_rows):
            raise RemoteProtocolError(f"a push with rows of variables {with_rows}; there are {len(self.variables)}")
        path = GradientPath(self.optimizer, aggregate=True)
        num_replicas = node.stop - node.start
        of_parts, rest = unpacked(self.parts, with_rows, buffers, 0 if path.may_sum_rows else num_replicas)
        squares_of_rows = ((len(with_rows) * num_replicas,), np.dtype(np.float64))
        expected = [squares_of_rows] if path.norms_are_owners else []
        if (found := [(array.shape, array.dtype) for array in rest]) != expected:
            raise RemoteProtocolError(f"a push of {node} ends with buffers {found}, not {expected}")
        squares = rest[0].reshape(len(with_rows), num_replicas) if rest else ()
        return TakenApart(of_parts, dict(zip(with_rows, squares, strict=False)))

    def gradients(self, of_parts: Sequence[Array | NodeRows]) -> list[Any]:
        """Return the gradients of all variables, where the spans are whole runs."""
        found: list[Any] = [np.zeros(variable.shape, variable.dtype) for variable in self.variables]
        for part, given in zip(self.parts, of_parts, strict=True):
            if isinstance(given, NodeRows):
                values = given.values.reshape(len(given.values), *part.shape[1:])
                found[part.variable] = IndexedSlices(values, given.indices, part.shape)
            else:
                found[part.variable] = given.reshape(part.shape)
        return found

    def dense(self, positions: tuple[int, ...]) -> _Dense | None:
        """Return what updates the variables at these positions from dense gradients; None for no variables."""
        if not positions:
            return None
        found = self._dense.get(positions)
        if found is None:
            layout = self.optimizer.layout([self.variables[i] for i in positions])
            spans = _within(layout, self.spans)
            found = self._dense[positions] = _Dense(spans, self.optimizer.span_owner(layout, spans))
        return found

    def flat_variables(self) -> list[Array]:
        """Return the live flat arrays of the spans."""
        buffers = {segment.index: segment.buffer for segment in self._layout.segments}
        return [buffers[span.segment_index][span.start : span.stop] for span in self.spans]

    def flat_spans(self, spans: Sequence[Span], arrays: Mapping[VariablePart, Array]) -> list[Array]:
        """Return the flat arrays of ``spans`` that hold ``arrays``, padding zero."""
        dtypes = {segment.index: segment.dtype for segment in self._layout.segments}
        flat = [aligned_zeros(span.stop - span.start, dtypes[span.segment_index]) for span in spans]
        for part, array in arrays.items():
            i, start = self._place(part, spans)
            flat[i][start : start + part.size] = array
        return flat

    def _places(self) -> list[tuple[VariablePart, int, int]]:
        return [(part, *self._place(part, self.spans)) for part in self.parts]

    def _place(self, part: VariablePart, spans: Sequence[Span]) -> tuple[int, int]:
        """Return which of ``spans`` a part lies in, and where it begins there."""
        segment, offset = self.variables[part.variable].placement
        start = offset + part.start
        for i, span in enumerate(spans):
            if span.segment_index == segment.index and span.start <= start < span.stop:
                return i, start - span.start
        raise AssertionError(f"{part} lies in none of {spans}")


class _Dense(NamedTuple):
    """The spans of a layout of dense variables that one server owns, and what updates them."""

    spans: tuple[Span, ...]
    owner: Any


class RowUpdate:
    """The update that the contributions of all replicas make: look at :attr:`partials`, then call :meth:`finish`.

    Raises: RemoteProtocolError for contributions that do not fit the layout.
    """

    def __init__(
        self, served: ServedRows, tree: SumTree, contributed: Mapping[Node, Contributed], hypers: Mapping[str, float]
    ) -> None:
        self._served = served
        self._optimizer = served.optimizer
        self._hypers = hypers
        given = {node: served.take_apart(node, of_node) for node, of_node in sorted(contributed.items())}
        with_rows = set.intersection(*(set(of_node.with_rows) for of_node in contributed.values()))
        self._dense_positions = tuple(i for i in range(len(served.variables)) if i not in with_rows)
        self._squares = {
            i: np.concatenate([of_node.squares[i] for of_node in given.values()])
            for i in sorted(with_rows)
            if self._optimizer.clips.needs_norms
        }
        self._rows: dict[VariablePart, IndexedSlices] = {}
        dense: dict[VariablePart, Array] = {}
        for k, part in enumerate(served.parts):
            of_nodes = {node: taken.of_parts[k] for node, taken in given.items()}
            if part.variable in with_rows:
                self._rows[part] = self._aggregated_rows(tree, of_nodes)
            else:
                arrays = {node: _densified(part, of_node) for node, of_node in of_nodes.items()}
                dense[part] = served.aggregator.finish(add_nodes(tree, arrays), tree.num_replicas)
        self._dense = served.dense(self._dense_positions)
        self._flat: list[Array] = []
        self.partials: Array | None = None
        """This server's part of the sums of squares that servers exchange; None if this one takes no part in that."""
        if self._dense is not None:
            self._flat = served.flat_spans(self._dense.spans, dense)
            partials = self._dense.owner.partials(self._flat, hypers)
            if served.spans and self._dense.owner.exchanges:
                self.partials = partials

    def finish(self, all_partials: Array) -> Contributed:
        """Clip, and update dense variables and rows; return what all workers get.

        ``all_partials``: those of all servers, in their order. What comes back holds the rows that were updated, and
        whole parts of variables that changed beyond these.
        """
        if self._served.spans:
            self._apply(all_partials)
        self._optimizer.advance(self._hypers)
        return self._answer()

    def _answer(self) -> Contributed:
        served = self._served
        of_rows = {i for i in range(len(served.variables)) if i not in self._dense_positions}
        with_rows = tuple(i for i in sorted(of_rows) if not moves_all_rows(self._optimizer, served.variables[i]))
        if not with_rows:
            return Contributed((), tuple(served.flat_variables()))
        buffers: list[Array] = []
        for part in served.parts:
            storage = served.variables[part.variable].storage
            if part.variable in with_rows:
                indices = np.unique(self._rows[part].indices)
                buffers += [indices, as_table(storage)[indices].reshape(-1)]
            else:
                buffers.append(storage.reshape(-1)[part.start : part.stop])
        return Contributed(with_rows, tuple(buffers))

    def _aggregated_rows(self, tree: SumTree, of_nodes: Mapping[Node, Any]) -> IndexedSlices:
        """Return the rows of all replicas: summed where nothing looks at them before, else stored, clipped by value."""
        aggregator = self._served.aggregator
        if any(len(rows.counts) for rows in of_nodes.values()):
            indices, values, counts = (np.concatenate(arrays) for arrays in zip(*of_nodes.values(), strict=True))
            values = aggregated_occurrences(aggregator, self._optimizer.clips, values, tree.num_replicas)
            stored = IndexedSlices(values, indices)
            stored.row_counts = tuple(counts.tolist())
            return stored
        total = add_row_sums(tree, {node: RowSum(rows.indices, rows.values) for node, rows in of_nodes.items()})
        return IndexedSlices.of_sum(RowSum(total.indices, aggregator.finish(total.values, tree.num_replicas)))

    def _apply(self, all_partials: Array) -> None:
        totals: dict[int, Any] = {}
        for i, squares in self._squares.items():
            totals[i] = total_of_rows(squares, self._served.variables[i].dtype)
        if self._dense is not None and self._optimizer.clips.needs_norms:
            totals |= zip(self._dense_positions, self._dense.owner.totals(all_partials), strict=True)
        total = clipping.add_totals([totals[i] for i in sorted(totals)])
        if self._dense is not None:
            self._dense.owner.apply(self._flat, self._hypers, all_partials, lambda _: total)
        step = Step(self._optimizer, self._hypers)
        for part, rows in self._rows.items():
            variable = self._served.variables[part.variable]
            values = clipped_by_norm(self._optimizer.clips, rows.values.numpy(), totals.get(part.variable), total)
            lists = [rows_for(self._optimizer.rule_of(variable), rows.with_values(values))]
            update_part(self._optimizer, variable, part, lists, step)


def _densified(part: VariablePart, given: Array | NodeRows) -> Array:
    if not isinstance(given, NodeRows):
        return given
    if len(given.counts):
        return part.densified(*sum_of_replicas(given.indices, given.values, given.counts.tolist()))
    return part.densified(given.indices, given.values)


def _within(layout: Any, spans: Sequence[Span]) -> tuple[Span, ...]:
    """Return what of ``spans`` lies in the runs of a layout."""
    return tuple(
        Span(run.segment.index, start, stop)
        for run in layout.runs
        for span in spans
        for start, stop in [(max(run.start, span.start), min(run.stop, span.stop))]
        if span.segment_index == run.segment.index and start < stop
    )
