"""Streams are functions of their names."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from distopt import random
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
