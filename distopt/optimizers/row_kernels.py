"""Kernels that carry out a rule on some rows of a table, in place, for row-sparse gradients.

A kernel is called as ``kernel(tables, rows, scalars)``: ``tables`` are variable and slots, ``[rows, width]``, and
``rows`` a list of rows in any order (:mod:`distopt.row_lists`), whose values are read where they lie. Which rows a
kernel writes is what the rule's ``sparse`` declares:

====================  ==========  ==================================================================================
variable              slots       a kernel does
====================  ==========  ==================================================================================
OCCURRENCES           likewise    one row after another; an index may come twice, and none is added to another
TOUCHED               TOUCHED     the same, for distinct rows
ALL                   ALL         every row of the table; those without a gradient get a gradient of zero
TOUCHED               ALL         the same, but the variable's rows without a gradient are left alone
====================  ==========  ==================================================================================

The compiled form is one loop without temporaries, which asks for the rows that come next (:mod:`distopt.prefetch`).
Where a row is whole cache lines, as most embeddings are, its width stands in the source: unrolled loops without a rest
take a third less time. The plain form works on as many rows at a time as stay in the cache.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

from distopt import kernels, prefetch
from distopt.optimizers.rule import Rows, Rule
from distopt.row_lists import Rows as RowsOfTable
from distopt.row_lists import listed, placed
from distopt.row_sums import RowSum
from distopt.types import Array

RowKernel: TypeAlias = Callable[[Sequence[Array], RowsOfTable, Sequence[Any]], None]

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
    if rule.sparse.slots is Rows.ALL:
        return functools.partial(_run_on_all, _load(rule, dtype), dtype.type(0))
    # What calls it gives arrays of the kernel's very types, and calls it once a list: the search for them would show.
    loop_for = functools.cache(lambda width: kernels.entry_point(_load(rule, dtype, width)))
    return functools.partial(_run_on_some, loop_for)


def _load(rule: Rule, dtype: np.dtype[Any], width: int | None = None) -> Callable[..., None]:
    """Return the loop for rows of ``width`` elements; None: of any number."""
    try:
        functions = kernels.functions_source(rule.step)
    except kernels.UnprintableFunctionError:
        step = kernels.compiled_function(rule.step)
        return kernels.execute(_source(rule, dtype, width, "", "_step", cache=False), {"_step": step})
    return kernels.load(lambda cache: _source(rule, dtype, width, functions, rule.step.__name__, cache=cache))


def _run_on_all(
    kernel: Callable[..., None], zero: Any, tables: Sequence[Array], rows: RowsOfTable, scalars: Sequence[Any]
) -> None:
    """Call a kernel that goes through the table from its first row to its last."""
    indices, gradient = listed(rows)
    order = np.argsort(indices)
    kernel(*tables, indices[order], order, gradient, *scalars, zero)


_LINE_BYTES = 64
_MOST_IN_SOURCE = 1024
"""Bytes of the widest rows whose width is part of the source; what is compiled grows with them."""


def _run_on_some(
    loop_for: Callable[[int | None], Callable[..., None]],
    tables: Sequence[Array],
    rows: RowsOfTable,
    scalars: Sequence[Any],
) -> None:
    if len(rows.indices):
        width, row_bytes = tables[0].shape[1], tables[0].strides[0]
        is_in_source = 0 < row_bytes <= _MOST_IN_SOURCE and row_bytes % _LINE_BYTES == 0
        loop_for(width if is_in_source else None)(*tables, *placed(rows), *scalars)


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


def _update_touched(rule: Rule, tables: Sequence[Array], rows: RowsOfTable, scalars: Sequence[Any]) -> None:
    indices, gradient = listed(rows)
    with np.errstate(all="ignore"):
        for block in _blocks(*gradient.shape):
            chosen = indices[block]
            results = _call(rule, *(table[chosen] for table in tables), gradient[block], *scalars)
            for table, result in zip(tables, results, strict=True):
                table[chosen] = result


def _update_occurrences(rule: Rule, tables: Sequence[Array], rows: RowsOfTable, scalars: Sequence[Any]) -> None:
    """Update the first occurrences of all rows, then all second ones, and so on."""
    indices, gradient = listed(rows)
    order = np.argsort(indices, kind="stable")
    ascending = indices[order]
    starts = np.flatnonzero(np.concatenate(([True], ascending[1:] != ascending[:-1]))) if len(order) else order
    lengths = np.diff(starts, append=len(order))
    for turn in range(int(lengths.max(initial=0))):
        chosen = order[starts[lengths > turn] + turn]
        _update_touched(rule, tables, RowSum(indices[chosen], gradient[chosen]), scalars)


def _update_all(rule: Rule, tables: Sequence[Array], rows: RowsOfTable, scalars: Sequence[Any]) -> None:
    indices, gradient = listed(rows)
    num_rows, width = tables[0].shape
    moves_all = rule.sparse.variable is Rows.ALL
    order = np.argsort(indices)
    ascending = indices[order]
    with np.errstate(all="ignore"):
        for block in _blocks(num_rows, width):
            given = slice(*np.searchsorted(ascending, (block.start, block.stop)))
            chosen = ascending[given] - block.start
            dense = np.zeros((block.stop - block.start, width), gradient.dtype)
            dense[chosen] = gradient[order[given]]
            moved, *slots = _call(rule, *(table[block] for table in tables), dense, *scalars)
            if moves_all:
                tables[0][block] = moved
            else:
                tables[0][block][chosen] = moved[chosen]
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

_SOME_ROWS = """    width = {width}
    lines = min({most_lines}, -(-width * {item_bytes} // {line_bytes}))
    for k in range(indices.size):
        row, at = indices[k], positions[k]
        far = min(k + {ahead}, indices.size - 1)
        {ask}
        _ask_to_read(gradient, positions[far], lines)
        for i in range(width):
            {targets} = {step}({elements})"""

_ALL_ROWS = """    k = 0
    for row in range(variable.shape[0]):
        if k < indices.size and indices[k] == row:
            at = positions[k]
            k += 1
            for i in range(variable.shape[1]):
                {targets} = {step}({elements})
        else:
            for i in range(variable.shape[1]):
                {untouched_targets} = {step}({untouched_elements})"""


def _source(rule: Rule, dtype: np.dtype[Any], width: int | None, functions: str, step: str, *, cache: bool) -> str:
    # The rule names its arguments; ours are prefixed, so that a scalar and a slot may share a name.
    tables = ["variable", *(f"slot_{name}" for name in rule.slots)]
    scalars = [f"scalar_{name}" for name in rule.scalars]
    goes_through_all = rule.sparse.slots is Rows.ALL
    moves_all = rule.sparse.variable is Rows.ALL
    own = {"indices": "_indices", "positions": "_indices", "gradient": "_given"}
    more = ["zero"] if goes_through_all else []
    elements = [f"{table}[row, i]" for table in tables]
    untouched = elements if moves_all else ["_", *elements[1:]]
    body = (_ALL_ROWS if goes_through_all else _SOME_ROWS).format(
        width="variable.shape[1]" if width is None else width,
        item_bytes=dtype.itemsize,
        line_bytes=_LINE_BYTES,
        most_lines=prefetch.MOST_LINES,
        ahead=prefetch.AHEAD,
        ask="; ".join(f"_ask_to_write({table}, indices[far], lines)" for table in tables),
        targets=", ".join(elements),
        step=step,
        elements=", ".join([*elements, "gradient[at, i]", *scalars]),
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
