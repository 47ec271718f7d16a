"""How a process has ended that is not a child of this one, as far as the kernel tells.

Linux from 6.15 on keeps that with the ``pidfd`` of a process, for whoever opened one while it lived; elsewhere only the
parent is told, which in a job is the launcher. Source: Linux, include/uapi/linux/pidfd.h (``PIDFD_GET_INFO``).
"""

from __future__ import annotations

import os
import select
import struct
from typing import Final

try:
    import fcntl
except ImportError:  # no Unix, and so no pidfd
    fcntl = None  # type: ignore[assignment]

IS_GONE: Final = "is gone"

_PIDFD_GET_INFO: Final = 0xC040FF0B
_INFO: Final = struct.Struct("=Q52xi")
"""A mask of what is asked for and what is told, other fields, and at byte 60 the status as wait(2) has it."""
_EXIT: Final = 1 << 3

_SIGNALS: Final = {4: "SIGILL", 6: "SIGABRT", 7: "SIGBUS", 8: "SIGFPE", 9: "SIGKILL", 11: "SIGSEGV", 15: "SIGTERM"}
"""Those that are met; Linux, signal(7), x86 and ARM."""

_WAIT_MS: Final = 50
"""The status is there when the parent has fetched it, a moment after the end."""


def how_it_ended(pidfd: int) -> str:
    """Return how the process of ``pidfd``, which has ended, did so: the rest of a sentence about it.

    "was killed by SIGKILL", "ended with status 3", or "is gone" where the kernel does not tell.
    """
    try:
        status = _status(pidfd)
        if status is None:
            poll = select.poll()
            poll.register(pidfd, 0)
            poll.poll(_WAIT_MS)
            status = _status(pidfd)
    except OSError:
        return IS_GONE
    return IS_GONE if status is None else describe_status(os.waitstatus_to_exitcode(status))


def describe_status(status: int) -> str:
    """Return in words how a process has ended; a signal is a negative status, as :mod:`subprocess` has it.

    >>> describe_status(3), describe_status(-9)
    ('ended with status 3', 'was killed by SIGKILL')
    """
    if status >= 0:
        return f"ended with status {status}"
    return f"was killed by {_SIGNALS.get(-status, f'signal {-status}')}"


def _status(pidfd: int) -> int | None:
    """Return the status that wait(2) would have given, None if it is not known yet.

    Raises: OSError where it never will be.
    """
    if fcntl is None:
        raise OSError("no pidfd")
    told = bytearray(_INFO.size)
    _INFO.pack_into(told, 0, _EXIT, 0)
    fcntl.ioctl(pidfd, _PIDFD_GET_INFO, told)
    mask, status = _INFO.unpack(told)
    return int(status) if mask & _EXIT else None
