from __future__ import annotations

import pytest

from distopt.canonical_sum import Node
from distopt.comm.hosting import Hosting


def test_hosting_contiguous_covers_and_leaves_are_those_of_each_rank() -> None:
    hosting = Hosting.contiguous(8, 3)
    assert hosting.hosted == ((0, 1, 2), (3, 4, 5), (6, 7))
    assert hosting.covers[1] == (Node(3, 4), Node(4, 6))
    assert hosting.leaves[1] == (Node(3, 4), Node(4, 5), Node(5, 6))


def test_hosting_with_more_ranks_than_replicas_leaves_some_without() -> None:
    hosting = Hosting.contiguous(2, 4)
    assert hosting.hosted == ((0,), (1,), (), ())
    assert hosting.covers[3] == hosting.leaves[3] == ()


def test_hosting_is_a_value() -> None:
    assert Hosting.contiguous(5, 2) == Hosting(5, ((0, 1, 2), (3, 4)))
    assert Hosting.contiguous(5, 2) != Hosting(5, ((0, 1), (2, 3, 4)))


@pytest.mark.parametrize("hosted", [((0, 1),), ((0, 1), (1, 2)), ((0, 1), (2, 3))])
def test_hosting_that_is_no_partition_is_refused(hosted: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ValueError, match="each of 3 replicas needs one host"):
        Hosting(3, hosted)
