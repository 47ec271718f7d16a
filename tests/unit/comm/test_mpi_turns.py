"""Who is sent to when: requests are names here, and are done when somebody waits for them."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from distopt.comm.mpi_turns import MOST_BYTES_ELSEWHERE, Turns
from distopt.types import Array

FEW, MANY = MOST_BYTES_ELSEWHERE // 2, 2 * MOST_BYTES_ELSEWHERE


class Wire:
    """Begins sends, and knows what is under way."""

    def __init__(self) -> None:
        self.received: list[int] = []
        """The peers that are received from."""
        self.under_way: dict[str, tuple[int, int]] = {}
        self.begun: list[tuple[int, int]] = []
        """Peer, and the number that the buffer holds."""
        self.num_waits = 0

    def send(self, peer: int, array: Array) -> Any:
        elsewhere = sum(length for other, length in self.under_way.values() if other != peer)
        assert elsewhere <= MOST_BYTES_ELSEWHERE
        request = f"send {len(self.begun)}"
        self.under_way[request] = peer, len(array)
        self.begun.append((peer, int(array[0])))
        return request

    def receive(self, peer: int, array: Array) -> Any:
        del array
        self.received.append(peer)
        return "a receive"

    def complete(self, requests: list[Any], peers: list[int], num_bytes: int) -> None:
        found = [self.under_way.pop(request) for request in requests]
        assert found, "nobody waits for nothing"
        assert [peer for peer, _ in found] == peers
        assert sum(length for _, length in found) == num_bytes
        self.num_waits += 1


def numbered(lengths: list[tuple[int, int]]) -> list[tuple[int, Array]]:
    return [(peer, np.broadcast_to(np.uint8(number), length)) for number, (peer, length) in enumerate(lengths)]


def carry(sends: list[tuple[int, Array]]) -> Wire:
    wire = Wire()
    turns = Turns(wire.send, wire.receive, [])
    for peer, array in sends:
        turns.add_send(peer, array)
    turns.finish(wire.complete)
    return wire


def test_few_bytes_go_to_all_at_once() -> None:
    wire = carry(numbered([(1, FEW), (2, FEW), (3, 1 << 10)]))
    assert wire.begun == [(1, 0), (2, 1), (3, 2)]
    assert wire.num_waits == 0


def test_many_bytes_go_to_one_peer_after_another() -> None:
    pieces = [(peer, MANY) for _ in range(3) for peer in (1, 2, 0)]
    wire = carry(numbered(pieces))
    assert wire.begun == [(1, 0), (1, 3), (1, 6), (2, 1), (2, 4), (2, 7), (0, 2), (0, 5), (0, 8)]
    assert wire.num_waits == 2


def test_next_peer_is_begun_with_while_the_last_bytes_to_one_are_under_way() -> None:
    wire = carry(numbered([(1, MANY), (1, FEW), (2, MANY)]))
    assert wire.begun == [(1, 0), (1, 1), (2, 2)]
    assert [peer for peer, _ in wire.under_way.values()] == [1, 2]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, MANY)), max_size=24))
def test_everything_is_sent_once_and_in_order_to_each_peer(lengths: list[tuple[int, int]]) -> None:
    wire = carry(numbered(lengths))
    for peer in range(5):
        assert [n for to, n in wire.begun if to == peer] == [n for n, (to, _) in enumerate(lengths) if to == peer]


def test_no_more_receives_are_begun_than_sends_until_all_of_these_are() -> None:
    wire = Wire()
    turns = Turns(wire.send, wire.receive, numbered([(1, 3), (2, 5), (1, 7)]))
    turns.receive()
    assert wire.received == []
    turns.add_send(2, np.zeros(1, np.uint8))
    for _ in range(2):
        turns.receive()
        assert wire.received == [1]
    turns.receive_all()
    assert wire.received == turns.sources == [1, 2, 1]
    assert turns.lengths == [3, 5, 7]
    turns.receive()
    assert len(turns.receives) == 3
