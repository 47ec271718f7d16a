"""What a job shows and keeps: its run folder, logs, live display and summary."""

from __future__ import annotations

from distopt.observe.display import Display, make_display
from distopt.observe.logs import configure_logging, log_progress, set_step
from distopt.observe.recorder import LocalRecorder
from distopt.observe.records import EpochMetrics, JobInfo, LostWorker, Recorder, StepRecord, Summary
from distopt.observe.run_folder import ErrorRecord, RunFolder

__all__ = [
    "Display",
    "EpochMetrics",
    "ErrorRecord",
    "JobInfo",
    "LocalRecorder",
    "LostWorker",
    "Recorder",
    "RunFolder",
    "StepRecord",
    "Summary",
    "configure_logging",
    "log_progress",
    "make_display",
    "set_step",
]
