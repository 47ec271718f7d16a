"""How a process leaves MPI when it exits, in a way that cannot hang.

``MPI_Finalize`` waits for all ranks and so never returns where one of them is lost. At exit a rank that has seen an
error therefore aborts the job, and one that has not waits for the others' notes, by a deadline; only then it finalizes.
"""

from __future__ import annotations

import atexit
import faulthandler
import logging
import os
import sys
from typing import TYPE_CHECKING, Any, Final

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
    if any(comm.has_lost for comm in communicators):  # to finalize may hang; the launcher takes this as a good end, too
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(0)
    if communicators and not communicators[0].mpi.Is_finalized():
        # It keeps the interpreter's lock, so that no thread of ours could end it.
        faulthandler.dump_traceback_later(_GRACE_S, exit=True, file=sys.__stderr__ or 2)
        communicators[0].mpi.Finalize()
        faulthandler.cancel_dump_traceback_later()
