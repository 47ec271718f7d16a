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
from distopt.distribute.variable_parts import VariablePart
from distopt.optimizers.clips import Clips
from distopt.optimizers.engine import get_engine
from distopt.optimizers.features import AVERAGE, Step
from distopt.optimizers.piece import Part, Piece
from distopt.optimizers.rule import Rows
from distopt.optimizers.sparse import as_table, update_lists
from distopt.row_lists import Rows as RowsOfTable
from distopt.types import Array


def sum_of_squares(path: Any, num_replicas: int, values: Array) -> Any:
    """Return the sum of squares of one replica's rows as a clip by norm sees them: aggregated, clipped by value."""
    values = aggregated_occurrences(path.aggregator, path.optimizer.clips, values, num_replicas)
    return norms.add_sums(get_engine().block_sums(flattened(values)))


def aggregated_occurrences(aggregator: Aggregator, clips: Clips, values: Array, num_replicas: int) -> Array:
    """Return the aggregate of rows as replicas stored them, clipped by value."""
    values = aggregator.finish(values, num_replicas)
    return values if clips.value is None else clipping.clip_by_value(values, -clips.value, clips.value)


def clipped_by_norm(clips: Clips, values: Array, own_total: Any, total: Any) -> Array:
    """Return rows clipped by the norm of their variable, or of all gradients.

    ``own_total`` and ``total`` are the sums of squares of these, where the clip needs them.
    """
    with np.errstate(all="ignore"):
        if clips.norm is not None:
            limit, divisor = clipping.norm_limit(own_total, clips.norm, values.dtype)
            values = values * limit / divisor
        elif clips.global_norm is not None:
            values = values * clipping.global_scale(total, clips.global_norm, values.dtype)
    return values


def total_of_rows(squares: Array, dtype: np.dtype[Any]) -> Any:
    """Return the sum of squares of the rows of a variable of ``dtype`` from those of each replica, in their order."""
    return norms.add_sums(squares.astype(norms.accumulation_dtype(dtype)))


def update_part(optimizer: Any, variable: Any, part: VariablePart, lists: Sequence[RowsOfTable], step: Step) -> None:
    """Update one part of a variable by the rows that lie in it, whole; ``lists`` as :func:`update_lists` has them."""
    engine, (rule, weight_decay) = get_engine(), optimizer.treatment(variable)
    by_name = optimizer.slots.of(variable)
    arrays = (variable.storage, *(by_name[name] for name in rule.slots))
    piece: Piece | None = None
    if weight_decay is not None or AVERAGE in by_name:
        own = slice(part.start, part.stop)
        average = by_name[AVERAGE].reshape(-1)[own] if AVERAGE in by_name else None
        flat = tuple(array.reshape(-1)[own] for array in arrays)
        piece = Piece(engine, optimizer.treatment(variable), flat, (Part(0, 0, part.size),), average=average)
        piece.decay(step)
    table, *slots = map(as_table, arrays)
    if rule.sparse.slots is Rows.ALL:
        table, *slots = (array[part.rows] for array in (table, *slots))
        lists = [rows._replace(indices=rows.indices - part.rows.start) for rows in lists]
    update_lists(engine, rule, table, slots, lists, step.scalars(rule, slots[0].dtype if slots else table.dtype))
    if piece is not None:
        piece.take_average(step)
