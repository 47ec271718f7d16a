"""Streams are functions of their names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from distopt import distribute, random
from distopt.comm.communicator import Communicator
from distopt.random import Domain
from distopt.testing import run_replicas


@pytest.fixture(autouse=True)
def _restored_seed() -> Iterator[None]:
    seed = random.get_seed()
    yield
    random.set_seed(seed)


def test_stream_of_the_same_names_draws_the_same_numbers() -> None:
    np.testing.assert_array_equal(
        random.stream(Domain.EPOCH, 3, 5).random_raw(8), random.stream(Domain.EPOCH, 3, 5).random_raw(8)
    )


@pytest.mark.parametrize("other", [(Domain.SPLIT, 3, 5), (Domain.EPOCH, 4, 5), (Domain.EPOCH, 3, 6)])
def test_stream_of_another_name_draws_other_numbers(other: tuple[Domain, int, int]) -> None:
    ours = random.stream(Domain.EPOCH, 3, 5).random_raw(8)
    assert not np.isin(ours, random.stream(*other).random_raw(8)).any()


def test_stream_raw_numbers_are_the_recorded_ones() -> None:
    # NumPy 2.4.2, Philox4x64-10; a change would change the data of every recorded job.
    assert [int(n) for n in random.stream(Domain.EPOCH, 7, 1).random_raw(2)] == [
        15934997034538813590,
        5974038831710081363,
    ]


def test_stream_negative_seed_is_taken_modulo_the_word() -> None:
    np.testing.assert_array_equal(
        random.stream(Domain.EPOCH, -1).random_raw(2), random.stream(Domain.EPOCH, 2**64 - 1).random_raw(2)
    )


def test_stream_seed_that_is_no_integer_is_refused() -> None:
    with pytest.raises(TypeError):
        random.stream(Domain.EPOCH, 1.5)  # type: ignore[arg-type]  # the refusal is what is tested


def test_next_stream_after_set_seed_starts_again() -> None:
    random.set_seed(5)
    first = [random.next_stream().random_raw() for _ in range(3)]
    random.set_seed(5)
    again = [random.next_stream().random_raw() for _ in range(3)]
    assert first == again
    assert len(set(first)) == 3


def test_next_stream_of_one_domain_does_not_move_another() -> None:
    random.set_seed(5)
    expected = random.next_stream(Domain.VARIABLE).random_raw()
    random.set_seed(5)
    random.next_stream(Domain.SHUFFLE_SEED)
    assert random.next_stream(Domain.VARIABLE).random_raw() == expected


def test_seed_scope_leaves_the_seed_and_the_counts_outside_alone() -> None:
    random.set_seed(5)
    expected = [random.next_stream().random_raw() for _ in range(2)]
    random.set_seed(5)
    drawn = [random.next_stream().random_raw()]
    with random.seed_scope(6):
        assert random.get_seed() == 6
        inside = random.next_stream().random_raw()
    drawn.append(random.next_stream().random_raw())
    assert drawn == expected
    assert inside == random.stream(Domain.VARIABLE, 6, 0).random_raw()


def test_seed_scope_of_another_thread_is_its_own() -> None:
    def worker(comm: Communicator) -> list[int]:
        with random.seed_scope(9):
            drawn = [random.next_stream().random_raw()]
            comm.barrier()
            drawn.append(random.next_stream().random_raw())
        return drawn

    first, *others = run_replicas(worker, 3)
    assert others == [first, first]


@pytest.mark.parametrize("length", [0, 1, 2, 5, 1000])
def test_permutation_holds_each_number_once(length: int) -> None:
    order = random.permutation(random.stream(Domain.EPOCH, 0), length)
    assert sorted(order) == list(range(length))
    assert order.dtype == np.int64


# ---------------------------------------------------------------- tensors of random values


def test_values_follow_their_distribution_and_dtype() -> None:
    random.set_seed(5)
    normal = random.normal([4000], mean=3.0, stddev=2.0, dtype=np.float64).numpy()
    assert abs(normal.mean() - 3) < 0.2
    assert abs(normal.std() - 2) < 0.1
    cut = random.truncated_normal((2000,), stddev=0.5).numpy()
    assert cut.dtype == np.float32
    assert np.abs(cut).max() <= 1.0
    even = random.uniform([2000], -1, 3).numpy()
    assert -1 <= even.min() < -0.9 < 2.9 < even.max() < 3
    whole = random.uniform([300], 2, 5, np.int32).numpy()
    assert whole.dtype == np.int32
    assert set(whole.tolist()) == {2, 3, 4}
    assert sorted(random.shuffle([3, 1, 2]).numpy().tolist()) == [1, 2, 3]
    assert random.uniform([]).shape == ()


def test_uniform_of_a_coarse_dtype_never_reaches_its_end() -> None:
    assert float(random.uniform([20000], dtype=np.float16).numpy().max()) < 1


@pytest.mark.parametrize(("low", "high"), [(0, None), (3, 3)])
def test_uniform_integers_without_an_interval_are_refused(low: int, high: int | None) -> None:
    with pytest.raises(ValueError, match="minval < maxval"):
        random.uniform([1], low, high, np.int32)


def test_values_are_a_function_of_the_seed_and_of_how_much_was_drawn() -> None:
    def draws(seed: int | None) -> list[bytes]:
        random.set_seed(3)
        return [random.normal([3], seed=seed).numpy().tobytes() for _ in range(2)]

    for seed in (None, 3):
        first, second = draws(seed)
        assert [first, second] == draws(seed)
        assert first != second
    assert draws(None) != draws(3)
    random.set_seed(4)
    assert random.normal([3]).numpy().tobytes() != draws(None)[0]


@pytest.mark.parametrize("num_replicas", [1, 2, 5])
def test_every_replica_draws_values_of_its_own_whoever_draws_before(num_replicas: int) -> None:
    strategy = distribute.MirroredStrategy(num_replicas)

    def draw(extra: bool) -> list[bytes]:
        def step() -> Any:
            return random.normal([2])

        random.set_seed(1)
        if extra:
            random.normal([7])
        return [value.numpy().tobytes() for value in strategy.experimental_local_results(strategy.run(step))]

    values = draw(extra=False)
    assert len(set(values)) == num_replicas
    assert values == draw(extra=True)
