"""Row kernels on every rule and both engines: the bits of a dense update of the declared rows, the others untouched."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from distopt.indexed_slices import IndexedSlices
from distopt.optimizers import get_engine, rules
from distopt.optimizers.row_kernels import numpy_row_kernel
from distopt.optimizers.rule import Kind, Rows, Rule, SparseUse
from distopt.optimizers.sparse import as_table, update_lists, update_rows
from distopt.row_lists import RowBits, disjoint
from distopt.row_sums import RowSum
from distopt.types import Array

ELEMENT_WISE = [rule for rule in rules.ALL if rule.kind is Kind.ELEMENT_WISE]

USES = [
    SparseUse(Rows.TOUCHED, Rows.TOUCHED),
    SparseUse(Rows.ALL, Rows.ALL),
    SparseUse(Rows.TOUCHED, Rows.ALL),
    SparseUse(Rows.OCCURRENCES, Rows.OCCURRENCES),
]
SHAPES = [(50, 7), (9,), (3, 20_000), (40, 2, 3), (5, 0)]
"""Some rows a cache block; one element a row; a row above a cache block; rows of matrices; rows of nothing."""


def tables(rule: Rule, shape: tuple[int, ...], dtype: Any) -> tuple[list[Array], list[Any]]:
    rng = np.random.default_rng([*shape, len(rule.name)])
    lowest = np.dtype(dtype).type(0.1)
    found = [np.abs(rng.standard_normal(shape)).astype(dtype) + lowest for _ in range(1 + len(rule.slots))]
    return found, [np.dtype(dtype).type(x) for x in rng.uniform(0.01, 0.99, len(rule.scalars))]


def slices(shape: tuple[int, ...], dtype: Any, count: int = 6) -> IndexedSlices:
    rng = np.random.default_rng([7, *shape])
    values = rng.standard_normal((count, *shape[1:])).astype(dtype)
    return IndexedSlices(values, rng.integers(0, shape[0] - 1, count), shape)


def as_declared(rule: Rule, variable: Array, slots: list[Array], gradient: IndexedSlices, scalars: list[Any]) -> None:
    """What the declaration means, by dense updates of copies."""
    use = rule.sparse
    if use.variable is Rows.OCCURRENCES:
        for index, row in zip(gradient.indices, gradient.values.numpy(), strict=True):
            results = dense(rule, [a[index] for a in (variable, *slots)], row, scalars)
            for array, result in zip((variable, *slots), results, strict=True):
                array[index] = result
        return
    merged = gradient.merged()
    full = np.zeros_like(variable)
    full[merged.indices] = merged.values.numpy()
    moved, *updated = dense(rule, [variable, *slots], full, scalars)
    for array, result, rows in zip(
        (variable, *slots), (moved, *updated), (use.variable, *[use.slots] * len(slots)), strict=True
    ):
        where = slice(None) if rows is Rows.ALL else merged.indices
        array[where] = result[where]


def dense(rule: Rule, arrays: list[Array], gradient: Array, scalars: list[Any]) -> list[Array]:
    with np.errstate(all="ignore"):
        results = rule.step(*arrays, gradient, *scalars)
    return list(results) if rule.slots else [results]


@pytest.mark.parametrize("engine", ["numpy", "compiled"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("rule", ELEMENT_WISE, ids=lambda rule: rule.name)
def test_rule_writes_the_rows_that_it_declares(rule: Rule, dtype: Any, engine: str) -> None:
    for shape in SHAPES[:2]:
        arrays, scalars = tables(rule, shape, dtype)
        expected = [array.copy() for array in arrays]
        as_declared(rule.sparse_step, expected[0], expected[1:], slices(shape, dtype), scalars)
        update_rows(get_engine(engine), rule, arrays[0], arrays[1:], slices(shape, dtype), scalars)
        for found, wanted in zip(arrays, expected, strict=True):
            assert found.dtype == dtype
            assert found.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("engine", ["numpy", "compiled"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("use", USES, ids=lambda use: f"{use.variable.name}-{use.slots.name}")
def test_each_declaration_means_the_same_on_both_engines(use: SparseUse, shape: tuple[int, ...], engine: str) -> None:
    rule = replace(rules.MOMENTUM_KERAS, name="declared", sparse=use)
    arrays, scalars = tables(rule, shape, np.float32)
    expected = [array.copy() for array in arrays]
    as_declared(rule, expected[0], expected[1:], slices(shape, np.float32), scalars)
    update_rows(get_engine(engine), rule, arrays[0], arrays[1:], slices(shape, np.float32), scalars)
    for found, wanted in zip(arrays, expected, strict=True):
        assert found.tobytes() == wanted.tobytes()


LISTS = {
    "apart": ([0, 2], [1, 5]),
    "alike": ([1, 3, 5], [1, 3, 5]),
    "mixed": ([0, 1, 4, 5], [1, 2, 5]),
    "left alone": ([2, 4], []),
    "right alone": ([], [2, 4]),
    "no rows": ([], []),
    "every row": (range(6), range(6)),
}


@pytest.mark.parametrize("engine", ["numpy", "compiled"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("use", USES, ids=lambda use: f"{use.variable.name}-{use.slots.name}")
def test_two_lists_of_rows_are_their_sum(use: SparseUse, dtype: Any, engine: str) -> None:
    rule = replace(rules.MOMENTUM_KERAS, name="declared", sparse=use)
    for width in (1, 5, 16, 64, 300):  # of which 16 and 64 are whole cache lines, where an element has 4 bytes
        for indices in LISTS.values():
            rng = np.random.default_rng(width)
            lists = [RowSum(np.array(i, np.int64), rng.standard_normal((len(i), width)).astype(dtype)) for i in indices]
            assert_lists(rule, lists, (6, width), dtype, engine)


@pytest.mark.parametrize("engine", ["numpy", "compiled"])
def test_occurrences_of_any_number_of_replicas_are_taken_one_after_another(engine: str) -> None:
    for number in (1, 2, 3, 5, 8):
        rng = np.random.default_rng(number)
        lists = []
        for replica in range(number):
            indices = np.sort(rng.integers(0, 6, 4 * (replica % 3)))
            values = rng.standard_normal((len(indices), 7)) * 10.0 ** rng.integers(-3, 4, (len(indices), 7))
            lists.append(RowSum(indices, values.astype(np.float32)))
        assert_lists(rules.SGD, lists, (6, 7), np.float32, engine)


def assert_lists(rule: Rule, lists: list[RowSum], shape: tuple[int, ...], dtype: Any, engine: str) -> None:
    arrays, scalars = tables(rule, shape, dtype)
    expected = [array.copy() for array in arrays]
    indices, values = (np.concatenate(column) for column in zip(*lists, strict=True))
    as_declared(rule, expected[0], expected[1:], IndexedSlices(values, indices, shape), scalars)
    for rows in lists:
        rows.values.flags.writeable = False  # as what others have written
    given = lists if rule.sparse.variable is Rows.OCCURRENCES else disjoint(*lists, RowBits().of(shape[0]))
    update_lists(get_engine(engine), rule, arrays[0], arrays[1:], given, scalars)
    for found, wanted in zip(arrays, expected, strict=True):
        assert found.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("engine", ["numpy", "compiled"])
@pytest.mark.parametrize("use", USES, ids=lambda use: f"{use.variable.name}-{use.slots.name}")
def test_no_rows_decay_all_slots_or_none(use: SparseUse, engine: str) -> None:
    rule = replace(rules.MOMENTUM_KERAS, name="declared", sparse=use)
    variable, momentum = np.ones((3, 2), np.float32), np.ones((3, 2), np.float32)
    nothing = IndexedSlices(np.zeros((0, 2), np.float32), [], (3, 2))
    update_rows(get_engine(engine), rule, variable, [momentum], nothing, [np.float32(1), np.float32(0.5)])
    assert (momentum == (0.5 if use.slots is Rows.ALL else 1)).all()
    assert (variable == (1.5 if use.variable is Rows.ALL else 1)).all()


@pytest.mark.parametrize("engine", ["numpy", "compiled"])
def test_indices_of_any_integer_dtype_and_read_only_rows_are_taken(engine: str) -> None:
    for dtype in (np.int32, np.int64, np.uint16):
        variable = np.zeros((4, 2), np.float32)
        values = np.ones((2, 2), np.float32)
        values.flags.writeable = False
        gradient = IndexedSlices(values, np.array([3, 1], dtype), (4, 2))
        update_rows(get_engine(engine), rules.SGD, variable, [], gradient, [np.float32(1)])
        assert variable[:, 0].tolist() == [0, -1, 0, -1]


@pytest.mark.parametrize("use", USES, ids=lambda use: f"{use.variable.name}-{use.slots.name}")
def test_rule_that_is_a_closure_is_compiled_too(use: SparseUse) -> None:
    def step(variable: Any, total: Any, gradient: Any, rate: Any) -> Any:
        total = total + gradient
        return variable - rate * total, total

    rule = Rule("closure", step, ("total",), ("rate",), use)
    found = []
    for kernel in (get_engine("compiled").row_kernel(rule, np.dtype(np.float32)), numpy_row_kernel(rule)):
        arrays, scalars = tables(rule, (6, 2), np.float32)
        gradient = slices((6, 2), np.float32).merged()
        kernel(list(map(as_table, arrays)), RowSum(gradient.indices, gradient.values.numpy()), scalars)
        found.append([array.tobytes() for array in arrays])
    assert found[0] == found[1]


@pytest.mark.parametrize("use", USES, ids=lambda use: f"{use.variable.name}-{use.slots.name}")
def test_slots_wider_than_the_variable_are_computed_in_their_dtype(use: SparseUse) -> None:
    rule = replace(rules.MOMENTUM_KERAS, name="declared", sparse=use)
    (variable, _), _ = tables(rule, (50, 7), ml_dtypes.bfloat16)
    (_, momentum), scalars = tables(rule, (50, 7), np.float32)
    gradient = slices((50, 7), ml_dtypes.bfloat16)
    rows = gradient.indices if use.variable is Rows.OCCURRENCES else gradient.merged().indices
    row = next(row for row in rows if list(gradient.indices).count(row) == 1)
    one = list(gradient.indices).index(row)
    wide, slot = rule.step(
        variable[row].astype(np.float32), momentum[row], gradient.values.numpy()[one].astype(np.float32), *scalars
    )
    update_rows(get_engine("compiled"), rule, variable, [momentum], gradient, scalars)
    assert momentum[row].tobytes() == slot.tobytes()
    assert variable[row].tobytes() == wide.astype(ml_dtypes.bfloat16).tobytes()
