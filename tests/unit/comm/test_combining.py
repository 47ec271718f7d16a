from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest

from distopt.aggregation import Aggregator, Sum
from distopt.canonical_sum import Node
from distopt.comm.combining import Inbox, Packed, check, even_parts
from distopt.comm.communicator import Communicator, Contribution, Hosting
from distopt.testing import run_replicas
from distopt.types import Array

LIKE = [np.zeros(4, np.float32)]


class Widening(Aggregator):
    """A mistake that users make: the mean of float32 comes out as float64."""

    name: ClassVar[str] = "widening"

    def combine(self, contributions: Array) -> Array:
        return np.asarray(contributions.mean(axis=0, dtype=np.float64))


def contribution(*arrays: Array, start: int = 0, stop: int = 2) -> Contribution:
    return Contribution(Node(start, stop), arrays)


@pytest.mark.parametrize(
    ("contributions", "message"),
    [
        ([], "rank 0 contributes replicas 0..1 to the sum, but was given nothing"),
        ([contribution(LIKE[0], stop=1)], "but was given replica 0"),
        ([contribution()], "differ from `like` in count, length or dtype"),
        ([contribution(np.zeros(3, np.float32))], "differ from `like` in count, length or dtype"),
        ([contribution(np.zeros(4))], "differ from `like` in count, length or dtype"),
        ([contribution(np.zeros(8, np.float32)[::2])], "the arrays of replicas 0..1 are not contiguous"),
    ],
)
def test_check_of_a_wrong_contribution_is_refused(contributions: list[Contribution], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(contributions, Hosting.contiguous(3, 2), Sum(), LIKE, 0, 2)


def test_check_of_arrays_that_are_not_flat_is_refused() -> None:
    with pytest.raises(ValueError, match=r"combined flat, not in shape \(2, 2\)"):
        check([contribution(np.zeros((2, 2)))], Hosting.contiguous(3, 2), Sum(), [np.zeros((2, 2))], 0, 2)


def test_check_of_a_hosting_for_other_ranks_is_refused() -> None:
    with pytest.raises(ValueError, match="the hosting is of 2 ranks, the communicator has 3"):
        check([contribution(*LIKE)], Hosting.contiguous(3, 2), Sum(), LIKE, 0, 3)


def test_combine_by_an_aggregator_that_changes_the_dtype_is_refused_by_name() -> None:
    def replica(comm: Communicator) -> None:
        hosting = Hosting.contiguous(2, 2)
        comm.combine([Contribution(node, tuple(LIKE)) for node in hosting.leaves[comm.rank]], hosting, Widening(), LIKE)

    with pytest.raises(ValueError, match=r"the widening of float32 arrays .* came out as float64"):
        run_replicas(replica, 2)


@pytest.mark.parametrize("length", [0, 1, 2, 7, 64])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_even_parts_cover_an_array_in_order(size: int, length: int) -> None:
    parts = even_parts([np.arange(length)], size)
    assert np.concatenate([np.arange(length)[part] for (part,) in parts]).tolist() == list(range(length))
    lengths = [part.stop - part.start for (part,) in parts]
    assert max(lengths) - min(lengths) <= 1


def test_packed_arrays_unpack_to_their_shapes_without_sharing_memory() -> None:
    arrays = [np.arange(6.0).reshape(2, 3), np.array(7, np.int64), np.zeros((0, 2)), np.arange(3.0)]
    packed = Packed(arrays)
    assert [(flat.dtype, len(flat)) for flat in packed.flat] == [(np.dtype(float), 9), (np.dtype(np.int64), 1)]
    for unpacked, array in zip(packed.unpack(packed.flat), arrays, strict=True):
        assert unpacked.shape == array.shape
        assert not np.shares_memory(unpacked, array)
        np.testing.assert_array_equal(unpacked, array)


def test_inbox_gives_separate_arrays_and_the_same_memory_after_clear() -> None:
    inbox = Inbox()
    for _ in range(2):
        inbox.clear()
        first, second = inbox.empty(5, np.dtype(np.float32)), inbox.empty(3, np.dtype(np.float64))
        assert not np.shares_memory(first, second)
        assert (len(first), len(second)) == (5, 3)
    inbox.clear()
    assert np.shares_memory(inbox.empty(5, np.dtype(np.float32)), first)
