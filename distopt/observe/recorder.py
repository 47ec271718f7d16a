"""The recorder that writes: metrics, checkpoints and the summary into a run folder, progress to a display."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import msgspec

from distopt import checkpoint
from distopt.checkpoint import TrainingState
from distopt.observe.display import Display
from distopt.observe.logs import set_step
from distopt.observe.records import EpochMetrics, JobInfo, LostWorker, StepRecord, Summary
from distopt.observe.run_folder import RunFolder


class LocalRecorder:
    """Record a job in ``folder`` (None: nowhere), show it on ``display`` and print its summary to ``output``.

    Metrics reach the file at the end of every epoch, checkpoints the disk before :meth:`checkpoint` returns. Steps and
    epochs are told in order; what comes a second time is left out.

    ``takes_over``: from one whose process was lost while it recorded the same run.
    """

    def __init__(
        self,
        folder: RunFolder | None,
        display: Display,
        output: TextIO,
        *,
        keep_checkpoints: int = 3,
        takes_over: bool = False,
    ) -> None:
        self._folder = folder
        self._display = display
        self._output = output
        self._keep = keep_checkpoints
        self._told = _Told()
        self._has_finished = False
        self._start = 0
        if folder is not None:
            lines = _whole_lines(folder.metrics)
            begun = folder.read_start() if takes_over else None
            self._start = sum(map(len, lines)) if begun is None else begun
            self._told = _told_by(lines, self._start)
            self._has_finished = takes_over and folder.summary.is_file()
        self._metrics = None if folder is None else folder.metrics.open("ab")
        self._progress = None if folder is None else folder.progress.open("wb", buffering=0)
        self._write_progress("-")  # not begun

    def started(self, info: JobInfo) -> None:
        self._write("started", info)
        self._flush()
        self._display.started(info)
        self.progress(info.resumed_at_step)

    def progress(self, step: int, loss: float | None = None) -> None:
        set_step(step)
        self._write_progress(str(step))
        self._display.progress(step, loss)

    def steps(self, records: Sequence[StepRecord]) -> None:
        for record in records:
            if self._told.is_new(record.step, record.rank):
                self._write("step", record)

    def lost(self, workers: Sequence[LostWorker]) -> None:
        """Record that the job goes on without some workers."""
        for worker in [worker for worker in workers if worker.worker not in self._told.lost]:
            self._told.lost.add(worker.worker)
            self._write("lost", worker)
            self._display.note(
                f"worker {worker.worker} is lost; the others go on at step {worker.step}, after {worker.seconds:.1f} s"
            )
        self._flush()

    def epoch(self, metrics: EpochMetrics) -> None:
        if metrics.epoch < self._told.epochs:
            return
        self._told.epochs = metrics.epoch + 1
        self._write("epoch", metrics)
        self._flush()
        self.progress(metrics.step, metrics.loss)
        self._display.epoch(metrics)

    def checkpoint(self, state: TrainingState) -> None:
        if self._folder is not None:
            checkpoint.save(self._folder.checkpoints, state, keep_last=self._keep)

    def finished(self, summary: Summary) -> None:
        if self._has_finished:
            return
        self._has_finished = True
        self._write("finished", summary)
        self._flush()
        self._display.close()
        if self._folder is not None and summary.completed:
            checkpoint.write_durably(self._folder.summary, msgspec.json.format(msgspec.json.encode(summary)))
        self._output.write(summary_text(summary, None if self._folder is None else str(self._folder.path)))
        self._output.flush()

    def close(self) -> None:
        """Leave the terminal as it was and close the files; a second call does nothing."""
        self._display.close()
        if self._metrics is not None:
            self._metrics.close()
        if self._progress is not None:
            self._progress.close()

    def _write(self, event: str, record: msgspec.Struct) -> None:
        if self._metrics is not None:
            line: dict[str, Any] = {"event": event, **msgspec.to_builtins(record)}
            self._metrics.write(msgspec.json.encode(line) + b"\n")

    def _write_progress(self, step: str) -> None:
        if self._progress is not None:
            self._progress.seek(0)
            self._progress.write(f"{step:<20}{self._start:<20}".encode())

    def _flush(self) -> None:
        if self._metrics is not None:
            self._metrics.flush()


def summary_text(summary: Summary, run: str | None) -> str:
    """Return the lines that end a job; ``run`` is the path of its folder."""
    accuracy = "not measured" if summary.test_accuracy is None else f"{summary.test_accuracy:.4f}"
    lines = [
        f"test accuracy  {accuracy}",
        f"samples/s      {summary.samples_per_s:.0f}",
        f"seconds        {summary.seconds:.2f}",
        f"state hash     {summary.state_hash}",
    ]
    if summary.lost:
        lost = ", ".join(f"{each.worker} before step {each.step}" for each in summary.lost)
        lines.append(f"lost workers   {lost}")
    if run is not None:
        lines.append(f"run folder     {run}")
    if not summary.completed:
        resume = "" if run is None else f"; resume with: distopt train --resume {run}"
        lines.append(f"interrupted at step {summary.step} in epoch {summary.epoch + 1}{resume}")
    return "\n".join(lines) + "\n"


@dataclass
class _Told:
    """How far a file of metrics goes."""

    step: int = -1
    """The last one of which there are records, and of which workers."""
    workers: set[int] = field(default_factory=set)
    epochs: int = 0
    lost: set[int] = field(default_factory=set)

    def is_new(self, step: int, worker: int) -> bool:
        """Return whether there is no record of that yet; from now on there is."""
        if step < self.step or (step == self.step and worker in self.workers):
            return False
        if step > self.step:
            self.step, self.workers = step, set()
        self.workers.add(worker)
        return True


class _Line(msgspec.Struct, frozen=True):
    event: str
    step: int = -1
    rank: int = -1
    epoch: int = -1
    worker: int = -1


def _whole_lines(metrics: Path) -> list[bytes]:
    """Return the lines of a file of metrics; a last one that is none, of a process that was killed, is taken away.

    A file that cannot be read has none.
    """
    try:
        with metrics.open("rb+") as file:
            lines = file.read().splitlines(keepends=True)
            if lines and not lines[-1].endswith(b"\n"):
                file.truncate(sum(map(len, lines[:-1])))
                lines.pop()
            return lines
    except OSError:
        return []


def _told_by(lines: Sequence[bytes], start: int) -> _Told:
    """Return how far metrics go, of which those before byte ``start`` are of the time before the job was resumed."""
    told = _Told()
    for end, line in zip(itertools.accumulate(map(len, lines)), lines, strict=True):
        if end <= start:
            continue
        read = msgspec.json.decode(line, type=_Line)
        if read.event == "step":
            told.is_new(read.step, read.rank)
        elif read.event == "epoch":
            told.epochs = read.epoch + 1
        elif read.event == "lost":
            told.lost.add(read.worker)
    return told
