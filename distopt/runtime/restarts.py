"""Going on after a process was lost: the same job, started again from its last checkpoint.

What was computed since then is computed again, to the same bits, so the job ends with the hash of one that nothing
happened to. Only a loss is a reason: an error of the task or of the configuration would come again.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from distopt.errors import ConfigError, MissingDependencyError
from distopt.observe import ErrorRecord, RunFolder
from distopt.runtime.cluster import INSTALL_MPI, environment, mpi_rank_and_size
from distopt.runtime.lifeline import signal_when_parent_dies
from distopt.runtime.signals import INTERRUPTED, handling

_LOSSES = ("PeerLostError", "CollectiveTimeoutError", "JobAbortedError")

AS_MANY_AS_ASKED_FOR = {
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
}
"""What lets Open MPI (from 5.0 on, and before) start more ranks than there are cores, as MPICH does."""


_VERSION_LIMIT_S = 10.0


def run_with_restarts(
    attempt: Callable[[int], int], restarts: int, error: Callable[[], ErrorRecord | None], say: Callable[[str], object]
) -> int:
    """Return the status of the last attempt: the first, or after losses one of ``restarts`` others.

    ``attempt(number)``, from 0 on, runs the job and returns its exit status; ``error()`` is what ended it, None for
    processes that all died without a word. ``say`` gets a line before each restart.

    >>> statuses = iter([1, 0])
    >>> run_with_restarts(lambda number: next(statuses), 3, lambda: None, print)
    restart 1 of 3, from the last checkpoint
    0
    """
    status = attempt(0)
    for number in range(1, restarts + 1):
        record = None if status in (0, INTERRUPTED) else error()
        if status in (0, INTERRUPTED) or (record is not None and record.kind not in _LOSSES):
            break
        say(f"restart {number} of {restarts}, from the last checkpoint")
        status = attempt(number)
    return status


def check_restarts(restarts: int, deployment: str) -> None:
    """Refuse restarts where nobody is left to make them.

    Raises: ConfigError.
    """
    if restarts and deployment == "process":
        raise ConfigError(
            f'--restarts = {restarts} and deployment.on = "process" exclude each other: when that process is lost, '
            'nobody is left to start it again; set deployment.on to "cluster" or "mpi"'
        )
    if restarts and mpi_rank_and_size(environment()) is not None:
        raise ConfigError(
            f"--restarts = {restarts} and an MPI launcher exclude each other: its ranks end together; leave mpirun "
            "out: `distopt train --on mpi --set deployment.workers=RANKS --restarts N` starts it, as often as needed"
        )


def run_ranks(folder: RunFolder, num_ranks: int, *, survives_losses: bool) -> int:
    """Run the job in ``folder``, from its last checkpoint if it has one, on MPI ranks of this host.

    ``survives_losses``: where the launcher can let the others live when a rank is lost, have it do so.

    Returns the exit status, ``INTERRUPTED`` after SIGINT or SIGTERM; the ranks end with this process. Must be called on
    the main thread.

    Raises: MissingDependencyError if there is no ``mpirun``.
    """
    stopped = False

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        nonlocal stopped
        stopped = True
        process.send_signal(signal.SIGTERM)

    mpirun = _mpirun()
    options = ["--with-ft", "ulfm"] if survives_losses and _can_let_survivors_live(mpirun) else []
    job = [sys.executable, "-m", "distopt", "train", "--resume", str(folder.path)]
    command = [mpirun, *options, "-n", str(num_ranks), *job]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        env={**environment(), **AS_MANY_AS_ASKED_FOR},
        preexec_fn=functools.partial(signal_when_parent_dies, signal.SIGTERM),
        start_new_session=True,  # Ctrl-C is ours to pass on
    )
    with handling(stop):
        status = process.wait()
    if stopped:
        return INTERRUPTED
    # Where losses are survived, Open MPI 5.0.11 reports status 0 also if all ranks were killed.
    return abs(status) if status or folder.summary.exists() else 1


def _can_let_survivors_live(mpirun: str) -> bool:
    """Return whether this is the launcher of Open MPI 5 or later, which has ULFM unless it was built without."""
    try:
        told = subprocess.run([mpirun, "--version"], capture_output=True, text=True, timeout=_VERSION_LIMIT_S).stdout
    except (OSError, subprocess.TimeoutExpired):
        return False
    return offers_ulfm(told)


def offers_ulfm(version: str) -> bool:
    """Return whether ``version``, what ``mpirun --version`` says, is that of an MPI in which losses can be survived.

    >>> offers_ulfm("mpirun (Open MPI) 5.0.11"), offers_ulfm("mpirun (Open MPI) 4.1.4"), offers_ulfm("HYDRA 5.0.2")
    (True, False, False)
    """
    found = re.search(r"\(Open MPI\) (\d+)", version)
    return found is not None and int(found[1]) >= 5


def _mpirun() -> str:
    own = Path(sys.executable).parent / "mpirun"
    found = str(own) if os.access(own, os.X_OK) else shutil.which("mpirun")
    if found is None:
        raise MissingDependencyError(f"there is no mpirun to start the ranks with; {INSTALL_MPI}")
    return found
