"""What a user sees while a job runs: a live line on a terminal, one plain line an epoch elsewhere."""

from __future__ import annotations

import time
from typing import Protocol, TextIO

from distopt.observe.records import EpochMetrics, JobInfo

_REDRAW_S = 0.1


class Display(Protocol):
    """Shows a job's progress; every method returns at once."""

    def started(self, info: JobInfo) -> None: ...

    def progress(self, step: int, loss: float | None) -> None: ...

    def epoch(self, metrics: EpochMetrics) -> None: ...

    def note(self, line: str) -> None:
        """Show a line about something that happened."""
        ...

    def close(self) -> None:
        """Leave the terminal as it was; a second call does nothing."""
        ...


def make_display(stream: TextIO) -> Display:
    """Return the display that fits ``stream``: live if it is a terminal, else plain lines."""
    if stream.isatty():
        return LiveDisplay(stream)
    return PlainDisplay(stream)


def headline(info: JobInfo) -> str:
    """Return one line that says what runs where."""
    processes = f"{info.workers} worker{'s' * (info.workers != 1)}"
    if info.servers:
        processes += f", {info.servers} server{'s' * (info.servers != 1)}"
    resumed = f", resumed at step {info.resumed_at_step}" if info.resumed_at_step else ""
    return (
        f"{info.name}: {info.replicas} replica{'s' * (info.replicas != 1)} on {processes} ({info.deployment}), "
        f"{info.num_parameters:,} parameters, {info.epochs} epochs of {info.steps_per_epoch} steps{resumed}"
    )


class PlainDisplay:
    """One line an epoch, for files, pipes and CI."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._epochs = 0

    def started(self, info: JobInfo) -> None:
        self._epochs = info.epochs
        self._print(headline(info))

    def progress(self, step: int, loss: float | None) -> None:
        """Show nothing: steps are for a terminal."""

    def epoch(self, metrics: EpochMetrics) -> None:
        self._print(
            f"epoch {metrics.epoch + 1}/{self._epochs} step {metrics.step} loss {metrics.loss:.4f} "
            f"accuracy {metrics.test_accuracy:.4f} samples/s {metrics.samples_per_s:.0f} workers {metrics.workers}"
        )

    def note(self, line: str) -> None:
        self._print(line)

    def close(self) -> None:
        """Nothing to put back."""

    def _print(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()


class LiveDisplay:
    """A bar that is redrawn in place, and a line above it for every epoch that is done."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._console = Console(file=stream, highlight=False)
        # Redrawn by calls alone: rich's own thread would go on drawing while the job is stuck.
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=None),
            TextColumn("step {task.completed:.0f}/{task.total:.0f}  {task.fields[facts]}"),
            TimeRemainingColumn(),
            console=self._console,
            auto_refresh=False,
            transient=True,
            expand=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._bar.add_task("train", total=1, epoch="", facts="", visible=False)
        self._info: JobInfo | None = None
        self._loss: float | None = None
        self._accuracy: float | None = None
        self._rate: float | None = None
        self._drawn_s = 0.0
        self._workers = 0

    def started(self, info: JobInfo) -> None:
        self._info, self._workers = info, info.workers
        self._console.print(headline(info))
        self._bar.start()
        total = info.epochs * info.steps_per_epoch
        self._bar.update(self._task, total=total, completed=info.resumed_at_step, visible=True)
        self._draw(info.resumed_at_step)

    def progress(self, step: int, loss: float | None) -> None:
        self._loss = self._loss if loss is None else loss
        now_s = time.monotonic()
        if now_s - self._drawn_s >= _REDRAW_S:
            self._drawn_s = now_s
            self._draw(step)

    def epoch(self, metrics: EpochMetrics) -> None:
        self._loss, self._accuracy, self._rate = metrics.loss, metrics.test_accuracy, metrics.samples_per_s
        self._workers = metrics.workers
        self._console.print(
            f"epoch {metrics.epoch + 1:>3}  loss {metrics.loss:.4f}  test accuracy {metrics.test_accuracy:.4f}  "
            f"{metrics.samples_per_s:,.0f} samples/s"
        )
        self._draw(metrics.step)

    def note(self, line: str) -> None:
        self._console.print(line)

    def close(self) -> None:
        self._bar.stop()

    def _draw(self, step: int) -> None:
        if self._info is None:
            return
        facts = [] if self._loss is None else [f"loss {self._loss:.4f}"]
        facts += [] if self._accuracy is None else [f"accuracy {self._accuracy:.4f}"]
        facts += [] if self._rate is None else [f"{self._rate:,.0f} samples/s"]
        facts.append(f"{self._workers} workers")
        epoch = min(step // self._info.steps_per_epoch + 1, self._info.epochs)
        self._bar.update(self._task, completed=step, epoch=f"{epoch}/{self._info.epochs}", facts="  ".join(facts))
        self._bar.refresh()
