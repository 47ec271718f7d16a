"""The child's end of the pipe from its launcher: orders come in, and its end means that the launcher is gone.

A launcher that is killed cannot tell its children, but the kernel closes its ends of their pipes. Each line is one JSON
object: ``{"stop": true}``, or ``{"lost": {"role": "worker", "index": 1, "pid": 123, "status": "killed by SIGKILL"}}``.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import sys
import threading
from collections.abc import Callable
from typing import BinaryIO

import msgspec

_LOGGER = logging.getLogger(__name__)
_PR_SET_PDEATHSIG = 1


class ChildLost(msgspec.Struct, frozen=True, kw_only=True):
    """A process of the job ended that should not have."""

    role: str
    index: int | None
    pid: int
    status: str
    """How it ended, in words."""

    def __str__(self) -> str:
        name = self.role if self.index is None else f"{self.role} {self.index}"
        return f"{name} (pid {self.pid}) was {self.status}".replace("was ended", "ended")


class Order(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line from the launcher."""

    stop: bool = False
    lost: ChildLost | None = None


def _ignore(_: object) -> None:
    pass


class Lifeline:
    """Listens to the launcher from the moment it is made; see the module's text.

    ``stream`` is the child's end of the pipe; None for a program without a launcher, which is then never lost.
    Once the launcher is gone the process has ``grace_s`` to end by itself; then ``last_words`` is called with the
    reason and ``end_process`` with status 1.
    """

    def __init__(
        self,
        stream: BinaryIO | None,
        *,
        grace_s: float = 3.0,
        last_words: Callable[[str], None] = _ignore,
        end_process: Callable[[int], object] = os._exit,
    ) -> None:
        self._grace_s = grace_s
        self._last_words = last_words
        self._end_process = end_process
        self._lock = threading.Lock()
        self._happened: list[tuple[str, ChildLost | str | None]] = []
        self._subscriber: Callable[[str, ChildLost | str | None], None] | None = None
        self._is_lost = threading.Event()
        if stream is not None:
            threading.Thread(target=self._listen, args=(stream,), name="lifeline", daemon=True).start()

    @property
    def is_lost(self) -> bool:
        """Whether the launcher is gone."""
        return self._is_lost.is_set()

    def subscribe(
        self,
        *,
        on_lost: Callable[[str], None],
        on_stop: Callable[[], None] = lambda: None,
        on_child_lost: Callable[[ChildLost], None] = _ignore,
    ) -> None:
        """Call these from now on, also for what has happened already; on the lifeline's thread, one at a time.

        ``on_lost`` gets the reason in words, ``on_child_lost`` who ended and how.
        """

        def call(event: str, value: ChildLost | str | None) -> None:
            if event == "lost":
                on_lost(str(value))
            elif event == "stop":
                on_stop()
            elif isinstance(value, ChildLost):
                on_child_lost(value)

        with self._lock:
            self._subscriber = call
            earlier, self._happened = self._happened, []
            for event, value in earlier:
                call(event, value)

    def request_stop(self) -> None:
        """Do as if the launcher had asked for a stop; for a signal in a program without a launcher.

        Only sets things in motion on another thread, so it may be called from a signal handler.
        """
        threading.Thread(target=self._tell, args=("stop", None), name="stop", daemon=True).start()

    def _listen(self, stream: BinaryIO) -> None:
        with contextlib.suppress(OSError):
            for line in stream:
                self._obey(line)
        reason = "the launcher (`distopt train`) is gone"
        self._is_lost.set()
        _LOGGER.error("%s; ending", reason)
        end = threading.Timer(self._grace_s, self._end, args=(reason,))
        end.daemon = True
        end.start()
        self._tell("lost", reason)

    def _end(self, reason: str) -> None:
        self._last_words(reason)
        self._end_process(1)

    def _obey(self, line: bytes) -> None:
        try:
            order = msgspec.json.decode(line, type=Order)
        except msgspec.MsgspecError as error:
            _LOGGER.error("the launcher sent %r: %s", line, error)
            return
        if order.lost is not None:
            self._tell("child lost", order.lost)
        if order.stop:
            self._tell("stop", None)

    def _tell(self, event: str, value: ChildLost | str | None) -> None:
        with self._lock:
            if self._subscriber is None:
                self._happened.append((event, value))
            else:
                self._subscriber(event, value)


def take_stdin() -> BinaryIO:
    """Return this process's standard input as a pipe of our own; nobody else can read from it any more."""
    pipe = os.fdopen(os.dup(0), "rb")
    nowhere = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nowhere, 0)
    os.close(nowhere)
    return pipe


def signal_when_parent_dies(number: int) -> None:
    """Have the kernel send this process the signal ``number`` when its parent ends; Linux only, elsewhere nothing.

    The backstop of the lifeline: SIGKILL also ends a process that is stopped or cannot run Python any more, and
    SIGCONT makes a stopped one go on, so that it can say why it ends.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
