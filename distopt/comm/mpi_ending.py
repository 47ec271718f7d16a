"""How a process leaves MPI when it exits, in a way that cannot hang.

``MPI_Finalize`` waits for all ranks and so never returns where one of them is lost. At exit a rank that has seen an
error therefore aborts the job, and one that has not waits for the others' notes, by a deadline; only then it finalizes.
Where the launcher lets survivors live it does not finalize at all: after losses that may hang, and a loss meanwhile
makes it fail or crash in the other ranks (Open MPI 5.0.11).
"""

from __future__ import annotations

import atexit
import ctypes
import faulthandler
import os
import sys
from typing import TYPE_CHECKING, Any, Final

from distopt.comm import mpi_start
from distopt.errors import DistoptError

if TYPE_CHECKING:
    from distopt.comm.mpi import MpiCommunicator

_GRACE_S: Final = 10.0

communicators: list[MpiCommunicator] = []
"""Those of this process, in the order in which they were made, without those whose survivors go on."""

undone: list[Any] = []
"""Requests of communicators that lost a rank: MPI may still use the buffers."""


@atexit.register
def end_mpi() -> None:
    """Leave MPI; see the head of this file."""
    for comm in communicators:
        try:
            if hasattr(sys, "last_value"):
                comm.abort(1, f"rank {comm.rank} ended with {type(sys.last_value).__name__}: {sys.last_value}")
            comm.finish()
        except DistoptError as error:
            os.write(2, f"distopt: {error}\n".encode())
        if comm.has_failed:
            comm.abort(1)
    mpi = communicators[0].mpi if communicators else mpi_start.initialized_here()
    if mpi is None or mpi.Is_finalized():
        return
    libc = ctypes.CDLL(None)
    has_lost = any(comm.has_lost for comm in communicators)
    if has_lost or (mpi_start.initialized_here() is not None and hasattr(libc, "on_exit")):
        if communicators:
            # The last of the largest: others have a part of the ranks, or of those that are left.
            max(reversed(communicators), key=lambda comm: comm.size).meet_at_exit()
        if has_lost:
            libc.alarm(int(_GRACE_S))  # a hang ends the process, too
        _leave_without_finalizing(libc)
    else:
        # It keeps the interpreter's lock, so that no thread of ours could end it.
        faulthandler.dump_traceback_later(_GRACE_S, exit=True, file=sys.__stderr__ or 2)
        mpi.Finalize()
        faulthandler.cancel_dump_traceback_later()


def _leave_without_finalizing(libc: ctypes.CDLL) -> None:
    """Have this process end with its own status as soon as the interpreter has, and what MPI does at exit left out.

    The launcher takes that as a good end if the status is 0. ``on_exit`` is told the status, which Python keeps to
    itself, and calls ``_exit`` with it. Source: on_exit(3), of glibc.
    """
    if not hasattr(libc, "on_exit"):
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(0)
    libc.on_exit(ctypes.cast(libc._exit, ctypes.c_void_p), None)
