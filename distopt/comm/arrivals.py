"""Who comes late to what all ranks do together, and by how much.

Rules of this file: no transport, no clock. A rank has come when what is expected of it is there.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence


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
