"""What is sent to a peer that has not come: requests are stand-ins here, which a test answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distopt.comm.mpi_transfers import FIRST_BYTES, MOST_BYTES, Sends
from distopt.types import Array

PIECE = 60 << 10


class Request:
    def __init__(self, peer: int, number: int, asks: bool, is_answered: bool) -> None:
        self.peer, self.number, self.asks, self.is_answered = peer, number, asks, is_answered

    def __bool__(self) -> bool:
        return False  # as one of mpi4py is once it is done

    def Get_status(self) -> bool:
        return self.is_answered


class Wire:
    """Notes what is sent, and answers nobody before it is waited for, or everybody in ``come`` at once."""

    def __init__(self, come: frozenset[int] = frozenset()) -> None:
        self.come = come
        self.begun: list[Request] = []
        self.waits: list[list[int]] = []

    def send(self, peer: int, array: Array, asks: bool) -> Any:
        self.begun.append(Request(peer, int(array[0]), asks, peer in self.come))
        return self.begun[-1]

    def complete(self, requests: list[Any], peers: list[int]) -> None:
        assert [request.peer for request in requests] == peers
        for request in requests:
            assert request.asks
            request.is_answered = True
        self.waits.append(peers)

    def numbers(self, peer: int) -> list[int]:
        return [request.number for request in self.begun if request.peer == peer]


def pieces(count: int) -> list[Array]:
    return [np.broadcast_to(np.uint16(number), PIECE) for number in range(count)]


def test_little_is_sent_at_once_and_asks_nothing() -> None:
    wire = Wire()
    sends = Sends(wire.send)
    for number, piece in enumerate(pieces(FIRST_BYTES // PIECE)):
        sends.add(number % 2, piece)
    assert not any(request.asks for request in wire.begun)
    sends.finish(wire.complete)
    assert wire.waits == []
    assert len(wire.begun) == FIRST_BYTES // PIECE


def test_peer_that_has_not_come_is_sent_a_few_megabytes_and_the_rest_once_it_has() -> None:
    wire = Wire()
    sends = Sends(wire.send)
    for piece in pieces(200):
        sends.add(1, piece)
    assert MOST_BYTES <= PIECE * len(wire.begun) < MOST_BYTES + PIECE
    (question,) = [request for request in wire.begun if request.asks]
    question.is_answered = True
    sends.add(1, pieces(1)[0])
    assert wire.numbers(1) == [*range(200), 0]
    sends.finish(wire.complete)
    assert wire.waits == []


def test_one_wait_is_for_all_that_have_not_come() -> None:
    wire = Wire(come=frozenset([2]))
    sends = Sends(wire.send)
    for piece in pieces(200):
        for peer in (1, 2, 3):
            sends.add(peer, piece)
    assert wire.numbers(2) == list(range(200))
    sends.finish(wire.complete)
    assert wire.waits == [[1, 3]]
    for peer in (1, 2, 3):
        assert wire.numbers(peer) == list(range(200))
        assert sum(request.asks for request in wire.begun if request.peer == peer) == 1


def test_buffer_longer_than_what_may_be_sent_is_followed_by_the_rest() -> None:
    wire = Wire()
    sends = Sends(wire.send)
    for number in range(3):
        sends.add(1, np.broadcast_to(np.uint16(number), 2 * MOST_BYTES))
    sends.finish(wire.complete)
    assert wire.numbers(1) == [0, 1, 2]
    assert wire.waits == [[1]]


@pytest.mark.parametrize("come", [frozenset[int](), frozenset([0, 2]), frozenset(range(5))])
@given(peers=st.lists(st.integers(0, 4), max_size=400))
def test_everything_is_sent_once_and_in_order_to_each_peer(come: frozenset[int], peers: list[int]) -> None:
    wire = Wire(come)
    sends = Sends(wire.send)
    for peer, piece in zip(peers, pieces(len(peers)), strict=True):
        sends.add(peer, piece)
    sends.finish(wire.complete)
    for peer in range(5):
        assert wire.numbers(peer) == [number for number, to in enumerate(peers) if to == peer]
