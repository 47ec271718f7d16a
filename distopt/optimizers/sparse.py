"""Row-sparse gradients: which rows a rule is run on, and with which gradient."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from distopt.indexed_slices import IndexedSlices
from distopt.optimizers.engine import Engine
from distopt.optimizers.rule import Rows, Rule
from distopt.types import Array


def update_rows(
    engine: Engine, rule: Rule, variable: Array, slots: Sequence[Array], gradient: IndexedSlices, scalars: Sequence[Any]
) -> None:
    """Carry out ``rule`` with a row-sparse ``gradient``, writing to the rows that the rule declares.

    Shapes: ``variable`` and ``slots`` alike, ``[rows, ...]``; the indices are valid rows. Duplicate indices are summed
    first, in the order of first occurrence, unless the rule takes occurrences one by one.
    """
    use = rule.sparse
    if use.variable is Rows.OCCURRENCES:
        for indices, values in _rounds_of_distinct_rows(gradient):
            _update_touched(engine, rule.sparse_step, variable, slots, indices, values, scalars)
        return
    merged = gradient.merged()
    values = merged.values.numpy()
    if use.slots is Rows.TOUCHED:
        _update_touched(engine, rule.sparse_step, variable, slots, merged.indices, values, scalars)
        return
    dense = np.zeros_like(variable)
    dense[merged.indices] = values
    target = variable if use.variable is Rows.ALL else variable.copy()
    engine.update(
        rule.sparse_step, target.reshape(-1), [slot.reshape(-1) for slot in slots], dense.reshape(-1), scalars
    )
    if use.variable is Rows.TOUCHED:
        variable[merged.indices] = target[merged.indices]


def _update_touched(
    engine: Engine,
    rule: Rule,
    variable: Array,
    slots: Sequence[Array],
    indices: Array,
    values: Array,
    scalars: Sequence[Any],
) -> None:
    arrays = (variable, *slots)
    rows = [array[indices] for array in arrays]
    flat = [block.reshape(-1) for block in rows]
    engine.update(rule, flat[0], flat[1:], np.ascontiguousarray(values).reshape(-1), scalars)
    for array, block in zip(arrays, rows, strict=True):
        array[indices] = block


def _rounds_of_distinct_rows(gradient: IndexedSlices) -> Iterator[tuple[Array, Array]]:
    """Yield the first occurrence of every row, then every second one, and so on."""
    indices, values = gradient.indices, gradient.values.numpy()
    while indices.size:
        _, first = np.unique(indices, return_index=True)
        chosen = np.zeros(len(indices), bool)
        chosen[first] = True
        yield indices[chosen], values[chosen]
        indices, values = indices[~chosen], values[~chosen]
