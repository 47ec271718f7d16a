"""Logs in which every line says when, which process, and at which step.

::

    2025-01-31 12:00:00,123 INFO worker 1 step 17: connected to server 0
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

_LOGGER = logging.getLogger("distopt")
_FORMAT = "%(asctime)s %(levelname)s %(process_name)s step %(step)s: %(message)s"


class _Where(logging.Filter):
    """Adds to each record who this process is and its step; one of a process, so that its threads all log the step."""

    def __init__(self) -> None:
        super().__init__()
        self.process_name = "process"
        self.step = 0

    def filter(self, record: logging.LogRecord) -> bool:
        record.process_name = self.process_name
        record.step = self.step
        return True


_where = _Where()


def configure_logging(process_name: str, path: Path | None, level: str = "info") -> None:
    """Send what distopt logs to ``path`` (None: stderr), in place of where it went before.

    ``process_name`` is what lines call this process, for example ``"worker 1"``; ``level`` is the lowest that is kept.
    """
    handler = logging.StreamHandler(sys.stderr) if path is None else logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter(_FORMAT))
    handler.addFilter(_where)
    for earlier in list(_LOGGER.handlers):
        _LOGGER.removeHandler(earlier)
        earlier.close()
    _LOGGER.addHandler(handler)
    _LOGGER.setLevel(level.upper())
    _LOGGER.propagate = False
    _where.process_name = process_name
    _where.step = 0


def set_step(step: int) -> None:
    """Make ``step`` the one that lines of this process bear from now on."""
    _where.step = step


def log_progress(*, epoch: int, step: int, loss: float, test_accuracy: float) -> None:
    """Log the end of an epoch."""
    set_step(step)
    _LOGGER.info("epoch %d done: loss %.4f, test accuracy %.4f", epoch, loss, test_accuracy)
