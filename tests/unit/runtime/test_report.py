"""One error line for a job, whoever meets the error first."""

from __future__ import annotations

from pathlib import Path

import pytest

from distopt.errors import ConfigError, JobAbortedError, PeerLostError
from distopt.observe import RunFolder
from distopt.runtime import report


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.setattr(report, "_where", report._Where())
    return RunFolder.create(tmp_path, "d", "")


def _raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:  # noqa: BLE001  gives it a traceback
        return caught


def test_report_prints_the_first_error_only(folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    report.attach(folder, "rank", 2, level="info")
    assert report.report(PeerLostError("rank 1 is gone")) == 1
    assert report.report(PeerLostError("rank 3 is gone")) == 1
    assert capsys.readouterr().err == "distopt: error: rank 1 is gone\n"
    record = folder.read_error()
    assert record is not None
    assert (record.who, record.kind, record.message) == ("rank 2", "PeerLostError", "rank 1 is gone")


def test_report_of_a_process_that_does_not_speak_is_read_by_another(
    folder: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    report.attach(folder, "worker", 1, level="info", speaks=False)
    report.report(ConfigError("no"))
    assert capsys.readouterr().err == ""
    assert report.print_recorded_error(folder) == 2
    assert capsys.readouterr().err == "distopt: error: no\n"


def test_report_of_an_abort_leaves_the_error_to_its_cause(
    folder: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    report.attach(folder, "worker", 1, level="info")
    assert report.report(JobAbortedError("worker 0 is gone")) == 1
    assert folder.read_error() is None
    assert capsys.readouterr().err == ""
    assert report.print_recorded_error(folder) is None


def test_report_puts_the_traceback_into_the_log_alone(folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    report.attach(folder, "worker", 1, level="info")
    report.report(_raised(PeerLostError("gone")))
    assert "Traceback" not in capsys.readouterr().err
    text = folder.log("worker", 1).read_text()
    assert "ERROR worker 1 step 0: gone\nTraceback" in text


def test_report_of_an_unexpected_error_says_so_and_where_its_traceback_is(
    folder: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    report.attach(folder, "worker", 1, level="info")
    assert report.report(_raised(KeyError("x"))) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("distopt: error: unexpected KeyError: 'x' (")
    assert str(folder.log("worker", 1)) in errors


def test_report_before_there_is_a_run_prints(capsys: pytest.CaptureFixture[str], folder: RunFolder) -> None:
    assert report.report(ConfigError("no")) == 2
    assert capsys.readouterr().err == "distopt: error: no\n"
    report.report(_raised(KeyError("x")))
    assert "Traceback" in capsys.readouterr().err
