"""The canonical sum of rows, held against its definition: the tree over all replicas, absent rows skipped."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from distopt.canonical_sum import Node, SumTree, contiguous_ranges
from distopt.row_sums import RowSum, add_row_sums, sum_occurrences, sum_of_replicas
from distopt.types import Array

pytestmark = pytest.mark.usefixtures("_loops")

ROWS, WIDTH = 12, 3


def occurrences(num_replicas: int, dtype: Any, seed: int = 0) -> list[tuple[Array, Array]]:
    """Return each replica's indices and values: from none to many, of magnitudes whose sum depends on the order."""
    found = []
    for replica in range(num_replicas):
        rng = np.random.default_rng([seed, num_replicas, replica])
        count = 0 if replica % 4 == 3 else 5 + 3 * replica
        scale = 10.0 ** rng.integers(-3, 4, (count, WIDTH))
        values = (rng.standard_normal((count, WIDTH)) * scale).astype(dtype)
        values[:1] = -0.0
        found.append((rng.integers(0, ROWS, count), values))
    return found


def as_defined(given: list[tuple[Array, Array]]) -> RowSum:
    """The definition, one row at a time."""
    tree = SumTree(len(given))

    def of_replica(replica: int, row: int) -> Array | None:
        indices, values = given[replica]
        total = None
        for occurrence in values[indices == row]:
            total = occurrence if total is None else total + occurrence
        return total

    def of_node(node: Node, row: int) -> Array | None:
        if node.stop - node.start == 1:
            return of_replica(node.start, row)
        left, right = (of_node(child, row) for child in tree.children(node))
        if left is None or right is None:
            return left if right is None else right
        return np.asarray(left + right)

    order = list(dict.fromkeys(int(row) for indices, _ in given for row in indices))
    sums = [of_node(tree.root, row) for row in order]
    return RowSum(np.array(order, np.int64), np.array(sums, given[0][1].dtype).reshape(len(order), WIDTH))


def assert_same_bits(found: RowSum, expected: RowSum) -> None:
    assert found.indices.tolist() == expected.indices.tolist()
    assert found.indices.dtype == np.int64
    assert found.values.dtype == expected.values.dtype
    assert found.values.tobytes() == expected.values.tobytes()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("num_replicas", [1, 2, 3, 5, 8])
def test_sum_of_replicas_is_the_tree_over_those_that_have_the_row(num_replicas: int, dtype: Any) -> None:
    given = occurrences(num_replicas, dtype)
    indices, values = (np.concatenate(column) for column in zip(*given, strict=True))
    counts = [len(of_replica) for of_replica, _ in given]
    assert_same_bits(sum_of_replicas(indices, values, counts), as_defined(given))


@pytest.mark.parametrize("num_workers", [1, 2, 3, 5])
@pytest.mark.parametrize("interleaved", [False, True])
def test_row_sums_of_workers_have_the_bits_of_one_process(num_workers: int, interleaved: bool) -> None:
    given = occurrences(8, np.float32, seed=3)
    tree = SumTree(8)
    leaves = {Node(r, r + 1): sum_occurrences(*given[r]) for r in range(8)}
    hosted = [
        range(w, 8, num_workers) if interleaved else contiguous_ranges(8, num_workers)[w] for w in range(num_workers)
    ]
    sent = {node: add_row_sums(tree, leaves, node) for replicas in hosted for node in tree.cover(replicas)}
    assert_same_bits(add_row_sums(tree, sent), as_defined(given))


def test_row_sums_can_be_formed_of_a_part_of_the_rows_and_columns() -> None:
    given = occurrences(5, np.float32, seed=4)
    whole = as_defined(given)
    part = [(indices[indices < 6], values[indices < 6, 1:]) for indices, values in given]
    indices, values = (np.concatenate(column) for column in zip(*part, strict=True))
    found = sum_of_replicas(indices, values, [len(of_replica) for of_replica, _ in part])
    mine = whole.indices < 6
    assert found.indices.tolist() == whole.indices[mine].tolist()
    np.testing.assert_array_equal(found.values, whole.values[mine, 1:])


def test_row_without_a_second_occurrence_keeps_the_sign_of_its_zero() -> None:
    indices = np.array([0, 1, 1])
    values = np.float32([-0.0, 1.0, 2.0])
    assert np.signbit(sum_occurrences(indices, values).values[0])
    assert np.signbit(sum_of_replicas(indices, values, (1, 0, 2)).values[0])


def test_row_sums_do_not_write_to_their_inputs() -> None:
    left, right = (RowSum(np.array([1, 2]), np.ones((2, WIDTH), np.float32)) for _ in range(2))
    for given in (left, right):
        given.values.flags.writeable = False
    total = add_row_sums(SumTree(2), {Node(0, 1): left, Node(1, 2): right})
    assert total.values.tolist() == [[2.0] * WIDTH] * 2


def test_row_sum_of_no_rows_is_empty() -> None:
    nothing = (np.empty(0, np.int32), np.empty((0, WIDTH), np.float32))
    assert_same_bits(sum_occurrences(*nothing), RowSum(np.empty(0, np.int64), nothing[1]))
    assert sum_of_replicas(*nothing, (0, 0, 0)).values.shape == (0, WIDTH)


def test_row_sum_without_a_replica_is_refused() -> None:
    one = RowSum(np.array([1]), np.ones((1, WIDTH), np.float32))
    with pytest.raises(ValueError, match="replica 1"):
        add_row_sums(SumTree(2), {Node(0, 1): one})
