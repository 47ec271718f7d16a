from __future__ import annotations

import itertools
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distopt import kernels
from distopt.canonical_sum import Node, SumTree, add_nodes, add_rows, contiguous_ranges
from distopt.types import Array

SIZES = [1, 2, 3, 5, 8, 13]


def gradients(num_replicas: int, length: int, dtype: type = np.float32) -> Array:
    """Return ``[replicas, length]`` whose sum depends on the order of additions."""
    generator = np.random.default_rng([num_replicas, length])
    magnitudes = 10.0 ** generator.integers(-3, 4, (num_replicas, length))
    return np.asarray(generator.standard_normal((num_replicas, length)) * magnitudes).astype(dtype)


def defined_sum(rows: Array) -> Array:
    """Return the sum as the design defines it, by plain recursion: the oracle of this file."""
    if len(rows) == 1:
        return np.asarray(rows[0])
    middle = 1
    while middle * 2 < len(rows):
        middle *= 2
    return np.asarray(defined_sum(rows[:middle]) + defined_sum(rows[middle:]))


def of_nodes(rows: Array, nodes: tuple[Node, ...]) -> dict[Node, Array]:
    """Return the sums of nodes, each added up as its host would."""
    tree = SumTree(len(rows))
    leaves = {Node(r, r + 1): rows[r] for r in range(len(rows))}
    return {node: add_nodes(tree, leaves, node) for node in nodes}


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64, np.int64])
@pytest.mark.parametrize("num_replicas", SIZES)
def test_add_rows_is_the_defined_tree_in_the_dtype(num_replicas: int, dtype: type) -> None:
    rows = gradients(num_replicas, 57, dtype)
    total = add_rows(rows)
    assert total.dtype == np.dtype(dtype)
    assert total.tobytes() == defined_sum(rows).tobytes()


@pytest.mark.parametrize("length", [32767, 32768, 32769, 70000])
@pytest.mark.parametrize("num_replicas", [2, 3, 8, 13])
def test_add_rows_longer_than_a_block_has_the_same_bits(num_replicas: int, length: int) -> None:
    rows = gradients(num_replicas, length)
    assert add_rows(rows).tobytes() == defined_sum(rows).tobytes()


def test_add_rows_depends_on_the_order_of_additions() -> None:
    rows = gradients(8, 57)
    left_to_right = rows[0].copy()
    for row in rows[1:]:
        left_to_right += row
    assert add_rows(rows).tobytes() != left_to_right.tobytes()


def test_add_rows_of_scalars_and_matrices_keeps_the_shape() -> None:
    assert add_rows(np.array([1.0, 2.0, 4.0])) == 7.0
    np.testing.assert_array_equal(add_rows(np.arange(12.0).reshape(3, 2, 2)), [[12.0, 15.0], [18.0, 21.0]])


def test_add_rows_does_not_write_to_its_input() -> None:
    rows = gradients(5, 40)
    before = rows.copy()
    add_rows(rows)
    np.testing.assert_array_equal(rows, before)


def test_add_nodes_of_every_contiguous_hosting_has_the_same_bits() -> None:
    for num_replicas, num_workers in itertools.product(SIZES, range(1, 9)):
        rows = gradients(num_replicas, 33)
        tree = SumTree(num_replicas)
        nodes = tuple(node for hosted in contiguous_ranges(num_replicas, num_workers) for node in tree.cover(hosted))
        assert add_nodes(tree, of_nodes(rows, nodes)).tobytes() == defined_sum(rows).tobytes()


@given(st.lists(st.integers(0, 3), min_size=1, max_size=20))
def test_add_nodes_of_any_hosting_has_the_same_bits(host_of: list[int]) -> None:
    rows = gradients(len(host_of), 9)
    tree = SumTree(len(host_of))
    hosted = [[r for r, host in enumerate(host_of) if host == h] for h in range(4)]
    nodes = tuple(node for replicas in hosted for node in tree.cover(replicas))
    assert add_nodes(tree, of_nodes(rows, nodes)).tobytes() == defined_sum(rows).tobytes()


@pytest.mark.parametrize("length", [5, 40000])
def test_add_nodes_into_an_array_writes_and_returns_it(length: int) -> None:
    rows = gradients(5, length)
    out = np.empty(length, np.float32)
    assert add_nodes(SumTree(5), {Node(r, r + 1): rows[r] for r in range(5)}, out=out) is out
    assert out.tobytes() == defined_sum(rows).tobytes()


