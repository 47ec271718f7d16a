"""Kernels that carry out a rule on some rows of a table, in place, for row-sparse gradients.

A kernel is called as ``kernel(tables, lists, scalars)``: ``tables`` are variable and slots, ``[rows, width]``, and
``lists`` one list of rows in any order, or two in ascending order (:mod:`distopt.row_lists`), which are then merged on
the way: the gradient of a row that both have is their sum, left plus right, and is not stored. Values are read where
they lie. Which rows a kernel
writes is what the rule's ``sparse`` declares:

====================  ==========  ==================================================================================
variable              slots       a kernel does
====================  ==========  ==================================================================================
OCCURRENCES           likewise    one row after another; an index may come twice, and none is added to another. One list
TOUCHED               TOUCHED     the same, for distinct rows
ALL                   ALL         every row of the table; those without a gradient get a gradient of zero
TOUCHED               ALL         the same, but the variable's rows without a gradient are left alone
====================  ==========  ==================================================================================

The compiled form is one loop without temporaries, which asks for the rows that come next (:mod:`distopt.prefetch`); the
plain one works on as many rows at a time as stay in the cache.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from distopt import kernels, prefetch
from distopt.optimizers.rule import Rows, Rule
from distopt.row_lists import Rows as RowsOfTable
from distopt.row_lists import listed, merged, placed
from distopt.row_sums import RowSum
from distopt.types import Array

RowKernel = Callable[[Sequence[Array], Sequence[RowsOfTable], Sequence[Any]], None]

_ELEMENTS = 16384
"""As many elements the NumPy form updates at once."""


def numpy_row_kernel(rule: Rule) -> RowKernel:
    """Return the kernel of ``rule`` as calls of NumPy."""
    use = rule.sparse
    if use.variable is Rows.OCCURRENCES:
        return functools.partial(_update_occurrences, rule)
    if use.slots is Rows.TOUCHED:
        return functools.partial(_update_touched, rule)
    return functools.partial(_update_all, rule)


def load_row_kernel(rule: Rule, dtype: np.dtype[Any]) -> RowKernel:
    """Return the compiled kernel of ``rule`` for tables of ``dtype``, float32 or float64."""
    try:
        functions = kernels.functions_source(rule.step)
    except kernels.UnprintableFunctionError:
        step = kernels.compiled_function(rule.step)
        kernel = kernels.execute(_source(rule, dtype, "", "_step", cache=False), {"_step": step})
    else:
        kernel = kernels.load(lambda cache: _source(rule, dtype, functions, rule.step.__name__, cache=cache))
    if rule.sparse.slots is Rows.ALL:
        return functools.partial(_run_on_all, kernel, dtype.type(0))
    # What calls it gives arrays of the kernel's very types, and calls it once a list: the search for them would show.
    return functools.partial(_run_on_some, kernels.entry_point(kernel))


def _run_on_all(
    kernel: Callable[..., None],
    zero: Any,
    tables: Sequence[Array],
    lists: Sequence[RowsOfTable],
    scalars: Sequence[Any],
) -> None:
    """Call a kernel that goes through the table from its first row to its last."""
    indices, gradient = listed(functools.reduce(merged, lists))
    order = np.argsort(indices)
    kernel(*tables, indices[order], order, gradient, *scalars, zero)


_NO_INDICES = np.empty(0, np.int64)


def _run_on_some(
    kernel: Callable[..., None], tables: Sequence[Array], lists: Sequence[RowsOfTable], scalars: Sequence[Any]
) -> None:
    left, right = lists if len(lists) > 1 else (lists[0], RowSum(_NO_INDICES, lists[0].values[:0]))
    total_row = np.empty(tables[0].shape[1], tables[0].dtype)
    kernel(*tables, *placed(left), *placed(right), total_row, prefetch.lines_of(total_row), *scalars)


# ------------------------------------------------------------------------------------------------------ NumPy


def _blocks(num_rows: int, width: int) -> Iterator[slice]:
    step = max(1, _ELEMENTS // max(width, 1))
    for start in range(0, num_rows, step):
        yield slice(start, min(start + step, num_rows))


def _call(rule: Rule, variable: Array, *others: Any) -> tuple[Array, ...]:
    """Return what the rule makes of the given rows; it computes in the dtype of the slots, if that is wider."""
    if not rule.slots:
        return (rule.step(variable, *others),)
    count = len(rule.slots)
    dtype = others[0].dtype
    gradient = others[count].astype(dtype, copy=False)
    results: tuple[Array, ...] = rule.step(
        variable.astype(dtype, copy=False), *others[:count], gradient, *others[count + 1 :]
    )
    return results


def _update_touched(rule: Rule, tables: Sequence[Array], lists: Sequence[RowsOfTable], scalars: Sequence[Any]) -> None:
    indices, gradient = listed(functools.reduce(merged, lists))
    with np.errstate(all="ignore"):
        for block in _blocks(*gradient.shape):
            rows = indices[block]
            results = _call(rule, *(table[rows] for table in tables), gradient[block], *scalars)
            for table, result in zip(tables, results, strict=True):
                table[rows] = result


def _update_occurrences(
    rule: Rule, tables: Sequence[Array], lists: Sequence[RowsOfTable], scalars: Sequence[Any]
) -> None:
    """Update the first occurrences of all rows, then all second ones, and so on."""
    for indices, gradient in map(listed, lists):
        order = np.argsort(indices, kind="stable")
        ascending = indices[order]
        starts = np.flatnonzero(np.concatenate(([True], ascending[1:] != ascending[:-1]))) if len(order) else order
        lengths = np.diff(starts, append=len(order))
        for turn in range(int(lengths.max(initial=0))):
            chosen = order[starts[lengths > turn] + turn]
            _update_touched(rule, tables, [RowSum(indices[chosen], gradient[chosen])], scalars)


def _update_all(rule: Rule, tables: Sequence[Array], lists: Sequence[RowsOfTable], scalars: Sequence[Any]) -> None:
    indices, gradient = listed(functools.reduce(merged, lists))
    num_rows, width = tables[0].shape
    moves_all = rule.sparse.variable is Rows.ALL
    order = np.argsort(indices)
    ascending = indices[order]
    with np.errstate(all="ignore"):
        for block in _blocks(num_rows, width):
            given = slice(*np.searchsorted(ascending, (block.start, block.stop)))
            rows = ascending[given] - block.start
            dense = np.zeros((block.stop - block.start, width), gradient.dtype)
            dense[rows] = gradient[order[given]]
            moved, *slots = _call(rule, *(table[block] for table in tables), dense, *scalars)
            if moves_all:
                tables[0][block] = moved
            else:
                tables[0][block][rows] = moved[rows]
            for table, slot in zip(tables[1:], slots, strict=True):
                table[block] = slot


# --------------------------------------------------------------------------------------------------- compiled

_TEMPLATE = '''"""Generated by distopt for the rows of {title}; do not edit."""

import numpy as np
from distopt.kernels import compiled
{imports}
{functions}

_given = types.Array(types.{dtype}, 2, "C", readonly=True)
_indices = types.Array(types.int64, 1, "C", readonly=True)
_table = types.{dtype}[:, ::1]
_scalar = types.{dtype}
{prefetch}

@compiled(types.void({signature}), cache={cache})
def kernel({arguments}):
{body}
'''

_SOME_ROWS = """    width = total_row.size
    k, m = 0, 0
    while k < indices.size or m < more_indices.size:
        if m == more_indices.size or (k < indices.size and indices[k] <= more_indices[m]):
            row = indices[k]
            gradient_row = gradient[positions[k]]
            k += 1
            far = min(k + {ahead}, indices.size) - 1
            soon = indices[far]
            _ask_to_read(gradient, positions[far], lines)
            if m < more_indices.size and more_indices[m] == row:
                more_row = more_gradient[more_positions[m]]
                for i in range(width):
                    total_row[i] = gradient_row[i] + more_row[i]
                gradient_row = total_row
                m += 1
        else:
            row = more_indices[m]
            gradient_row = more_gradient[more_positions[m]]
            m += 1
            far = min(m + {ahead}, more_indices.size) - 1
            soon = more_indices[far]
            _ask_to_read(more_gradient, more_positions[far], lines)
        {ask}
        {take_rows}
        for i in range(width):
            {targets} = {step}({elements})"""

_ALL_ROWS = """    k = 0
    for row in range(variable.shape[0]):
        {take_rows}
        if k < indices.size and indices[k] == row:
            gradient_row = gradient[positions[k]]
            k += 1
            for i in range(gradient_row.size):
                {targets} = {step}({elements})
        else:
            for i in range(variable_row.size):
                {untouched_targets} = {step}({untouched_elements})"""


def _source(rule: Rule, dtype: np.dtype[Any], functions: str, step: str, *, cache: bool) -> str:
    # The rule names its arguments; ours are prefixed, so that a scalar and a slot may share a name.
    tables = ["variable", *(f"slot_{name}" for name in rule.slots)]
    scalars = [f"scalar_{name}" for name in rule.scalars]
    goes_through_all = rule.sparse.slots is Rows.ALL
    moves_all = rule.sparse.variable is Rows.ALL
    if goes_through_all:
        own = {"indices": "_indices", "positions": "_indices", "gradient": "_given"}
    else:
        own = {"indices": "_indices", "positions": "_indices", "gradient": "_given"}
        own |= {f"more_{name}": kind for name, kind in own.items()}
        own |= {"total_row": f"types.{dtype.name}[::1]", "lines": "types.intp"}
    more = ["zero"] if goes_through_all else []
    elements = [f"{table}_row[i]" for table in tables]
    untouched = elements if moves_all else ["_", *elements[1:]]
    body = (_ALL_ROWS if goes_through_all else _SOME_ROWS).format(
        ahead=prefetch.AHEAD,
        ask="; ".join(f"_ask_to_write({table}, soon, lines)" for table in tables),
        take_rows="; ".join(f"{table}_row = {table}[row]" for table in tables),
        targets=", ".join(elements),
        step=step,
        elements=", ".join([*elements, "gradient_row[i]", *scalars]),
        untouched_targets=", ".join(untouched),
        untouched_elements=", ".join([*elements, "zero", *scalars]),
    )
    return _TEMPLATE.format(
        title=f"{rule.name} on {dtype.name}",
        imports=prefetch.IMPORTS,
        prefetch="" if goes_through_all else prefetch.SOURCE,
        functions=functions,
        dtype=dtype.name,
        signature=", ".join(["_table"] * len(tables) + [*own.values()] + ["_scalar"] * len([*scalars, *more])),
        arguments=", ".join([*tables, *own, *scalars, *more]),
        cache=cache,
        body=body,
    )
