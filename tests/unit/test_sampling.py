"""The data of a step are a function of (seed, epoch, step), and a replica's chunk one of its number."""

from __future__ import annotations

import numpy as np
import pytest

from distopt import sampling

SIZES = [1, 2, 3, 5, 8]


def test_epoch_permutation_is_the_recorded_one() -> None:
    assert sampling.epoch_permutation(7, 1, 8).tolist() == [4, 1, 3, 2, 6, 5, 0, 7]


def test_epoch_permutation_differs_by_seed_and_by_epoch() -> None:
    orders = {tuple(sampling.epoch_permutation(seed, epoch, 50)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


@pytest.mark.parametrize("num_samples", [1, 7, 8, 9, 1437])
@pytest.mark.parametrize("batch_size", [1, 4, 128, 2000])
def test_step_indices_of_an_epoch_hold_each_sample_once(num_samples: int, batch_size: int) -> None:
    steps = sampling.num_steps(num_samples, batch_size)
    batches = [sampling.step_indices(3, 2, step, num_samples, batch_size) for step in range(steps)]
    np.testing.assert_array_equal(np.concatenate(batches), sampling.epoch_permutation(3, 2, num_samples))
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (steps - 1)


@pytest.mark.parametrize("step", [-1, 3])
def test_batch_bounds_beyond_the_epoch_is_refused(step: int) -> None:
    with pytest.raises(IndexError, match=f"no step {step}"):
        sampling.batch_bounds(10, 4, step)


def test_batch_bounds_of_no_batch_size_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        sampling.batch_bounds(10, 0, 0)


@pytest.mark.parametrize("num_replicas", SIZES)
@pytest.mark.parametrize("length", [0, 1, 2, 7, 8, 128])
def test_replica_chunk_covers_the_batch_in_order(length: int, num_replicas: int) -> None:
    rows = np.arange(length)
    chunks = [rows[sampling.replica_chunk(length, num_replicas, replica)] for replica in range(num_replicas)]
    np.testing.assert_array_equal(np.concatenate(chunks), rows)
    assert max(len(chunk) for chunk in chunks) == -(-length // num_replicas)


@pytest.mark.parametrize(
    ("length", "sizes"),
    [(10, [3, 3, 3, 1]), (9, [3, 3, 3, 0]), (2, [1, 1, 0, 0])],
)
def test_replica_chunk_sizes_are_those_of_the_data_policy(length: int, sizes: list[int]) -> None:
    chunks = [sampling.replica_chunk(length, 4, replica) for replica in range(4)]
    assert [chunk.stop - chunk.start for chunk in chunks] == sizes


def test_replica_chunk_of_no_such_replica_is_refused() -> None:
    with pytest.raises(IndexError, match="no replica 2"):
        sampling.replica_chunk(4, 2, 2)


def test_rebatch_for_replicas_keeps_structure_and_gives_zero_rows_of_the_right_rank() -> None:
    batch = {"x": np.arange(18.0).reshape(9, 2), "y": (np.arange(9),)}
    parts = sampling.rebatch_for_replicas(batch, 4)
    assert [part["y"][0].tolist() for part in parts] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], []]
    assert parts[3]["x"].shape == (0, 2)
    assert parts[0]["x"].base is not None


def test_rebatch_for_replicas_of_a_scalar_is_refused() -> None:
    with pytest.raises(ValueError, match="batch the dataset"):
        sampling.rebatch_for_replicas(np.float32(1.0), 2)


def test_rebatch_for_replicas_of_unequal_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="differ in their number of rows"):
        sampling.rebatch_for_replicas((np.zeros(3), np.zeros(4)), 2)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.5, 1.0])
def test_stratified_split_has_exact_shares_of_each_class(seed: int, fraction: float) -> None:
    labels = np.repeat([3, 1, 7], [13, 20, 4])
    rest, part = sampling.stratified_split(labels, fraction, seed)
    np.testing.assert_array_equal(np.sort(np.concatenate([rest, part])), np.arange(37))
    assert len(part) == round(37 * fraction)
    for label, size in zip(*np.unique(labels, return_counts=True), strict=True):
        assert abs((labels[part] == label).sum() - fraction * size) < 1


def test_stratified_split_depends_on_the_seed_alone() -> None:
    labels = np.arange(100) % 3
    first, again, other = (sampling.stratified_split(labels, 0.3, seed)[1].tolist() for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_stratified_split_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="within"):
        sampling.stratified_split(np.zeros(3), 1.5, 0)
    with pytest.raises(ValueError, match="shape"):
        sampling.stratified_split(np.zeros((3, 1)), 0.5, 0)
