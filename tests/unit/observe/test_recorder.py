"""What a recorder writes, shows and prints."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path

import msgspec
import numpy as np
import pytest

from distopt import checkpoint
from distopt.checkpoint import DataPosition, TrainingState, VariableState
from distopt.observe import (
    EpochMetrics,
    JobInfo,
    LocalRecorder,
    LostWorker,
    RunFolder,
    StepRecord,
    Summary,
    configure_logging,
    log_progress,
    make_display,
    set_step,
)
from distopt.observe.display import LiveDisplay, PlainDisplay

INFO = JobInfo(
    name="digits",
    deployment="cluster",
    replicas=8,
    workers=2,
    servers=1,
    epochs=3,
    steps_per_epoch=12,
    num_parameters=19210,
    engine="numpy",
)
METRICS = EpochMetrics(
    epoch=0, step=12, loss=0.5, test_loss=0.6, test_accuracy=0.91, test_samples=360, samples_per_s=4321.5, workers=2
)
SUMMARY = Summary(
    completed=True, epoch=3, step=36, test_accuracy=0.9722, samples_per_s=4000.4, seconds=1.234, state_hash="ab" * 32
)


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _record(folder: RunFolder | None, shown: io.StringIO, summary: Summary = SUMMARY) -> str:
    printed = io.StringIO()
    recorder = LocalRecorder(folder, make_display(shown), printed)
    recorder.started(INFO)
    recorder.progress(5, 1.25)
    recorder.steps([StepRecord(s, r, (r,), 10, 20, {"wait": 0.5}) for s in range(2) for r in range(2)])
    recorder.epoch(METRICS)
    recorder.checkpoint(
        TrainingState(
            iterations=12,
            variables=(VariableState(position=0, name="w", value=(np.zeros(2),)),),
            position=DataPosition(epoch=1, step=0),
            job_digest="d",
        )
    )
    recorder.finished(summary)
    recorder.close()
    recorder.close()
    return printed.getvalue()


def test_recorder_writes_events_in_order_a_checkpoint_and_the_summary(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "digits", "")
    _record(folder, io.StringIO())
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["started", *["step"] * 4, "epoch", "finished"]
    assert lines[2] == {
        "event": "step", "step": 0, "rank": 1, "replicas": [1],
        "bytes_sent": 10, "bytes_received": 20, "phases": {"wait": 0.5},
    }  # fmt: skip
    assert lines[5]["test_accuracy"] == 0.91
    assert json.loads(folder.summary.read_text())["state_hash"] == "ab" * 32
    assert checkpoint.load(checkpoint.latest(folder.checkpoints)).iterations == 12
    assert folder.read_progress() == 12


def test_recorder_on_a_resumed_run_adds_to_the_metrics(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "digits", "")
    _record(folder, io.StringIO())
    _record(RunFolder.reopen(folder.path, ""), io.StringIO())
    assert folder.metrics.read_text().count('"event":"started"') == 2


def test_recorder_metrics_are_in_the_file_after_each_epoch(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "digits", "")
    recorder = LocalRecorder(folder, PlainDisplay(io.StringIO()), io.StringIO())
    recorder.started(INFO)
    recorder.epoch(METRICS)
    assert len(folder.metrics.read_text().splitlines()) == 2
    recorder.close()


def test_summary_names_accuracy_speed_time_hash_and_folder(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "digits", "")
    assert _record(folder, io.StringIO()).splitlines() == [
        "test accuracy  0.9722",
        "samples/s      4000",
        "seconds        1.23",
        f"state hash     {'ab' * 32}",
        f"run folder     {tmp_path}/digits-001",
    ]


def test_summary_of_an_interrupted_job_says_how_to_resume_and_is_no_result(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "digits", "")
    stopped = Summary(False, 1, 17, None, 1.0, 1.0, "ab" * 32)
    printed = _record(folder, io.StringIO(), stopped)
    assert "test accuracy  not measured\n" in printed
    assert printed.endswith(
        f"interrupted at step 17 in epoch 2; resume with: distopt train --resume {tmp_path}/digits-001\n"
    )
    assert not folder.summary.exists()


def test_recorder_without_a_folder_still_shows_and_prints() -> None:
    shown = io.StringIO()
    assert "state hash" in _record(None, shown)
    assert "epoch 1/3" in shown.getvalue()


def test_display_without_a_terminal_is_one_plain_line_an_epoch() -> None:
    shown = io.StringIO()
    _record(None, shown)
    assert shown.getvalue().splitlines() == [
        "digits: 8 replicas on 2 workers, 1 server (cluster), 19,210 parameters, 3 epochs of 12 steps",
        "epoch 1/3 step 12 loss 0.5000 accuracy 0.9100 samples/s 4322 workers 2",
    ]


def test_display_on_a_terminal_is_live_and_leaves_the_cursor_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr("distopt.observe.display._REDRAW_S", 0.0)
    shown = _Terminal()
    assert isinstance(make_display(shown), LiveDisplay)
    _record(None, shown)
    text = shown.getvalue()
    for word in ("epoch", "1/3", "5/36", "loss 1.2500", "accuracy 0.9100", "samples/s", "2 workers"):
        assert word in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


def test_log_lines_bear_process_and_step(tmp_path: Path) -> None:
    path = tmp_path / "worker-1.log"
    configure_logging("worker 1", path, "info")
    logger = logging.getLogger("distopt.comm")
    logger.info("joined")
    set_step(17)
    logger.debug("too fine")
    logger.warning("slow")
    log_progress(epoch=1, step=24, loss=0.25, test_accuracy=0.5)
    configure_logging("worker 1", None)  # closes the file
    lines = [line.split(" ", 2)[2] for line in path.read_text().splitlines()]
    assert lines == [
        "INFO worker 1 step 0: joined",
        "WARNING worker 1 step 17: slow",
        "INFO worker 1 step 24: epoch 1 done: loss 0.2500, test accuracy 0.5000",
    ]


def test_recorder_that_takes_over_mends_the_last_line_and_leaves_out_what_is_told(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "digits", "")
    records = [StepRecord(step, rank, (rank,), 0, 0, {}) for step in range(3) for rank in range(2)]
    first = LocalRecorder(folder, make_display(io.StringIO()), io.StringIO())
    first.steps(records[:3])
    first.close()
    with folder.metrics.open("ab") as file:
        file.write(b'{"event":"step","step":1,"ra')  # its process was killed
    shown = io.StringIO()
    second = LocalRecorder(folder, make_display(shown), io.StringIO(), takes_over=True)
    lost = LostWorker(worker=0, step=3, seconds=0.25)
    for _ in range(2):
        second.steps(records)
        second.epoch(METRICS)
        second.lost([lost])
    second.close()
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert [(line["step"], line["rank"]) for line in lines[:6]] == [(r.step, r.rank) for r in records]
    assert [line["event"] for line in lines[6:]] == ["epoch", "lost"]
    assert "worker 0 is lost; the others go on at step 3, after 0.2 s" in shown.getvalue()


def recorded(folder: RunFolder) -> list[tuple[str, int]]:
    """Return event and step of each line."""
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    return [(line["event"], line.get("step", line.get("resumed_at_step"))) for line in lines]


@pytest.mark.parametrize("begun", [True, False])
def test_job_that_was_killed_and_resumed_is_recorded_in_whole_lines_and_from_where_it_goes_on(
    tmp_path: Path, begun: bool
) -> None:
    folder = RunFolder.create(tmp_path, "digits", "")
    records = [StepRecord(step, 0, (0,), 0, 0, {}) for step in range(4)]
    lost = LostWorker(worker=1, step=2, seconds=0.25)
    first = LocalRecorder(folder, make_display(io.StringIO()), io.StringIO())
    first.started(INFO)
    first.steps(records[:3])
    first.lost([lost])
    first.close()
    with folder.metrics.open("ab") as file:
        file.write(b'{"event":"step","step":3,"ra')  # its process was killed
    RunFolder.reopen(folder.path, "")
    second = LocalRecorder(folder, make_display(io.StringIO()), io.StringIO())
    if begun:
        second.started(msgspec.structs.replace(INFO, resumed_at_step=1))
        second.steps(records[1:2])
    second.close()  # it is lost, too
    third = LocalRecorder(folder, make_display(io.StringIO()), io.StringIO(), takes_over=True)
    third.steps(records[1:])
    third.lost([lost])
    third.close()
    again = [("started", 1)] if begun else []
    steps = [("step", step) for step in range(3)]
    assert recorded(folder) == [("started", 0), *steps, ("lost", 2), *again, *steps[1:], ("step", 3), ("lost", 2)]


def test_summary_says_who_was_lost_and_is_printed_once(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "digits", "")
    printed = io.StringIO()
    recorder = LocalRecorder(folder, make_display(io.StringIO()), printed)
    recorder.finished(msgspec.structs.replace(SUMMARY, lost=(LostWorker(2, 17), LostWorker(0, 30))))
    recorder.finished(SUMMARY)
    recorder.close()
    assert printed.getvalue().count("lost workers   2 before step 17, 0 before step 30\n") == 1
    assert printed.getvalue().count("state hash") == 1
    other = LocalRecorder(folder, make_display(io.StringIO()), printed, takes_over=True)
    other.finished(SUMMARY)
    other.close()
    assert printed.getvalue().count("state hash") == 1
