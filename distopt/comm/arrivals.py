"""Who comes late to what all ranks do together, and by how much.

Rules of this file: no transport, no clock. A rank has come when what is expected of it is there.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Iterable, Sequence
from typing import Final

from distopt.comm.communicator import Communicator
from distopt.comm.transfers import name_ranks

logger = logging.getLogger(__name__)

_LATE_S: Final = 1.0
"""A rank that comes so much later than the median of the others is logged."""


class Arrivals:
    """The ranks that came to one exchange, and when; ``rank``, which waits for the others, came first.

    >>> arrivals = Arrivals(rank=0, came_s=10.0)
    >>> arrivals.note([1, 2, 3], missing=[3], now_s=10.5)
    [1, 2]
    >>> arrivals.lateness_s(14.5)
    4.0
    """

    def __init__(self, rank: int, came_s: float) -> None:
        self._came_s = {rank: came_s}

    def note(self, expected: Iterable[int], missing: Sequence[int], now_s: float) -> list[int]:
        """Take in that of the ranks ``expected`` those ``missing`` have not come; return who came since the last time.

        >>> Arrivals(rank=0, came_s=10.0).note([1, 2], missing=[2], now_s=10.5)
        [1]
        """
        new = sorted(set(expected).difference(missing).difference(self._came_s))
        self._came_s.update(dict.fromkeys(new, now_s))
        return new

    def lateness_s(self, now_s: float) -> float:
        """Return how long after the median of those that have come a rank would come that comes now.

        Units: seconds.
        """
        return now_s - statistics.median(self._came_s.values())


class LateRanks:
    """Logs the ranks that come late to one wait of ``owner``, for ``what`` since ``started_s``, as it lasts."""

    def __init__(self, owner: Communicator, what: str, started_s: float) -> None:
        self._owner = owner
        self._what = what
        self._arrivals = Arrivals(owner.rank, started_s)

    def note(self, expected: Iterable[int], missing: Sequence[int], now_s: float) -> None:
        """Take in that of the ranks ``expected`` those ``missing`` have not come; log who came late."""
        late_s = self._arrivals.lateness_s(now_s)
        came = self._arrivals.note(expected, missing, now_s)
        if came and late_s >= _LATE_S:
            logger.warning("%s at step %d: %s", self._late(came, late_s, "came"), self._owner.step, self._what)

    def would_come(self, missing: Sequence[int], now_s: float) -> str:
        """Return how late the ranks ``missing`` would be if they came now, and where they are, as part of a message."""
        late = self._late(missing, self._arrivals.lateness_s(now_s), "would come")
        return f"{late}{self._owner.elsewhere(missing)}"

    def _late(self, ranks: Sequence[int], late_s: float, verb: str) -> str:
        # All ranks run one program: the phase that led to this wait here is the one that they are late in.
        phase = f" in phase {self._owner.phase!r}" if self._owner.phase else ""
        return f"{name_ranks(ranks)} {verb} {late_s:.1f} s later than the median of the others{phase}"
