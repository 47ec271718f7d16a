"""What a job tells whoever watches it; frozen structs, so that they travel as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from distopt.checkpoint import TrainingState


class JobInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A job at its start."""

    name: str
    deployment: str
    replicas: int
    workers: int
    servers: int
    epochs: int
    steps_per_epoch: int
    num_parameters: int
    engine: str
    resumed_at_step: int = 0
    """Steps that an earlier run had done."""


class StepRecord(msgspec.Struct, frozen=True):
    """What one process did in one step; a line of ``metrics.jsonl``. Seconds by phase, bytes of payload."""

    step: int
    rank: int
    replicas: tuple[int, ...]
    bytes_sent: int
    bytes_received: int
    phases: dict[str, float]


class EpochMetrics(msgspec.Struct, frozen=True):
    """What is known after an epoch; losses are means over samples, ``samples_per_s`` is the job's, all replicas."""

    epoch: int
    step: int
    loss: float
    test_loss: float
    test_accuracy: float
    test_samples: int
    samples_per_s: float
    workers: int


class LostWorker(msgspec.Struct, frozen=True):
    """A worker that the others went on without. Workers are named by the rank that they had when the job began."""

    worker: int
    step: int
    """The step that the others went on with."""
    seconds: float = 0.0
    """From when it was missed to when the others went on."""


class Summary(msgspec.Struct, frozen=True):
    """How a job ended. ``seconds`` is the time spent training and evaluating, set-up excluded."""

    completed: bool
    epoch: int
    step: int
    test_accuracy: float | None
    samples_per_s: float
    seconds: float
    state_hash: str
    lost: tuple[LostWorker, ...] = ()


class Recorder(Protocol):
    """Where the process that leads a job reports; one implementation writes, another forwards to it."""

    def started(self, info: JobInfo) -> None: ...

    def progress(self, step: int, loss: float | None = None) -> None:
        """``step`` steps are done; called often, so it must be cheap."""
        ...

    def steps(self, records: Sequence[StepRecord]) -> None: ...

    def epoch(self, metrics: EpochMetrics) -> None: ...

    def checkpoint(self, state: TrainingState) -> None: ...

    def finished(self, summary: Summary) -> None: ...
