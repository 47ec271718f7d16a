"""Loading MPI, which initializes it, and the names of memory that it leaves in the file system meanwhile."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
from pathlib import Path
from typing import Any, Final

from distopt.errors import EndpointError

_GRACE_S: Final = 5.0

_MPI_SEGMENTS: Final = ("/dev/shm/sm_segment.", "/dev/shm/mpich_shm_")
"""What Open MPI and MPICH call the memory that ranks of a host share."""


def load_mpi(timeout_s: float = 60.0) -> Any:
    """Return the module ``mpi4py.MPI``; MPI is initialized by it.

    A rank that is lost before it has initialized MPI is missed by the others inside of that: for ever, where the
    launcher lets them live. Nobody can tell which one, so after ``timeout_s`` the process ends and says where it was.

    Raises: EndpointError if it, or the MPI library itself, cannot be loaded.
    """
    is_first = "mpi4py.MPI" not in sys.modules
    if is_first:  # it keeps the interpreter's lock, so that no thread of ours could end it
        faulthandler.dump_traceback_later(timeout_s + _GRACE_S, exit=True, file=sys.__stderr__ or 2)
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError, OSError) as error:
        raise EndpointError(
            "MPI cannot be loaded; install one with `pip install 'distopt[mpi]'`, "
            f"or load the one of your cluster, often `module load openmpi` ({error})"
        ) from error
    finally:
        if is_first:
            faulthandler.cancel_dump_traceback_later()
    return MPI


def unlink_shared_memory(maps: Path = Path("/proc/self/maps")) -> None:
    """Remove the names of the segments that MPI shares between the ranks of a host, which all have mapped them.

    Open MPI and MPICH remove them when they finalize. So they would stay for ever where that is not reached: under
    Open MPI if all ranks and the launcher are killed at once, under MPICH after any abort or kill.
    """
    try:
        lines = maps.read_text().splitlines()
    except OSError:
        return
    # Of a segment whose name is gone, the last word is "(deleted)".
    for path in {line.split()[-1] for line in lines if line[-1] != ")" and any(s in line for s in _MPI_SEGMENTS)}:
        with contextlib.suppress(OSError):  # a peer was faster
            os.unlink(path)
