"""One collection of contributions: accepted, repeated, refused, missing."""

from __future__ import annotations

import itertools

import msgspec
import numpy as np
import pytest

from distopt.canonical_sum import Node, SumTree, contiguous_ranges
from distopt.errors import NondeterministicReplicaError, RemoteProtocolError, StaleGradientError
from distopt.protocol.messages import Pull, Push, RoundHead, RoundKind
from distopt.protocol.rounds import Outcome, Round

HEAD = RoundHead(5, RoundKind.UPDATE, 17, 8)
HOSTED = ((0, 1, 2, 3), (4, 5, 6, 7), ())


def push(
    node: Node,
    *,
    sender: int = 0,
    digest: bytes = b"d" * 16,
    head: RoundHead = HEAD,
    hypers: dict[str, float] | None = None,
) -> Push:
    return Push(head=head, sender=sender, node=node, digest=digest, hypers=hypers)


def pull(sender: int, head: RoundHead = HEAD) -> Pull:
    return Pull(head=head, sender=sender)


ARRAYS = (np.zeros(2),)


def test_round_is_complete_when_all_is_covered_and_all_have_asked() -> None:
    round_ = Round(HEAD, HOSTED)
    assert round_.receive(push(Node(4, 8), sender=1), ARRAYS) is Outcome.ACCEPTED
    assert round_.receive(push(Node(0, 4), hypers={"learning_rate": 0.5}), ARRAYS) is Outcome.ACCEPTED
    for worker in range(3):
        assert not round_.is_complete
        round_.ask(pull(worker))
    assert round_.is_complete
    assert round_.hypers == {"learning_rate": 0.5}
    assert set(round_.contributions) == {Node(0, 4), Node(4, 8)}
    assert round_.missing() == ""


@pytest.mark.parametrize("num_replicas", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_round_takes_the_covers_of_any_hosting_in_any_order(num_replicas: int, num_workers: int) -> None:
    tree = SumTree(num_replicas)
    hosted = contiguous_ranges(num_replicas, num_workers)
    head = RoundHead(0, RoundKind.UPDATE, 0, num_replicas)
    for order in itertools.permutations(range(num_workers)):
        round_ = Round(head, hosted)
        for worker in order:
            assert not round_.is_complete
            for node in tree.cover(hosted[worker]):
                round_.receive(push(node, sender=worker, head=head), ARRAYS)
            round_.ask(pull(worker, head))
        assert round_.is_complete


def test_repeat_with_the_same_digest_is_dropped() -> None:
    round_ = Round(HEAD, HOSTED)
    round_.receive(push(Node(0, 4)), ARRAYS)
    assert round_.receive(push(Node(0, 4), sender=1), (np.ones(2),)) is Outcome.REPEATED
    assert round_.contributions[Node(0, 4)] is ARRAYS


def test_same_node_with_another_digest_names_both_workers_and_the_step() -> None:
    round_ = Round(HEAD, HOSTED)
    round_.receive(push(Node(0, 4)), ARRAYS)
    with pytest.raises(NondeterministicReplicaError, match=r"worker 0 and worker 1 .* replicas 0\.\.3 in step 17"):
        round_.receive(push(Node(0, 4), sender=1, digest=b"e" * 16), ARRAYS)
    assert set(round_.contributions) == {Node(0, 4)}


@pytest.mark.parametrize("node", [Node(0, 2), Node(3, 4), Node(0, 8)])
def test_overlap_is_refused_and_changes_nothing(node: Node) -> None:
    round_ = Round(HEAD, HOSTED)
    round_.receive(push(Node(0, 4)), ARRAYS)
    with pytest.raises(RemoteProtocolError, match=r"over replicas 0\.\.3 in step 17"):
        round_.receive(push(node, sender=1), ARRAYS)
    assert round_.missing() == "worker 0, replicas 4..7 of worker 1, worker 2"


@pytest.mark.parametrize("node", [Node(1, 3), Node(0, 9), Node(4, 4), Node(-1, 1)])
def test_node_outside_of_the_tree_is_refused(node: Node) -> None:
    with pytest.raises(RemoteProtocolError, match="no part of the sum"):
        Round(HEAD, HOSTED).receive(push(node), ARRAYS)


def test_earlier_round_is_stale_and_another_one_is_refused() -> None:
    round_ = Round(HEAD, HOSTED)
    with pytest.raises(StaleGradientError, match="worker 0 is late with update round 4 of step 16"):
        round_.receive(push(Node(0, 4), head=RoundHead(4, RoundKind.UPDATE, 16, 8)), ARRAYS)
    for head in (RoundHead(6, RoundKind.UPDATE, 18, 8), RoundHead(5, RoundKind.REDUCE, 17, 8, "sum")):
        with pytest.raises(RemoteProtocolError, match="takes part in"):
            round_.ask(pull(0, head))


def test_worker_may_ask_with_its_last_push() -> None:
    head = RoundHead(0, RoundKind.UPDATE, 0, 1)
    round_ = Round(head, ((0,),))
    round_.receive(msgspec.structs.replace(push(Node(0, 1), head=head), asks=True), ARRAYS)
    assert round_.is_complete


def test_unknown_worker_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="worker 3 does not exist; there are 3"):
        Round(HEAD, HOSTED).ask(pull(3))


def test_round_over_another_number_of_leaves_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="over 8 leaves, not 2"):
        Round(HEAD, ((0,), (1,)))


def test_missing_names_replicas_by_worker_and_workers_that_have_not_asked() -> None:
    round_ = Round(HEAD, HOSTED)
    assert round_.missing() == "replicas 0..3 of worker 0, replicas 4..7 of worker 1, worker 2"
    round_.receive(push(Node(4, 6), sender=1), ARRAYS)
    assert "replicas 6..7 of worker 1" in round_.missing()


def test_missing_of_a_gather_names_workers_alone() -> None:
    head = RoundHead(0, RoundKind.GATHER, 3, 2)
    round_ = Round(head, ((0,), (1,)))
    round_.receive(push(Node(1, 2), sender=1, head=head), ARRAYS)
    round_.ask(pull(1, head))
    assert round_.missing() == "worker 0"
    with pytest.raises(NondeterministicReplicaError, match="the part of rank 1"):
        round_.receive(push(Node(1, 2), sender=1, head=head, digest=b"e" * 16), ARRAYS)
