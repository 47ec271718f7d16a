"""What a process remembers of a job from one loss of other processes to the next, beside the variables themselves."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from distopt.checkpoint import DataPosition, TrainingState
from distopt.observe import EpochMetrics, LostWorker, StepRecord
from distopt.runtime.history import StepHistory
from distopt.runtime.ledger import Sums


class Kept(msgspec.Struct, frozen=True):
    """The state of the job between two steps, encoded, with what belongs to no checkpoint."""

    epoch: int
    step: int
    state: bytes | None
    """None while nobody has asked for it; see :attr:`JobMemory.state`."""
    sums: Sums
    """Of the epoch so far, by replica: the sum of the losses of its samples, and their number."""
    metrics: EpochMetrics | None = None
    """Of the last epoch that is done."""
    records: list[StepRecord] = []
    """What was last sent to the chief, which may not have written it down."""

    @property
    def position(self) -> DataPosition:
        return DataPosition(epoch=self.epoch, step=self.step)


@dataclass
class JobMemory:
    """Of one process; ``worker`` is the rank that it had when the job began."""

    worker: int
    history: StepHistory = field(init=False)
    workers: tuple[int, ...] = ()
    """Those that are there, by rank."""
    lost: list[LostWorker] = field(default_factory=list)
    kept: Kept | None = None
    """The state to go on from where processes that are left do not have all of it."""
    state: TrainingState | None = None
    """That of ``kept``, until it is encoded; None where it is live."""
    others_have_more: bool = False
    """Whether some process has state that this one has not."""
    metrics: EpochMetrics | None = None
    records: list[StepRecord] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.history = StepHistory(self.worker)