def test_add_nodes_of_a_single_node_is_that_array_or_its_copy() -> None:
    array, out = np.array([1.0, 2.0]), np.empty(2)
    assert add_nodes(SumTree(5), {Node(0, 5): array}) is array
    assert add_nodes(SumTree(5), {Node(0, 5): array}, out=out) is out
    np.testing.assert_array_equal(out, array)


def test_add_nodes_without_a_replica_is_refused_by_its_name() -> None:
    with pytest.raises(ValueError, match="no contribution covers replica 2"):
        add_nodes(SumTree(3), {Node(0, 2): np.ones(1)})


def test_cover_of_a_contiguous_range_is_short_and_exact() -> None:
    for num_replicas in range(1, 40):
        tree = SumTree(num_replicas)
        for start, stop in itertools.combinations(range(num_replicas + 1), 2):
            nodes = tree.cover(range(start, stop))
            assert [r for node in nodes for r in range(*node)] == list(range(start, stop))
            assert all(node in tree for node in nodes)
            assert len(nodes) <= max(1, 2 * (num_replicas - 1).bit_length())


def test_cover_of_no_replicas_is_empty() -> None:
    assert SumTree(5).cover([]) == ()


def test_cover_of_an_unknown_replica_is_refused() -> None:
    with pytest.raises(ValueError, match=r"replicas \[-1, 5\] do not exist; there are 5"):
        SumTree(5).cover([5, 0, -1])


def test_tree_over_no_replicas_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 replica, not 0"):
        SumTree(0)


@pytest.mark.parametrize("node", [Node(0, 1), Node(1, 3), Node(0, 6)])
def test_children_of_a_leaf_or_a_stranger_are_refused(node: Node) -> None:
    with pytest.raises(ValueError, match="has no children in a tree over 5 replicas"):
        SumTree(5).children(node)


def test_missing_and_is_covered_by_agree() -> None:
    tree = SumTree(8)
    nodes = [Node(0, 4), Node(6, 7)]
    assert not tree.is_covered_by(nodes)
    assert tree.missing(nodes) == (Node(4, 6), Node(7, 8))
    assert tree.is_covered_by([*nodes, *tree.missing(nodes)])


def test_overlapping_are_those_that_share_a_replica_but_are_another_node() -> None:
    others = [Node(0, 2), Node(0, 4), Node(2, 4), Node(4, 8), Node(0, 8)]
    assert SumTree(8).overlapping(Node(0, 4), others) == (Node(0, 2), Node(2, 4), Node(0, 8))


def test_node_names_its_replicas() -> None:
    assert [str(Node(3, 4)), str(Node(4, 8))] == ["replica 3", "replicas 4..7"]


def test_contiguous_ranges_are_equal_up_to_one_and_larger_first() -> None:
    for num_replicas, num_workers in itertools.product(range(1, 20), range(1, 9)):
        ranges = contiguous_ranges(num_replicas, num_workers)
        lengths = [len(r) for r in ranges]
        assert [replica for r in ranges for replica in r] == list(range(num_replicas))
        assert lengths == sorted(lengths, reverse=True)
        assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64, ml_dtypes.bfloat16])
@pytest.mark.parametrize(("num_replicas", "hosts"), [(3, 3), (5, 2), (8, 8), (11, 11)])
def test_long_sums_have_the_same_bits_compiled_and_not(num_replicas: int, hosts: int, dtype: Any) -> None:
    tree = SumTree(num_replicas)
    rng = np.random.default_rng(1)
    length = 2**15 + 5
    rows = {Node(r, r + 1): rng.standard_normal(length).astype(dtype) for r in range(num_replicas)}
    held = {
        node: add_nodes(tree, rows, node)
        for host in range(hosts)
        for node in tree.cover(range(host, num_replicas, hosts))
    }
    results = []
    for compiled in (True, False):
        kernels.use_compiled_loops(compiled)
        results.append(add_nodes(tree, held).tobytes())
    kernels.use_compiled_loops(True)
    assert results[0] == results[1]


def test_arrays_in_another_order_or_shape_are_added_without_a_compiled_loop() -> None:
    rows = np.random.default_rng(2).standard_normal((3, 300, 200)).astype(np.float32)
    expected = (rows[0] + rows[1]) + rows[2]
    np.testing.assert_array_equal(add_rows(rows), expected)
    strided = np.repeat(rows.reshape(3, -1), 2, axis=1)[:, ::2]
    np.testing.assert_array_equal(add_rows(strided), expected.reshape(-1))
