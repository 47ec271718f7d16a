"""The lifeline: orders in, and the launcher's end noticed."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from queue import SimpleQueue

import pytest

from distopt.runtime.lifeline import ChildLost, Lifeline

LOST = b'{"lost": {"role": "worker", "index": 1, "pid": 12, "status": "killed by SIGKILL"}}\n'


class _Launcher:
    """The other end of the pipe, and what the lifeline made of it."""

    def __init__(self, grace_s: float) -> None:
        reader, self._writer = os.pipe()
        self.events: SimpleQueue[object] = SimpleQueue()
        self._stream = os.fdopen(reader, "rb")
        self.lifeline = Lifeline(
            self._stream,
            grace_s=grace_s,
            last_words=lambda reason: self.events.put(("last words", reason)),
            end_process=lambda status: self.events.put(("end", status)),
        )

    def subscribe(self) -> None:
        self.lifeline.subscribe(
            on_lost=lambda reason: self.events.put(("lost", reason)),
            on_stop=lambda: self.events.put("stop"),
            on_child_lost=self.events.put,
        )

    def send(self, data: bytes) -> None:
        os.write(self._writer, data)

    def hang_up(self) -> None:
        if self._writer >= 0:
            os.close(self._writer)
            self._writer = -1

    def close(self) -> None:
        self.hang_up()
        for thread in threading.enumerate():
            if thread.name == "lifeline":
                thread.join(5.0)
        self._stream.close()


@pytest.fixture
def launcher(request: pytest.FixtureRequest) -> Iterator[_Launcher]:
    made = _Launcher(getattr(request, "param", 60.0))
    yield made
    made.close()


def test_lifeline_passes_on_orders_in_order(launcher: _Launcher) -> None:
    launcher.subscribe()
    launcher.send(LOST + b'{"stop": true}\n')
    lost = launcher.events.get(timeout=5)
    assert lost == ChildLost(role="worker", index=1, pid=12, status="killed by SIGKILL")
    assert str(lost) == "worker 1 (pid 12) was killed by SIGKILL"
    assert launcher.events.get(timeout=5) == "stop"
    assert not launcher.lifeline.is_lost


def test_lifeline_tells_a_late_subscriber_what_happened_before(launcher: _Launcher) -> None:
    launcher.send(b'{"stop": true}\n')
    launcher.hang_up()
    assert launcher.lifeline._is_lost.wait(5)
    launcher.subscribe()
    assert launcher.events.get(timeout=5) == "stop"
    assert launcher.events.get(timeout=5) == ("lost", "the launcher (`distopt train`) is gone")


@pytest.mark.parametrize("launcher", [0.0], indirect=True)
def test_lifeline_after_the_grace_speaks_last_words_and_ends_the_process(launcher: _Launcher) -> None:
    launcher.hang_up()
    assert launcher.events.get(timeout=5) == ("last words", "the launcher (`distopt train`) is gone")
    assert launcher.events.get(timeout=5) == ("end", 1)


@pytest.mark.parametrize("launcher", [0.0], indirect=True)
def test_lifeline_ends_the_process_although_a_subscriber_is_stuck(launcher: _Launcher) -> None:
    released = threading.Event()
    launcher.lifeline.subscribe(on_lost=lambda reason: released.wait(10) and None)
    launcher.hang_up()
    assert launcher.events.get(timeout=5) == ("last words", "the launcher (`distopt train`) is gone")
    assert launcher.events.get(timeout=5) == ("end", 1)
    released.set()


def test_lifeline_survives_an_order_it_does_not_know(launcher: _Launcher) -> None:
    launcher.subscribe()
    launcher.send(b'nonsense\n{"stop": 3}\n{"stop": true}\n')
    assert launcher.events.get(timeout=5) == "stop"


def test_lifeline_without_a_launcher_is_never_lost_and_can_be_asked_to_stop() -> None:
    lifeline = Lifeline(None)
    asked = threading.Event()
    lifeline.subscribe(on_lost=lambda reason: None, on_stop=asked.set)
    lifeline.request_stop()
    assert asked.wait(5)
    assert not lifeline.is_lost


@pytest.mark.parametrize(
    ("status", "text"),
    [
        ("killed by SIGKILL", "server 0 (pid 9) was killed by SIGKILL"),
        ("ended with status 3", "server 0 (pid 9) ended with status 3"),
    ],
)
def test_child_lost_reads_as_a_sentence(status: str, text: str) -> None:
    assert str(ChildLost(role="server", index=0, pid=9, status=status)) == text
