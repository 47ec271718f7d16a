"""What a worker pushes to servers where some of its gradients are row-sparse.

One parcel for each node of the sum tree and each server: dense gradients summed over the node, rows summed as well
where nothing can tell, else as they were stored. Where norms are clipped, the sums of squares of the rows travel too,
because a server has only its own part of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from distopt.arena import Span, flattened
from distopt.canonical_sum import Node, add_nodes
from distopt.comm.communicator import Hosting
from distopt.comm.hosting import Parcel
from distopt.distribute.row_owner import sum_of_squares
from distopt.distribute.variable_parts import NodeRows, VariablePart, packed
from distopt.errors import PlacementError
from distopt.indexed_slices import IndexedSlices
from distopt.row_sums import add_row_sums, sum_occurrences
from distopt.types import Array


def goes_by_rows(path: Any, variable: Any) -> bool:
    """Return whether servers update a variable by rows where its gradient is row-sparse; else it is made dense.

    Raises: PlacementError for rows that are clipped before a rule takes them for a dense gradient.
    """
    if not path.runs_at_owners:
        return True  # one server re-enacts the replicas
    optimizer = path.optimizer
    if not path.aggregator.sums or optimizer.features.accumulation_steps > 1:
        return False
    rule = optimizer.rule_of(variable)
    if rule.is_element_wise:
        return True
    if optimizer.clips.active:
        raise PlacementError(
            f"the gradient of {variable.name!r} is row-sparse and clipped, and rule {rule.name} needs it whole, which "
            "servers cannot do; use placement 'replica', or make the gradient dense"
        )
    return False


def parcels(
    path: Any,
    hosting: Hosting,
    layout: Any,
    spans_of_servers: Sequence[Sequence[Span]],
    parts_of_servers: Sequence[Sequence[VariablePart]],
    hosted_gradients: Mapping[int, Sequence[Any]],
    by_rows: Sequence[bool],
) -> list[list[Parcel]]:
    """Return the parcels of each server; none where no replica is hosted.

    ``hosted_gradients``: by replica, its gradients, arrays or IndexedSlices, in the order of the layout's variables, of
    which ``by_rows`` says which may go by rows.
    """
    found: list[list[Parcel]] = [[] for _ in parts_of_servers]
    for node, gradients_of in _nodes(path, hosting, hosted_gradients):
        columns = list(zip(*gradients_of, strict=True))
        with_rows = tuple(i for i, column in enumerate(columns) if by_rows[i] and all(map(_is_rows, column)))
        rows_of = {i: _rows_of(path, hosting, node, columns[i]) for i in with_rows}
        dense_of = {i: _dense_of(hosting, node, c) for i, c in enumerate(columns) if i not in rows_of}
        squares = [_squares(path, hosting, columns[i]) for i in with_rows] if path.norms_are_owners else []
        if not with_rows:
            flat = layout.pack([dense_of[i].reshape(v.shape) for i, v in enumerate(layout.variables)])
        for server, (parts, spans) in enumerate(zip(parts_of_servers, spans_of_servers, strict=True)):
            buffers = packed(parts, rows_of, dense_of) if with_rows else layout.take(flat, spans)
            if squares:
                buffers.append(np.concatenate(squares))
            found[server].append(Parcel(node, buffers, with_rows))
    return found


def _nodes(path: Any, hosting: Hosting, gradients: Mapping[int, Sequence[Any]]) -> list[tuple[Node, list[Any]]]:
    """Return what is pushed, and the gradients of its replicas: single replicas where these must not be summed."""
    summed = path.runs_at_owners and path.aggregator.sums
    replicas = sorted(gradients)
    nodes = hosting.tree.cover(replicas) if summed else [Node(r, r + 1) for r in replicas]
    return [(node, [gradients[r] for r in range(node.start, node.stop)]) for node in nodes]


def _rows_of(path: Any, hosting: Hosting, node: Node, column: Sequence[Any]) -> NodeRows:
    tables = [(s.indices.astype(np.int64, copy=False), _table(s)) for s in column]
    if path.may_sum_rows:
        leaves = {Node(node.start + i, node.start + i + 1): sum_occurrences(*rows) for i, rows in enumerate(tables)}
        return NodeRows(*add_row_sums(hosting.tree, leaves, node), np.empty(0, np.int64))
    indices, values = (np.concatenate(arrays) for arrays in zip(*tables, strict=True))
    return NodeRows(indices, values, np.array([len(rows) for rows, _ in tables], np.int64))


def _table(slices: IndexedSlices) -> Array:
    values = slices.values.numpy()
    return values.reshape(len(values), int(np.prod(values.shape[1:])))


def _dense_of(hosting: Hosting, node: Node, column: Sequence[Any]) -> Array:
    flat = {}
    for i, gradient in enumerate(column):
        array = gradient.to_dense() if _is_rows(gradient) else np.asarray(gradient)
        flat[Node(node.start + i, node.start + i + 1)] = flattened(array)
    return add_nodes(hosting.tree, flat, node)


def _squares(path: Any, hosting: Hosting, column: Sequence[Any]) -> Array:
    """Return the sums of squares of each replica's rows."""
    return np.array(
        [sum_of_squares(path, hosting.num_replicas, slices.values.numpy()) for slices in column], np.float64
    )


def _is_rows(gradient: Any) -> bool:
    return isinstance(gradient, IndexedSlices)
