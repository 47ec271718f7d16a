"""Waits for MPI's requests: requests are stand-ins here, done when a test says so."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from distopt.comm.in_process import InProcessGroup
from distopt.comm.mpi_waits import Requests, Waits


class Request:
    """Is done once it was tested as often as ``patience`` says; its status is told its ``tag``."""

    def __init__(self, tag: int = 0, patience: int = 0) -> None:
        self.tag, self.patience = tag, patience

    def Get_status(self, status: Any = None) -> bool:
        if status is not None:
            status.tag = self.tag
        return self.patience <= 0

    @staticmethod
    def Testall(requests: list[Any], statuses: list[Any]) -> bool:
        for request in requests:
            request.patience -= 1
        if not all(request.patience < 0 for request in requests):
            return False
        for request, status in zip(requests, statuses, strict=True):
            assert status.tag is None, "statuses of requests that are done mean nothing any more"
            status.tag = request.tag
        return True


MPI: Any = SimpleNamespace(Request=Request, Status=lambda: SimpleNamespace(tag=None))


def wait_for(requests: list[Any], peers: list[int], lengths: list[int]) -> Requests:
    return Requests("a test", 0.0, requests, peers, lengths)


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 1000])
def test_all_requests_are_waited_for_and_their_statuses_are_in_order(count: int) -> None:
    waits = Waits(MPI, InProcessGroup(2).communicators[0], lambda _: None)
    requests = [Request(tag, patience=tag % 3) for tag in range(count)]
    wait = wait_for(requests, [1] * count, [8] * count)
    assert [status.tag for status in waits.complete(wait, lambda _: None)] == list(range(count))
    assert waits.current is None
    assert wait.missing() == []


def test_rank_has_come_once_anything_of_it_is_there_or_it_has_got_what_it_only_gets() -> None:
    done, under_way = Request(), Request(patience=1)
    peers = [1, 1, 2, 2, 1, 2, 3, 4]
    wait = wait_for([under_way, done, under_way, under_way, under_way, done, under_way, done], peers, [8] * 4)
    assert wait.missing() == [1, 2, 3]
    assert wait.silent() == [2, 3]


def test_what_has_come_is_what_is_done_and_was_not_tested() -> None:
    requests: list[Any] = [None, Request(tag=3), Request(tag=4, patience=1), Request(tag=5), Request(tag=6)]
    wait = wait_for(requests, [1, 2, 3, 4, 5], [10, 20, 30, 40])
    assert [(status.tag, length, peer) for status, length, peer in wait.come(MPI.Status)] == [(3, 20, 2), (5, 40, 4)]
