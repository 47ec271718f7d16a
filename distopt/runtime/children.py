"""A child process of the launcher: its pipe, its log, and its end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from distopt.runtime.lifeline import ChildLost, Order
from distopt.runtime.signals import describe_status, interrupts_blocked


class Child:
    """One process of the job, started by this one and never outliving it.

    Its standard input is the lifeline. Standard output goes to ``log``, or, if ``captured``, to :attr:`output` (then
    standard error is ours). ``on_end`` is called, on a thread of its own, once the process has ended.

    Must be made on the main thread: the kernel takes the end of the thread that starts a child for its parent's end.

    Raises: OSError if it cannot be started.
    """

    def __init__(
        self,
        role: str,
        index: int | None,
        command: Sequence[str],
        log: Path,
        on_end: Callable[[Child], None],
        *,
        captured: bool = False,
    ) -> None:
        self.role = role
        self.index = index
        self.log = log
        with log.open("ab") as log_file, interrupts_blocked():
            self._process = subprocess.Popen(
                command,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if captured else log_file,
                stderr=None if captured else log_file,
            )
        self.pid = self._process.pid
        self.output = self._process.stdout
        self._ended = threading.Event()
        threading.Thread(target=self._wait, args=(on_end,), name=f"wait for {self}", daemon=True).start()

    def __str__(self) -> str:
        return self.role if self.index is None else f"{self.role} {self.index}"

    @property
    def has_ended(self) -> bool:
        return self._ended.is_set()

    @property
    def returncode(self) -> int | None:
        """As of subprocess: negative for a signal; None while it runs."""
        return self._process.returncode if self.has_ended else None

    def loss(self) -> ChildLost:
        """Return who ended and how, with the last line of its log if it ended by itself."""
        returncode = self._process.returncode
        status = describe_status(returncode)
        if returncode > 0 and (line := last_line(self.log)):
            status += f"; its log {self.log} ends with: {line}"
        return ChildLost(role=self.role, index=self.index, pid=self.pid, status=status)

    def tell(self, order: Order) -> None:
        """Send one order; if the child is gone already, nothing."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(msgspec.json.encode(order) + b"\n")

    def wait(self, timeout_s: float) -> bool:
        """Return whether the process has ended, waiting for it up to ``timeout_s``."""
        return self._ended.wait(max(0.0, timeout_s))

    def terminate(self) -> None:
        """Ask it to end: its lifeline ends, and it gets SIGTERM, also if it is stopped."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        self._send(signal.SIGTERM)
        if hasattr(signal, "SIGCONT"):
            self._send(signal.SIGCONT)

    def kill(self) -> None:
        """End it."""
        self._send(getattr(signal, "SIGKILL", signal.SIGTERM))

    def _send(self, number: int) -> None:
        # Popen reaps under its own lock and refuses to signal a reaped child, so the pid is never someone else's.
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def _wait(self, on_end: Callable[[Child], None]) -> None:
        self._process.wait()
        self._ended.set()
        on_end(self)


def last_line(path: Path, limit: int = 4096) -> str:
    """Return the last line that is not blank in the last ``limit`` bytes of the file ``path``, or ``""``."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - limit))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
