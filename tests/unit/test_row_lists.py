"""Lists of rows in ascending order: the bits of the definition of the canonical sum, however they are found."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from distopt.canonical_sum import Node, SumTree, contiguous_ranges
from distopt.row_lists import (
    PlacedRows,
    RowBits,
    Rows,
    add_lists,
    are_distinct,
    disjoint,
    disjoint_sums,
    find_order,
    in_order,
    joined,
    listed,
    merged,
    selected,
    write_in_order,
    write_others,
    write_sum,
)
from distopt.row_sums import RowSum, add_row_sums, sum_occurrences

pytestmark = pytest.mark.usefixtures("_loops")

BITS = RowBits()
DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]
INDICES = {
    "none": [],
    "one": [4],
    "one row": [5] * 9,
    "in order": [0, 2, 2, 7],
    "downward": [9, 8, 3, 1],
    "mixed": [7, 3, 7, 0, 3, 7, 2**33, 2**11, 2**22, 2**62, 5],
    "many": np.random.default_rng(0).integers(0, 300, 1000),
    "two digits": np.random.default_rng(1).integers(0, 10**6, 500),
}


def rows_of(indices: Any, dtype: Any = np.float32, seed: int = 0) -> RowSum:
    """Return occurrences whose sums depend on the order, among them zeros of both signs."""
    indices = np.array(indices, np.int64)
    rng = np.random.default_rng([seed, len(indices)])
    values = rng.standard_normal((len(indices), 3)) * 10.0 ** rng.integers(-3, 4, (len(indices), 3))
    return RowSum(indices, np.where(rng.random(values.shape) < 0.2, -0.0, values).astype(dtype))


def bits(rows: RowSum) -> tuple[list[int], Any, bytes]:
    return rows.indices.tolist(), rows.values.dtype, rows.values.tobytes()


def sorted_rows(rows: RowSum) -> RowSum:
    order = np.argsort(rows.indices, kind="stable")
    return RowSum(rows.indices[order], rows.values[order])


@pytest.mark.parametrize("indices", INDICES.values(), ids=INDICES)
def test_order_is_ascending_and_keeps_occurrences_left_to_right(indices: Any) -> None:
    indices = np.array(indices, np.int64)
    order = find_order(rows_of(indices))
    assert order.num_rows == len(set(indices.tolist()))
    assert order.rows.indices.tolist() == sorted(indices.tolist())
    if isinstance(order.rows, RowSum):
        assert sorted(indices.tolist()) == indices.tolist()
    else:
        assert order.rows.positions.tolist() == sorted(range(len(indices)), key=indices.tolist().__getitem__)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("indices", INDICES.values(), ids=INDICES)
def test_rows_in_order_are_the_occurrences_or_their_sums(indices: Any, dtype: Any) -> None:
    given = rows_of(indices, dtype)
    for array in given:
        array.flags.writeable = False
    assert bits(in_order(given, summed=False)) == bits(sorted_rows(given))
    assert bits(in_order(given, summed=True)) == bits(sorted_rows(sum_occurrences(*given)))


def test_rows_that_are_in_order_come_back() -> None:
    given = rows_of([1, 4, 4])
    assert in_order(given, summed=False) is given
    assert in_order(given, summed=True) is not given
    distinct = rows_of([1, 4, 9])
    assert in_order(distinct, summed=True) is distinct


def test_rows_are_written_to_memory_of_others() -> None:
    given = rows_of(INDICES["mixed"])
    order = find_order(given)
    memory = np.zeros(4096, np.uint8)
    count = order.num_rows
    target = RowSum(memory[: 8 * count].view(np.int64), memory[1024:][: 12 * count].view(np.float32).reshape(count, 3))
    write_in_order(order.rows, target)
    assert bits(target) == bits(sorted_rows(sum_occurrences(*given)))
    assert not memory[1024 + 12 * count :].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("indices", INDICES.values(), ids=INDICES)
def test_selected_rows_are_those_of_a_part_in_their_order_and_the_others_are_written(indices: Any, dtype: Any) -> None:
    given = rows_of(indices, dtype)
    back = np.arange(len(given.indices))[::-1].copy()
    elsewhere = PlacedRows(given.indices, back, given.values[back])
    for part in ((0, 0), (0, 2**63 - 1), (3, 8), (5, 2**33)):
        is_own = [part[0] <= index < part[1] for index in given.indices.tolist()]
        for rows in (given, elsewhere):
            assert bits(listed(selected(rows, *part))) == bits(RowSum(given.indices[is_own], given.values[is_own]))
        target = RowSum(np.empty_like(given.indices), np.zeros_like(given.values))
        write_others(given, *part, target)
        want = given.values.copy()
        want[is_own] = 0
        assert bits(target) == bits(RowSum(given.indices, want))


@pytest.mark.parametrize("dtype", DTYPES)
def test_merged_lists_have_each_row_once(dtype: Any) -> None:
    lists = [rows_of(i, dtype, seed) for seed, i in enumerate(([], [0], [0, 1, 5, 9], [1, 5, 6], range(3, 40)))]
    shuffled = np.random.default_rng(0).permutation
    for left in lists:
        for right in lists:
            places = [shuffled(len(rows.indices)) for rows in (left, right)]
            given: list[Rows] = [left, right]
            for k, (rows, place) in enumerate(zip((left, right), places, strict=True)):
                given[k] = PlacedRows(rows.indices, place, np.empty_like(rows.values))
                given[k].values[place] = rows.values
            want = {int(index): row for index, row in zip(*right, strict=True)}
            for index, row in zip(*left, strict=True):
                want[int(index)] = row + want[int(index)] if int(index) in want else row
            found = listed(merged(left, right))
            assert bits(listed(merged(*given))) == bits(listed(merged(left, given[1]))) == bits(found)
            assert found.indices.tolist() == sorted(want)
            assert found.values.dtype == dtype
            assert [row.tobytes() for row in found.values] == [want[index].tobytes() for index in sorted(want)]
            target = RowSum(np.full(90, -1), np.full((90, 3), 7, dtype))
            for lists in (given, [found]):
                assert write_sum(lists, target) == len(want)
                assert bits(RowSum(*(array[: len(want)] for array in target))) == bits(found)
                assert (target.values[len(want) :] == 7).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_disjoint_lists_make_up_the_merged_ones_whatever_their_order(dtype: Any) -> None:
    kinds: list[Any] = [[], [0], [0, 1, 5, 9], [1, 5, 6], [599, 63, 64, 5], range(3, 400), range(200, 600)]
    lists = [rows_of(i, dtype, seed) for seed, i in enumerate(kinds)]
    for left in map(sorted_rows, lists):
        for right in map(sorted_rows, lists):
            want = listed(merged(left, right))
            shuffled = [shuffled_rows(rows) for rows in (left, right)]
            for given in ([left, right], shuffled, [left, placed_elsewhere(shuffled[1])]):
                for array in (array for rows in given for array in rows):
                    array.flags.writeable = False  # as what others have written
                found = disjoint(*given, BITS.of(600))
                assert not BITS.of(600).any()
                assert len(set(left.indices) | set(right.indices)) == sum(len(rows.indices) for rows in found)
                assert bits(sorted_rows(joined(found))) == bits(want)
    (alone,) = disjoint(lists[2], lists[0], BITS.of(600))
    assert alone is lists[2]


def shuffled_rows(rows: RowSum) -> RowSum:
    order = np.random.default_rng(0).permutation(len(rows.indices))
    return RowSum(rows.indices[order], rows.values[order])


def placed_elsewhere(rows: RowSum) -> PlacedRows:
    """Return the same rows with their values backwards, between others."""
    places = 3 + np.arange(len(rows.indices))[::-1].copy()
    values = np.full((len(places) + 5, 3), np.nan).astype(rows.values.dtype)
    values[places] = rows.values
    return PlacedRows(rows.indices, places, values)


@pytest.mark.parametrize("indices", [indices for name, indices in INDICES.items() if name != "mixed"])
def test_rows_are_distinct_where_none_comes_twice(indices: Any) -> None:
    indices = np.array(indices, np.int64)
    bits = BITS.of(10**6)
    for some in (indices, np.unique(indices)[::-1], np.append(np.unique(indices), [63, 3, 3]), np.array([64, 0, 63])):
        assert are_distinct(some, bits) == (len(set(some.tolist())) == len(some))
        assert not bits.any()


def occurrences(replica: int, kind: str) -> RowSum:
    count = {"some": 0 if replica % 4 == 3 else 5 + 3 * replica, "none": 0, "one row": 3, "all": 30}[kind]
    rng = np.random.default_rng(replica)
    indices = np.full(count, 7) if kind == "one row" else rng.integers(0, 12, count)
    return rows_of(np.arange(count) if kind == "all" else indices, seed=replica)


@pytest.mark.parametrize("kind", ["some", "none", "one row", "all"])
@pytest.mark.parametrize("num_replicas", [1, 2, 3, 5, 8])
def test_sums_of_lists_have_the_bits_of_the_definition_wherever_replicas_are_hosted(
    num_replicas: int, kind: str
) -> None:
    tree = SumTree(num_replicas)
    given = [occurrences(replica, kind) for replica in range(num_replicas)]
    want = sorted_rows(add_row_sums(tree, {Node(r, r + 1): sum_occurrences(*rows) for r, rows in enumerate(given)}))
    leaves = {Node(r, r + 1): in_order(rows, summed=True) for r, rows in enumerate(given)}
    for workers in {1, 2, num_replicas}:
        for hosted in (
            contiguous_ranges(num_replicas, workers),
            [range(w, num_replicas, workers) for w in range(workers)],
        ):
            sent = {node: add_lists(tree, leaves, node) for replicas in hosted for node in tree.cover(replicas)}
            assert bits(add_lists(tree, sent)) == bits(want)
            assert bits(sorted_rows(joined(disjoint_sums(tree, sent, BITS.of(600))))) == bits(want)


def test_sum_without_a_replica_is_refused() -> None:
    with pytest.raises(ValueError, match="replica 1"):
        add_lists(SumTree(2), {Node(0, 1): rows_of([1])})
