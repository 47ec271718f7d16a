"""What the owner of a part of a variable does with the rows of all replicas: aggregate, clip and update.

The same on a server and with placement ``sharded``; rows have been brought together before, whichever way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from distopt import clipping, norms
from distopt.aggregation import Aggregator
from distopt.arena import flattened
from distopt.distribute.variable_parts import NodeRows, VariablePart
from distopt.indexed_slices import IndexedSlices
from distopt.optimizers.clips import Clips
from distopt.optimizers.engine import get_engine
from distopt.optimizers.features import AVERAGE, Step
from distopt.optimizers.piece import Part, Piece
from distopt.optimizers.sparse import as_table, update_rows
from distopt.row_sums import RowSum
from distopt.types import Array


def sum_of_squares(path: Any, num_replicas: int, values: Array) -> Any:
    """Return the sum of squares of one replica's rows as a clip by norm sees them: aggregated, clipped by value."""
    limit = path.optimizer.clips.value
    values = path.aggregator.finish(values, num_replicas)
    if limit is not None:
        values = clipping.clip_by_value(values, -limit, limit)
    return norms.add_sums(get_engine().block_sums(flattened(values)))


def aggregated_sum(aggregator: Aggregator, total: RowSum, num_replicas: int) -> IndexedSlices:
    """Return the aggregate of rows that are added up, which no clip looks at."""
    return IndexedSlices(aggregator.finish(total.values, num_replicas), total.indices)


def aggregated_occurrences(
    aggregator: Aggregator, clips: Clips, rows: Sequence[NodeRows], num_replicas: int
) -> IndexedSlices:
    """Return the aggregate of rows as they were stored, in the order of replicas, clipped by value."""
    values = aggregator.finish(np.concatenate([of_node.values for of_node in rows]), num_replicas)
    slices = IndexedSlices(values, np.concatenate([of_node.indices for of_node in rows]))
    slices.row_counts = tuple(np.concatenate([of_node.counts for of_node in rows]).tolist())
    return slices if clips.value is None else clipping.clip_by_value(slices, -clips.value, clips.value)


def clipped_by_norm(clips: Clips, rows: IndexedSlices, own_total: Any, total: Any) -> IndexedSlices:
    """Return the rows clipped by the norm of their variable, or of all gradients.

    ``own_total`` and ``total`` are the sums of squares of these, where the clip needs them.
    """
    values = rows.values.numpy()
    with np.errstate(all="ignore"):
        if clips.norm is not None:
            limit, divisor = clipping.norm_limit(own_total, clips.norm, values.dtype)
            return rows.with_values(values * limit / divisor)
        if clips.global_norm is not None:
            return rows.with_values(values * clipping.global_scale(total, clips.global_norm, values.dtype))
    return rows


def total_of_rows(squares: Array, dtype: np.dtype[Any]) -> Any:
    """Return the sum of squares of the rows of a variable of ``dtype`` from those of each replica, in their order."""
    return norms.add_sums(squares.astype(norms.accumulation_dtype(dtype)))


def update_part(optimizer: Any, variable: Any, part: VariablePart, rows: IndexedSlices, step: Step) -> None:
    """Update one part of a variable by the rows that lie in it, whole."""
    engine, treatment = get_engine(), optimizer.treatment(variable)
    by_name = optimizer.slots.of(variable)
    arrays = (variable.storage, *(by_name[name] for name in treatment.rule.slots))
    own = slice(part.start, part.stop)
    average = by_name[AVERAGE].reshape(-1)[own] if AVERAGE in by_name else None
    flat = tuple(array.reshape(-1)[own] for array in arrays)
    piece = Piece(engine, treatment, flat, (Part(0, 0, part.size),), average=average)
    piece.decay(step)
    local = IndexedSlices(rows.values, rows.indices - part.rows.start)
    local.row_counts = rows.row_counts
    table, *slots = (as_table(array)[part.rows] for array in arrays)
    update_rows(engine, treatment.rule, table, slots, local, step.scalars(treatment.rule, piece.slot_dtype))
    piece.take_average(step)
