"""What goes wrong in a group of threads, by plan, and the time that passes in it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol


class Clock(Protocol):
    """Time that passes by itself or not, and can be moved on."""

    @property
    def now_s(self) -> float: ...

    def advance(self, seconds: float) -> None: ...


class Faults(Protocol):
    """What goes wrong in a group; see :class:`distopt.testing.FaultPlan`. Exchanges of a rank are counted from 0."""

    def kills(self, rank: int, exchange: int) -> bool:
        """Return whether ``rank`` dies as it begins this exchange."""
        ...

    def delay_s(self, source: int, destination: int, exchange: int) -> float:
        """Return how long what ``source`` sends in this exchange is under way; infinity if it is lost."""
        ...


class KilledByPlan(BaseException):
    """Raised in a rank that :class:`Faults` kill; not an Exception, so that no code of that rank survives it."""


class Faultless:
    """Nothing goes wrong."""

    def kills(self, rank: int, exchange: int) -> bool:  # noqa: ARG002
        return False

    def delay_s(self, source: int, destination: int, exchange: int) -> float:  # noqa: ARG002
        return 0.0


class FaultsOfSurvivors:
    """What goes wrong among survivors, whose exchanges are counted on."""

    def __init__(self, faults: Faults, ranks: Sequence[int], counts: Sequence[int]) -> None:
        self._faults, self._ranks, self._counts = faults, tuple(ranks), tuple(counts)

    def kills(self, rank: int, exchange: int) -> bool:
        return self._faults.kills(self._ranks[rank], exchange + self._counts[rank])

    def delay_s(self, source: int, destination: int, exchange: int) -> float:
        ranks, count = self._ranks, self._counts[source]
        return self._faults.delay_s(ranks[source], ranks[destination], exchange + count)


class SkippingClock:
    """Real time, plus what was skipped."""

    def __init__(self) -> None:
        self._skipped_s = 0.0

    @property
    def now_s(self) -> float:
        return time.monotonic() + self._skipped_s

    def advance(self, seconds: float) -> None:
        self._skipped_s += seconds
