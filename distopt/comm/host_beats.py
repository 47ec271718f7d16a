"""Which ranks of all hosts have come, and which hosts are heard of no more, as each host tells again and again.

One rank of a host, the first that lives, speaks for it: every so often it puts up the next number with the ranks of its
host that have come. Where the number of another host stands still, all who spoke there are lost, or stopped.

Rules of this file: no I/O, and time is handed in. Who never spoke is late, not lost.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final, NamedTuple

SILENT_S: Final = 8.0
"""Whoever was heard and is silent for so long is lost; a host speaks once a second."""


class _Heard(NamedTuple):
    text: str
    came: frozenset[int]
    at_s: float


class HostBeats:
    """What one rank hears of the hosts, each known by its first rank. One thread may listen while others read."""

    def __init__(self) -> None:
        self._number = 0
        self._heard: dict[int, _Heard] = {}

    def next(self, came: Collection[int]) -> str:
        """Return what the host of the ranks that ``came`` tells next."""
        self._number += 1
        return " ".join(map(str, [self._number, *sorted(came)]))

    def hear(self, told: Mapping[int, str], now_s: float) -> None:
        """Take in what hosts tell; ``now_s``: as ``time.monotonic`` has it. One that has withdrawn is unknown again."""
        self._heard = {
            first: self._heard[first]
            if first in self._heard and self._heard[first].text == text
            else _Heard(text, frozenset(map(int, text.split()[1:])), now_s)
            for first, text in told.items()
        }

    @property
    def came(self) -> frozenset[int]:
        """The ranks of other hosts that are known to have come."""
        return frozenset().union(*(heard.came for heard in self._heard.values()))

    def silent(self, now_s: float) -> tuple[frozenset[int], float]:
        """Return the ranks of all hosts that are heard of no more, and for how many seconds at least."""
        silent = [heard for heard in self._heard.values() if now_s - heard.at_s >= SILENT_S]
        ranks: frozenset[int] = frozenset().union(*(heard.came for heard in silent))
        return ranks, min((now_s - heard.at_s for heard in silent), default=0.0)
