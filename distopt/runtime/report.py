"""The one error line of a job, whichever of its processes meets an error first."""

from __future__ import annotations

import logging
import sys
import traceback
from dataclasses import dataclass

from distopt.errors import ConfigError, DistoptError, JobAbortedError
from distopt.observe import ErrorRecord, RunFolder, configure_logging

_LOGGER = logging.getLogger(__name__)


@dataclass
class _Where:
    folder: RunFolder | None = None
    name: str = "distopt"
    speaks: bool = True


_where = _Where()


def attach(folder: RunFolder | None, role: str, index: int | None = None, *, level: str, speaks: bool = True) -> None:
    """Make this process a part of the run in ``folder``: its log goes there, and so does its error.

    Without a folder the log goes to standard error. A process that does not ``speak`` leaves the printing of the error
    to whoever reads ``error.json``.
    """
    _where.folder, _where.speaks = folder, speaks
    _where.name = role if index is None else f"{role} {index}"
    configure_logging(_where.name, None if folder is None else folder.log(role, index), level)


def report(error: BaseException) -> int:
    """Log ``error``, make it the job's if it is the first, print it if that falls to this process; return the status.

    An error that another process caused (JobAbortedError) is not the job's: the other one reports it.
    """
    status = 2 if isinstance(error, ConfigError) else 1
    folder = _where.folder
    expected = isinstance(error, DistoptError)
    message = str(error) if expected else f"unexpected {type(error).__name__}: {error}"
    if folder is None:
        _LOGGER.debug("%s", message, exc_info=error)
        if not expected:
            traceback.print_exception(error)
        print_error(message)
        return status
    log = next(
        (h.baseFilename for h in logging.getLogger("distopt").handlers if isinstance(h, logging.FileHandler)), ""
    )
    _LOGGER.error("%s", message, exc_info=None if isinstance(error, JobAbortedError) else error)
    if not expected:
        message += f" (a defect, or an error in the task's code; its traceback is in {log})"
    if isinstance(error, JobAbortedError):
        return status
    record = ErrorRecord(who=_where.name, kind=type(error).__name__, message=message, status=status)
    if folder.first_error(record) and _where.speaks:
        print_error(message)
    return status


def print_recorded_error(folder: RunFolder) -> int | None:
    """Print the error of the run in ``folder`` and return its status, or return None if it has none."""
    record = folder.read_error()
    if record is None:
        return None
    print_error(record.message)
    return record.status


def speak_from_now_on() -> None:
    """Print this process's error itself: whoever would have read ``error.json`` is gone."""
    _where.speaks = True


def print_error(message: str) -> None:
    """Print the line that a user reads."""
    sys.stderr.write(f"distopt: error: {message}\n")
    sys.stderr.flush()
