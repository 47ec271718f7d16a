"""Row-sparse gradients: which rows a rule is run on, and with which gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from distopt.arena import contiguous
from distopt.indexed_slices import IndexedSlices
from distopt.optimizers.engine import Engine
from distopt.optimizers.rule import Rows, Rule
from distopt.row_lists import Rows as RowsOfTable
from distopt.row_lists import joined
from distopt.row_sums import RowSum
from distopt.types import Array


def update_rows(
    engine: Engine, rule: Rule, variable: Array, slots: Sequence[Array], gradient: IndexedSlices, scalars: Sequence[Any]
) -> None:
    """Carry out ``rule`` with a row-sparse ``gradient``, writing to the rows that the rule declares.

    Shapes: ``variable`` and ``slots`` alike, ``[rows, ...]``, contiguous; the indices are valid rows. Duplicate indices
    are summed first, in the canonical order, unless the rule takes occurrences one by one.
    """
    update_lists(engine, rule, variable, slots, [rows_for(rule, gradient)], scalars)


def rows_for(rule: Rule, gradient: IndexedSlices) -> RowSum:
    """Return the rows of a gradient as ``rule`` takes them: occurrences, or their sums; ``[n, width]``."""
    if rule.sparse.variable is not Rows.OCCURRENCES:
        gradient = gradient.merged()
    values = contiguous(gradient.values.numpy())
    return RowSum(np.ascontiguousarray(gradient.indices, np.int64), as_table(values))


def update_lists(
    engine: Engine,
    rule: Rule,
    variable: Array,
    slots: Sequence[Array],
    lists: Sequence[RowsOfTable],
    scalars: Sequence[Any],
) -> None:
    """Carry out ``rule`` with rows as :func:`rows_for` returns them, in lists that have no row in common.

    Where the rule takes occurrences these may have, one replica's after another's.
    """
    kernel = engine.row_kernel(rule.sparse_step, variable.dtype)
    tables = [as_table(variable), *map(as_table, slots)]
    if rule.sparse.slots is Rows.ALL:
        lists = [joined(lists)]
    for rows in lists:
        kernel(tables, rows, scalars)


def as_table(array: Array) -> Array:
    """Return a view of a contiguous ``array``, shape ``[rows, ...]``, as ``[rows, width]``."""
    return array.reshape(array.shape[0], math.prod(array.shape[1:]))


def moves_all_rows(optimizer: Any, variable: Any) -> bool:
    """Return whether an update with a row-sparse gradient may change other rows of the variable, too."""
    rule, weight_decay = optimizer.treatment(variable)
    overwrites = optimizer.features.ema_overwrite_frequency is not None
    return rule.sparse.variable is Rows.ALL or weight_decay is not None or overwrites
