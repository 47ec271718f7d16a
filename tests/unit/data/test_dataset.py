"""Pipelines over arrays: the order is TensorFlow's where that is defined, else a function of the seed."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from distopt import random
from distopt.data import INFINITE_CARDINALITY, Dataset, epoch_permutation, rebatch_for_replicas
from distopt.errors import NotOfferedError


def as_lists(dataset: Dataset) -> list[Any]:
    return [element.tolist() for element in dataset]


def test_from_tensor_slices_yields_rows_in_the_given_structure() -> None:
    dataset = Dataset.from_tensor_slices({"x": np.arange(6).reshape(3, 2), "y": (np.arange(3.0),)})
    elements = list(dataset)
    assert [element["x"].tolist() for element in elements] == [[0, 1], [2, 3], [4, 5]]
    assert [element["y"][0] for element in elements] == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("value", "dtype"),
    [([1.0, 2.0], np.float32), ([1, 2], np.int32), ([[True]], np.bool_), (np.zeros(2), np.float64)],
)
def test_from_tensor_slices_converts_python_numbers_as_tensorflow_does(value: Any, dtype: Any) -> None:
    assert next(iter(Dataset.from_tensor_slices(value))).dtype == dtype


def test_from_tensor_slices_of_unequal_lengths_is_refused() -> None:
    with pytest.raises(ValueError, match="differ in their number of rows"):
        Dataset.from_tensor_slices((np.zeros(2), np.zeros(3)))


def test_from_tensor_slices_of_a_scalar_is_refused() -> None:
    with pytest.raises(ValueError, match="scalar"):
        Dataset.from_tensor_slices(1.0)


def test_range_takes_the_arguments_of_range() -> None:
    assert as_lists(Dataset.range(2, 9, 3)) == [2, 5, 8]
    assert next(iter(Dataset.range(3))).dtype == np.int64


def test_batch_gathers_rows_and_keeps_the_short_one() -> None:
    batches = list(Dataset.from_tensor_slices((np.arange(10).reshape(5, 2), np.arange(5))).batch(3))
    assert [(x.shape, y.tolist()) for x, y in batches] == [((3, 2), [0, 1, 2]), ((2, 2), [3, 4])]


def test_batch_drop_remainder_drops_the_short_one() -> None:
    dataset = Dataset.range(5).batch(3, drop_remainder=True)
    assert as_lists(dataset) == [[0, 1, 2]]
    assert len(dataset) == 1


def test_batch_over_repeat_straddles_the_epochs() -> None:
    assert as_lists(Dataset.range(3).repeat(2).batch(4)) == [[0, 1, 2, 0], [1, 2]]


def test_batch_of_batches_adds_an_axis() -> None:
    assert as_lists(Dataset.range(4).batch(2).batch(2)) == [[[0, 1], [2, 3]]]


@pytest.mark.parametrize("size", [0, -1])
def test_batch_without_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="batch_size"):
        Dataset.range(3).batch(size)


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        (Dataset.range(5).take(2), [0, 1]),
        (Dataset.range(5).take(-1), [0, 1, 2, 3, 4]),
        (Dataset.range(5).skip(3), [3, 4]),
        (Dataset.range(5).skip(-1), []),
        (Dataset.range(5).skip(7), []),
        (Dataset.range(2).repeat().skip(1).take(4), [1, 0, 1, 0]),
        (Dataset.range(5).take(4).skip(1).take(2), [1, 2]),
        (Dataset.range(2).repeat(0), []),
        (Dataset.range(0).repeat(), []),
    ],
)
def test_slices_and_repetitions_are_those_of_the_elements(dataset: Dataset, expected: list[int]) -> None:
    assert as_lists(dataset) == expected
    assert len(dataset) == len(expected)


def test_infinite_dataset_has_no_length() -> None:
    dataset = Dataset.range(2).repeat().batch(3)
    assert dataset.cardinality() == INFINITE_CARDINALITY
    with pytest.raises(TypeError, match="infinite"):
        len(dataset)


def test_shuffle_of_everything_is_the_permutation_of_seed_and_reading() -> None:
    dataset = Dataset.range(9).shuffle(100, seed=5)
    for reading in range(3):
        assert as_lists(dataset) == epoch_permutation(5, reading, 9).tolist()


def test_shuffle_then_repeat_counts_repetitions_as_readings() -> None:
    orders = [epoch_permutation(5, reading, 4).tolist() for reading in range(2)]
    assert as_lists(Dataset.range(4).shuffle(4, seed=5).repeat(2).batch(4)) == orders


def test_shuffle_without_reshuffling_keeps_its_order() -> None:
    dataset = Dataset.range(50).shuffle(50, seed=5, reshuffle_each_iteration=False)
    assert as_lists(dataset) == as_lists(dataset)


@pytest.mark.parametrize("num_elements", [10, 1024, 3000])
@pytest.mark.parametrize("buffer_size", [1, 2, 9, 1500])
def test_shuffle_through_a_buffer_moves_each_element_once_and_not_far_ahead(
    num_elements: int, buffer_size: int
) -> None:
    order = as_lists(Dataset.range(num_elements).shuffle(buffer_size, seed=1))
    assert sorted(order) == list(range(num_elements))
    if buffer_size < num_elements:
        assert all(element < place + buffer_size for place, element in enumerate(order))
    if buffer_size > 1:
        assert order != sorted(order)


def test_shuffle_through_a_buffer_repeats_itself_for_the_same_seed() -> None:
    first, second = (as_lists(Dataset.range(3000).shuffle(100, seed=8)) for _ in range(2))
    assert first == second


def test_shuffle_through_a_buffer_chooses_each_place_equally_often() -> None:
    firsts = Counter(next(iter(Dataset.range(20).shuffle(4, seed=seed))).item() for seed in range(2000))
    assert set(firsts) == {0, 1, 2, 3}
    assert all(abs(count - 500) < 100 for count in firsts.values())


def test_shuffle_of_mapped_elements_has_the_same_order_as_of_rows() -> None:
    rows = Dataset.range(30).shuffle(7, seed=2)
    mapped = Dataset.range(30).map(lambda n: n).shuffle(7, seed=2)
    assert as_lists(rows) == as_lists(mapped)


def test_shuffle_of_an_endless_dataset_goes_through_the_buffer() -> None:
    order = as_lists(Dataset.range(3).repeat().shuffle(5, seed=2).take(40))
    assert set(order) == {0, 1, 2}


def test_shuffle_without_seed_follows_the_global_one() -> None:
    before = random.get_seed()
    orders = []
    for _ in range(2):
        random.set_seed(11)
        orders.append(as_lists(Dataset.range(50).shuffle(50)))
    random.set_seed(before)
    assert orders[0] == orders[1]


def test_shuffle_without_buffer_is_refused() -> None:
    with pytest.raises(ValueError, match="buffer_size"):
        Dataset.range(3).shuffle(0)


def test_map_unpacks_tuples_and_keeps_dictionaries() -> None:
    pairs = Dataset.from_tensor_slices((np.arange(3), np.arange(3) * 10)).map(lambda a, b: {"sum": a + b})
    assert as_lists(pairs.map(lambda d: d["sum"]).batch(2)) == [[0, 11], [22]]


def test_map_on_batches_sees_batches() -> None:
    assert as_lists(Dataset.range(4).batch(2).map(lambda b: b * 2.0)) == [[0.0, 2.0], [4.0, 6.0]]


def test_prefetch_changes_nothing() -> None:
    assert as_lists(Dataset.range(3).prefetch(2)) == [0, 1, 2]


@pytest.mark.parametrize(
    ("num_elements", "batch_size", "num_replicas", "expected"),
    [
        (10, 4, 2, [[[0, 1], [2, 3]], [[4, 5], [6, 7]], [[8], [9]]]),
        (9, 4, 2, [[[0, 1], [2, 3]], [[4, 5], [6, 7]], [[8], []]]),
        (7, 5, 2, [[[0, 1, 2], [3, 4]], [[5], [6]]]),
        (10, 8, 3, [[[0, 1, 2], [3, 4, 5], [6, 7]], [[8], [9], []]]),
        (10, 10, 4, [[[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]]),
        (9, 9, 4, [[[0, 1, 2], [3, 4, 5], [6, 7, 8], []]]),
    ],
)
def test_batches_rebatched_for_replicas_are_tensorflows(
    num_elements: int, batch_size: int, num_replicas: int, expected: list[list[list[int]]]
) -> None:
    # Executed on TensorFlow 2.21 with AutoShardPolicy.DATA.
    batches = Dataset.range(num_elements).batch(batch_size)
    rebatched = [[part.tolist() for part in rebatch_for_replicas(batch, num_replicas)] for batch in batches]
    assert rebatched == expected


def test_cache_keeps_what_the_first_whole_reading_made() -> None:
    calls: list[int] = []

    def noted(x: Any) -> Any:
        calls.append(int(x))
        return x + len(calls)

    dataset = Dataset.range(4).shuffle(4, seed=1).map(noted).cache()
    next(iter(dataset))
    first = as_lists(dataset)
    assert len(calls) == 5
    assert as_lists(dataset) == first
    assert as_lists(dataset.batch(3)) == [first[:3], first[3:]]
    assert len(calls) == 5
    with pytest.raises(ValueError, match="read-only"):
        next(iter(dataset))[...] = 0


def test_cache_fixes_the_order_of_a_shuffle_before_it_alone() -> None:
    rows = Dataset.from_tensor_slices(np.arange(20))
    kept = rows.shuffle(20, seed=3).cache()
    assert as_lists(kept) == as_lists(kept) == as_lists(rows.shuffle(20, seed=3))
    mixed = rows.cache().shuffle(20, seed=3)
    assert as_lists(mixed) != as_lists(mixed)
    assert Dataset.range(2).repeat().cache().cardinality() == INFINITE_CARDINALITY
    with pytest.raises(ValueError, match="not in a file 'x'"):
        rows.cache("x")


def test_zip_yields_elements_of_all_until_one_ends() -> None:
    pairs = Dataset.from_tensor_slices((np.arange(3), np.arange(3) * 10))
    both = Dataset.zip((pairs, Dataset.range(5)))
    assert [(int(x), int(y), int(i)) for (x, y), i in both] == [(0, 0, 0), (1, 10, 1), (2, 20, 2)]
    assert len(both) == 3
    (batch,) = Dataset.zip({"a": Dataset.range(3), "b": pairs}).batch(3)
    assert (batch["a"].tolist(), batch["b"][1].tolist()) == ([0, 1, 2], [0, 10, 20])
    batched = Dataset.zip(Dataset.range(5).batch(2), Dataset.range(9).batch(2))
    assert (batched.batch_size, len(batched)) == (2, 3)
    assert Dataset.zip(pairs.batch(2), pairs).batch_size is None
    endless = Dataset.range(2).repeat()
    assert Dataset.zip(endless, endless).cardinality() == INFINITE_CARDINALITY


def test_apply_calls_a_function_of_the_dataset() -> None:
    assert as_lists(Dataset.range(3).apply(lambda dataset: dataset.batch(2))) == [[0, 1], [2]]


def test_names_that_are_absent_say_what_to_use() -> None:
    with pytest.raises(NotOfferedError, match=r"Dataset.from_generator is not offered by distopt: make arrays"):
        _ = Dataset.from_generator  # type: ignore[attr-defined]
    with pytest.raises(NotOfferedError, match=r"Dataset.filter is not offered by distopt: arrange"):
        _ = Dataset.range(3).filter  # type: ignore[attr-defined]
    assert not hasattr(Dataset, "__wrapped__")
