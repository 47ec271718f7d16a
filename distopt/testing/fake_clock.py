"""Time that passes only when a test says so."""

from __future__ import annotations


class FakeClock:
    """A clock that stands still until it is told to advance.

    Units: seconds, from an arbitrary start.

    >>> clock = FakeClock()
    >>> clock.advance(2.5)
    >>> clock.now_s
    2.5
    """

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s

    @property
    def now_s(self) -> float:
        """The current time."""
        return self._now_s

    def __call__(self) -> float:
        """Return the current time, where a function such as ``time.monotonic`` is wanted."""
        return self._now_s

    def advance(self, seconds: float) -> None:
        """Move on by ``seconds``.

        Raises: ValueError if that is into the past.
        """
        if seconds < 0.0:
            raise ValueError(f"time cannot go back by {-seconds} s")
        self._now_s += seconds
