"""A limit on calls that have none: a thread that acts when a call into foreign code does not return."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Watchdog:
    """Calls ``on_stuck(what)`` from its own thread if what was begun is not ended within ``limit_s``.

    Time is counted in ticks of this process, so that a pause of the whole process does not count.
    """

    def __init__(self, limit_s: float, on_stuck: Callable[[str], None], *, tick_s: float = 0.5) -> None:
        self._tick_s = tick_s
        self.set_limit(limit_s)
        self._on_stuck = on_stuck
        self._what: str | None = None
        self._serial = 0
        self._closed = threading.Event()
        threading.Thread(target=self._run, name="distopt watchdog", daemon=True).start()

    def set_limit(self, limit_s: float) -> None:
        """Change the limit, from now on."""
        self._max_ticks = max(1, round(limit_s / self._tick_s))

    def begin(self, what: str) -> None:
        """Start counting anew; costs two assignments."""
        self._serial += 1
        self._what = what

    def end(self) -> None:
        """Stop counting."""
        self._what = None

    def close(self) -> None:
        """End the thread; a second call does nothing."""
        self._closed.set()

    def _run(self) -> None:
        seen, ticks = -1, 0
        while not self._closed.wait(self._tick_s):
            what, serial = self._what, self._serial
            ticks = ticks + 1 if what is not None and serial == seen else 0
            seen = serial
            if what is not None and ticks >= self._max_ticks:
                self._on_stuck(what)
                return
