"""Signals: a stop that a step can finish before, and children that leave Ctrl-C to their launcher."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Final

INTERRUPTED = 130
"""Exit status of a job that was stopped by Ctrl-C (128 + SIGINT)."""

_BYTES_OF_SIGACTION: Final = 512
"""More than it takes anywhere."""


class StopRequest:
    """Whether this process was asked to stop at the next step boundary."""

    def __init__(self) -> None:
        self._event = threading.Event()

    @property
    def requested(self) -> bool:
        return self._event.is_set()

    def request(self) -> None:
        self._event.set()


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM within a ``with`` block into a request; the second ends the process at once.

    For a process that trains by itself, or as an MPI rank. Only the main thread may use it.
    """
    stop = StopRequest()

    def received(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        if stop.requested:
            os._exit(INTERRUPTED)
        stop.request()

    with handling(received):
        yield stop


@contextlib.contextmanager
def handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Call ``handler`` on SIGINT and SIGTERM within a ``with`` block of the main thread."""
    earlier = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, former in earlier.items():
            signal.signal(number, former)


def ignore_interrupts() -> None:
    """Leave Ctrl-C to the launcher, which is in the same process group and asks for an orderly stop.

    The launcher starts its children with SIGINT blocked (:func:`interrupts_blocked`), so none can come before this.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


@contextlib.contextmanager
def last_words(ask: Callable[[], str | None]) -> Iterator[None]:
    """Have a segmentation fault within a ``with`` block end the process with status 1 and the error ``ask()``.

    Where that is None, or fails, the process is killed at once, without what other handlers would do.

    Source: sigaction(2), by which all is put back as it was.
    """
    libc = ctypes.CDLL(None)
    before = ctypes.create_string_buffer(_BYTES_OF_SIGACTION)

    def crashed(number: int) -> None:  # noqa: ARG001
        try:
            if error := ask():
                os.write(2, f"distopt: error: {error}\n".encode())
                os._exit(1)
        finally:  # also where nobody reads what is written: what has crashed would be done again, for ever
            os.kill(os.getpid(), signal.SIGKILL)

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(crashed)
    libc.sigaction(signal.SIGSEGV, None, before)
    libc.signal(signal.SIGSEGV, handler)
    try:
        yield
    finally:
        libc.sigaction(signal.SIGSEGV, before, None)


@contextlib.contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Hold SIGINT back within a ``with`` block; a process that is started there begins with it blocked."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)


def describe_status(returncode: int) -> str:
    """Return in words how a child ended, for example ``killed by SIGKILL`` or ``ended with status 3``.

    >>> describe_status(-9), describe_status(3)
    ('killed by SIGKILL', 'ended with status 3')
    """
    if returncode >= 0:
        return f"ended with status {returncode}"
    try:
        return f"killed by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"killed by signal {-returncode}"
