"""The run folder: one of its own for each run, one error for each job."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from distopt.errors import CheckpointError
from distopt.observe import ErrorRecord, RunFolder


def test_create_for_many_at_once_gives_each_its_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda i: RunFolder.create(tmp_path, "digits", f"seed = {i}\n"), range(16)))
    assert len({folder.path for folder in folders}) == 16
    assert [folder.config.read_text() for folder in folders] == [f"seed = {i}\n" for i in range(16)]


def test_create_counts_on_from_the_largest_number_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "digits-007").mkdir()
    (tmp_path / "digits-adam-011").mkdir()
    (tmp_path / "digits-notes").mkdir()
    assert RunFolder.create(tmp_path, "digits", "").path.name == "digits-008"
    assert RunFolder.create(tmp_path, "digits-adam", "").path.name == "digits-adam-012"


def test_existing_of_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is not the folder of a run: it has no config\.toml"):
        RunFolder.existing(tmp_path)


def test_reopen_keeps_the_earlier_error_and_takes_the_new_config(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "d", "old")
    folder.summary.write_text("{}")
    folder.progress.write_text("17")
    for number in (1, 2):
        folder.first_error(ErrorRecord(who=f"worker {number}", kind="PeerLostError", message="gone"))
        folder = RunFolder.reopen(folder.path, "new")
    assert folder.read_error() is None
    assert sorted(path.name for path in folder.path.glob("error*")) == ["error.1.json", "error.2.json"]
    assert folder.config.read_text() == "new"
    assert not folder.summary.exists()
    assert folder.read_progress() is None


def test_first_error_of_many_is_written_once_and_whole(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "d", "")
    records = [ErrorRecord(who=f"worker {i}", kind="ReplicaError", message="x" * 5000, status=1) for i in range(3)]
    assert [folder.first_error(record) for record in records] == [True, False, False]
    assert folder.read_error() == records[0]
    assert not list(folder.path.glob(".*"))


def test_read_progress_without_progress_is_none(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "d", "")
    assert folder.read_progress() is None
    folder.progress.write_text("17     ")
    assert folder.read_progress() == 17


def test_log_path_bears_role_and_index(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.log("coordinator") == tmp_path / "logs" / "coordinator.log"
    assert folder.log("worker", 2) == tmp_path / "logs" / "worker-2.log"
