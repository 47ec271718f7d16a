"""Tables of rows: the bits of lists of rows, whichever form each replica's have."""

from __future__ import annotations

import functools
import itertools

import ml_dtypes
import numpy as np
import pytest

from distopt import row_tables
from distopt.canonical_sum import Node, SumTree
from distopt.row_lists import in_order, merged
from distopt.row_sums import RowSum, add_row_sums
from distopt.row_tables import Rows, RowTable, add_rows, empty_table, is_dense, parts_of_sum, scatter_occurrences

NUM_ROWS, WIDTH, FIRST = 12, 3, 5
DTYPES = [np.dtype(t) for t in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)]


def occurrences(replica: int, dtype: np.dtype) -> RowSum:
    """Return rows of one replica, some several times, among them zeros of both signs, infinities and NaN."""
    rng = np.random.default_rng(replica)
    count = 4 + 3 * replica
    indices = rng.integers(FIRST, FIRST + NUM_ROWS, count)
    values = rng.choice(np.array([0.0, -0.0, -0.0, 1.1, -1.1, 1e-3, 300.0, np.inf, np.nan]), (count, WIDTH))
    return RowSum(indices, values.astype(dtype))


def by_row(rows: Rows) -> dict[int, bytes]:
    listed = rows.rows() if isinstance(rows, RowTable) else rows
    return {int(index): row.tobytes() for index, row in zip(listed.indices, listed.values, strict=True)}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_replicas", [1, 2, 3, 5, 8])
def test_sum_of_lists_and_tables_has_the_bits_of_the_sum_of_lists(num_replicas: int, dtype: np.dtype) -> None:
    tree = SumTree(num_replicas)
    listed: dict[Node, Rows] = {}
    tables: dict[Node, Rows] = {}
    for replica in range(num_replicas):
        rows = occurrences(replica, dtype)
        node = Node(replica, replica + 1)
        listed[node] = in_order(rows, summed=True)
        tables[node] = table = empty_table(FIRST, NUM_ROWS, WIDTH, dtype)
        scatter_occurrences(table, *rows)
        assert by_row(table) == by_row(listed[node])
    want = by_row(add_row_sums(tree, {node: rows for node, rows in listed.items() if isinstance(rows, RowSum)}))
    mixtures = [tables, {n: (tables if n.start % 2 else listed)[n] for n in listed}]
    for sums in mixtures:
        assert by_row(add_rows(tree, sums, tree.root, FIRST, NUM_ROWS)) == want


@pytest.mark.parametrize("threshold", [0.0, 2.0])
def test_lists_are_added_as_tables_from_a_density_on_with_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, threshold: float
) -> None:
    monkeypatch.setattr(row_tables, "DENSE_FROM", threshold)
    tree = SumTree(3)
    sums: dict[Node, Rows] = {
        Node(r, r + 1): in_order(occurrences(r, np.dtype(np.float32)), summed=True) for r in range(3)
    }
    found = add_rows(tree, sums, tree.root, FIRST, NUM_ROWS)
    assert isinstance(found, RowTable) == (threshold == 0.0)
    want = by_row(add_row_sums(tree, {n: rows for n, rows in sums.items() if isinstance(rows, RowSum)}))
    assert by_row(found) == want
    parts = parts_of_sum(tree, sums, FIRST, NUM_ROWS)
    assert len(parts) == (1 if threshold == 0.0 else 2)
    assert by_row(functools.reduce(merged, parts)) == want


def test_absent_rows_are_told_apart_from_rows_of_zeros() -> None:
    table = empty_table(0, 4, 2, np.dtype(np.float32))
    scatter_occurrences(table, np.array([3, 1]), np.float32([[0, -0.0], [-0.0, -0.0]]))
    found = table.rows()
    assert found.indices.tolist() == [1, 3]
    assert np.signbit(found.values).tolist() == [[True, True], [False, True]]
    assert table.within(2, 9).rows().indices.tolist() == [3]


def test_no_row_is_not_dense_even_of_an_empty_table() -> None:
    counts = itertools.product((0, 1), (0, 1, 100))
    assert [is_dense(count, num_rows) for count, num_rows in counts] == [False, False, False, True, True, False]
