"""The folder of one run: what it is made of, and who may write its one error.

::

    runs/digits-001/
        config.toml          the configuration, resolved
        metrics.jsonl        a line an event: "started", "step", "epoch", "finished"
        progress             steps done, and where in metrics.jsonl this start of the job begins; rewritten in place,
                             and readable after the writer was killed
        logs/<role>-<index>.log
        checkpoints/         see distopt.checkpoint.files
        summary.json         absent until the job has ended well
        error.json           absent unless it failed; written once, by whoever failed first
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from distopt.errors import CheckpointError


class ErrorRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The one error of a job: who met it, and the line that the user reads."""

    who: str
    """Role and index, for example ``"worker 1"``."""
    kind: str
    """The name of the exception's class."""
    message: str
    status: int = 1
    """Exit status that follows from it."""


class RunFolder:
    """Paths and files of one run; see the module's text."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.toml"
        self.metrics = path / "metrics.jsonl"
        self.progress = path / "progress"
        self.logs = path / "logs"
        self.checkpoints = path / "checkpoints"
        self.summary = path / "summary.json"
        self.error = path / "error.json"

    @classmethod
    def create(cls, directory: Path, name: str, config: str) -> RunFolder:
        """Return the new folder ``<directory>/<name>-<number>``, holding ``config``; no two processes get the same.

        Raises: OSError if it cannot be made.
        """
        directory.mkdir(parents=True, exist_ok=True)
        numbers = [path.name.removeprefix(f"{name}-") for path in directory.glob(f"{name}-*")]
        number = max((int(text) for text in numbers if text.isdecimal()), default=0) + 1
        while True:
            folder = cls(directory / f"{name}-{number:03d}")
            try:
                folder.path.mkdir()
                break
            except FileExistsError:
                number += 1
        folder._fill(config)
        return folder

    @classmethod
    def reopen(cls, path: Path, config: str) -> RunFolder:
        """Return the folder of an earlier run, made ready to go on with ``config``.

        An error of the earlier run is kept as ``error.1.json``.

        Raises: CheckpointError if ``path`` is no run folder.
        """
        folder = cls.existing(path)
        folder.summary.unlink(missing_ok=True)
        folder.progress.unlink(missing_ok=True)
        if folder.error.exists():
            number = 1 + len(list(path.glob("error.*.json")))
            folder.error.rename(path / f"error.{number}.json")
        folder._fill(config)
        return folder

    @classmethod
    def existing(cls, path: Path) -> RunFolder:
        """Return the folder of a run, unchanged.

        Raises: CheckpointError if ``path`` is no run folder.
        """
        folder = cls(path)
        if not folder.config.is_file():
            raise CheckpointError(f"{path} is not the folder of a run: it has no config.toml")
        return folder

    def log(self, role: str, index: int | None = None) -> Path:
        """Return the path of a process's log."""
        return self.logs / (f"{role}.log" if index is None else f"{role}-{index}.log")

    def first_error(self, record: ErrorRecord) -> bool:
        """Write ``error.json`` and return True if this is the job's first error; else change nothing and return False.

        Any number of processes may try at once; exactly one succeeds, and no reader sees a part of the file.
        """
        temporary = self.path / f".error.{os.getpid()}.tmp"
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(record)))
        try:
            os.link(temporary, self.error)  # unlike a rename, fails if the name is taken
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
        return True

    def read_error(self) -> ErrorRecord | None:
        """Return the job's error, or None if there is none."""
        try:
            return msgspec.json.decode(self.error.read_bytes(), type=ErrorRecord)
        except FileNotFoundError:
            return None

    def read_progress(self) -> int | None:
        """Return how many steps were done when the job last said so, or None if it never did."""
        return self._read_progress(0)

    def read_start(self) -> int | None:
        """Return after how many bytes of the metrics the job was last started or resumed, None if it never was."""
        return self._read_progress(1)

    def _read_progress(self, word: int) -> int | None:
        try:
            return int(self.progress.read_text(encoding="ascii").split()[word])
        except (FileNotFoundError, ValueError, IndexError):
            return None

    def _fill(self, config: str) -> None:
        self.logs.mkdir(exist_ok=True)
        self.checkpoints.mkdir(exist_ok=True)
        temporary = self.path / ".config.toml.tmp"
        temporary.write_text(config, encoding="utf-8")
        temporary.replace(self.config)
