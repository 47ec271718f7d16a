"""Which worker computed which replicas in which step, also where workers were lost.

A worker is named by the rank that it had when the job began. What a lost one had not yet told of its steps is known to
all others: who hosted what follows from who was there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from distopt.distribute.owners import PHASES
from distopt.observe import StepRecord


class _Regime(NamedTuple):
    """From ``first_step`` on these workers hosted these replicas."""

    first_step: int
    workers: tuple[int, ...]
    hosted: tuple[tuple[int, ...], ...]


class StepHistory:
    """Of the steps since records were last sent, as ``worker`` knows it.

    >>> history = StepHistory(worker=0)
    >>> history.begin(0, [0, 1], [(0,), (1,)])
    >>> for step in range(2):
    ...     history.note(step, 0, 0, (0.0,) * 5)
    >>> history.begin(2, [0], [(0, 1)])  # worker 1 is lost
    >>> history.note(2, 0, 0, (0.0,) * 5)
    >>> [(record.step, record.rank, record.replicas) for record in history.complete(history.own(), 3)]
    [(0, 0, (0,)), (0, 1, (1,)), (1, 0, (0,)), (1, 1, (1,)), (2, 0, (0, 1))]
    """

    def __init__(self, worker: int) -> None:
        self.worker = worker
        self._steps: list[tuple[int, int, int, tuple[float, ...]]] = []
        """Of each step: its number, bytes sent and received, seconds by phase."""
        self._regimes: list[_Regime] = []

    @property
    def workers(self) -> tuple[int, ...]:
        """The workers that are there, by rank."""
        return self._regimes[-1].workers

    def begin(self, first_step: int, workers: Sequence[int], hosted: Sequence[tuple[int, ...]]) -> None:
        """From ``first_step`` on ``workers`` host these replicas; what was noted of it before is void."""
        self._steps = [noted for noted in self._steps if noted[0] < first_step]
        self._regimes = [regime for regime in self._regimes if regime.first_step < first_step]
        self._regimes.append(_Regime(first_step, tuple(workers), tuple(hosted)))

    def note(self, step: int, sent: int, received: int, phases: tuple[float, ...]) -> None:
        """Note what this worker did in a step."""
        self._steps.append((step, sent, received, phases))

    def own(self) -> list[StepRecord]:
        """Return the records of this worker."""
        found = []
        for step, sent, received, seconds in self._steps:
            regime = next(regime for regime in reversed(self._regimes) if regime.first_step <= step)
            replicas = regime.hosted[regime.workers.index(self.worker)]
            found.append(
                StepRecord(step, self.worker, replicas, sent, received, dict(zip(PHASES, seconds, strict=True)))
            )
        return found

    def complete(self, records: Iterable[StepRecord], steps_done: int) -> list[StepRecord]:
        """Return ``records``, and those that nobody can tell any more, without times and bytes; in order."""
        found = {(record.step, record.rank): record for record in records}
        stops = [*(regime.first_step for regime in self._regimes[1:]), steps_done]
        for regime, stop in zip(self._regimes, stops, strict=True):
            for step in range(regime.first_step, stop):
                for worker, replicas in zip(regime.workers, regime.hosted, strict=True):
                    if (step, worker) not in found:
                        found[step, worker] = StepRecord(step, worker, replicas, 0, 0, {})
        return [found[key] for key in sorted(found)]

    def sent(self, steps_done: int) -> None:
        """Note that what was known of the steps so far has been sent."""
        self._steps.clear()
        self._regimes = [self._regimes[-1]._replace(first_step=steps_done)]
