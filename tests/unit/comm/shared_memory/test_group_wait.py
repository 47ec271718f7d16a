"""What a wait of a host group makes of what the transport knows."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from distopt.comm.shared_memory import group_wait
from distopt.comm.shared_memory.group_wait import GroupWait
from distopt.errors import PeerLostError


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    mine, others = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    mine.setblocking(False)
    yield mine, others
    mine.close()
    others.close()


def look_once(link: socket.socket, monkeypatch: pytest.MonkeyPatch, before_it_has_left: Callable[[], Any]) -> None:
    """Look at a wait for rank 1, which is found to have left; ``before_it_has_left`` it was not missing any more."""

    def look(missing: Sequence[int], waiting: str) -> None:
        before_it_has_left()
        raise PeerLostError(f"rank {missing[0]} left; {waiting}")

    monkeypatch.setattr(group_wait, "LOOK_EVERY_S", 0.0)
    told: Any = SimpleNamespace(rank=0, step=3, phase="", timeout_s=10.0, look=look, elsewhere=lambda _: "")
    GroupWait(told, (0, 1), [(1, link)], "the end", b"", time.monotonic()).look(select.poll())


def test_a_member_that_has_come_and_left_since_it_was_missing_is_not_lost(
    sockets: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, others = sockets
    look_once(mine, monkeypatch, lambda: others.send(b"here"))
    assert mine.recv(10) == b"here"


def test_a_member_that_has_left_without_coming_is_lost(
    sockets: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PeerLostError, match="rank 1 left"):
        look_once(sockets[0], monkeypatch, lambda: None)
