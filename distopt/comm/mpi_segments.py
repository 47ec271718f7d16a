"""The names of memory that MPI shares between the ranks of a host, which it leaves in the file system.

Open MPI and MPICH remove them when they finalize. So they would stay for ever where that is not reached: under Open MPI
if all ranks and the launcher are killed at once, or one of them inside of ``MPI_Init``, under MPICH after any abort or
kill. Ranks therefore remove them as soon as all have mapped them. What a job leaves that is killed before that, which
no process of it survives (under MPICH 3 MB for each kill inside of ``MPI_Init``), the next job of the user removes.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

_FOLDER: Final = Path("/dev/shm")
_NAMES: Final = ("sm_segment.", "mpich_shm_")
"""What Open MPI and MPICH call that memory."""

_LEFT_OVER_AFTER_S: Final = 60.0
"""No rank maps a segment so long after it was made; older ones that nobody has mapped are of no use."""


def unlink_shared_memory() -> None:
    """Remove the names of the segments of this job, and those of jobs before it that are of no use to anyone.

    To be called when all ranks have mapped the job's own, or when nobody will.
    """
    made_s = []
    for path in shared_memory_names():
        with contextlib.suppress(OSError):  # a peer was faster
            made_s.append(path.stat().st_mtime)
            path.unlink()
    if made_s:
        unlink_left_over(min(made_s) - _LEFT_OVER_AFTER_S)


def shared_memory_names(maps: Path = Path("/proc/self/maps")) -> set[Path]:
    """Return the names of the segments that this process has mapped, and of those of other ranks that Open MPI has."""
    try:
        lines = maps.read_text().splitlines()
    except OSError:
        return set()
    # Of a segment whose name is gone, the last word is "(deleted)".
    prefixes = [str(_FOLDER / name) for name in _NAMES]
    paths = {Path(line.split()[-1]) for line in lines if line[-1] != ")" and any(s in line for s in prefixes)}
    # The names of a job differ in the number at the end.
    return paths | {other for path in paths if path.suffix for other in path.parent.glob(f"{path.stem}.*")}


def unlink_left_over(before_s: float, folder: Path = _FOLDER, proc: Path = Path("/proc")) -> None:
    """Remove the names of this user's that were made before ``before_s`` and that no process is seen to have mapped.

    A process that hides loses nothing: it has what it has mapped.
    """
    user = os.getuid()
    old = set()
    for path in [path for name in _NAMES for path in folder.glob(f"{name}*")]:
        with contextlib.suppress(OSError):  # just removed
            if path.stat().st_uid == user and path.stat().st_mtime < before_s:
                old.add(path)
    if not old:
        return
    for process in proc.iterdir():
        if process.name.isdecimal():
            with contextlib.suppress(OSError):  # it has just ended, or hides
                maps = (process / "maps").read_text(errors="replace")
                old = {path for path in old if str(path) not in maps}
    for path in old:
        with contextlib.suppress(OSError):
            path.unlink()
