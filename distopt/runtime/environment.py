"""What code outside of the runtime asks of the process's environment.

``distopt/__init__.py`` hands :func:`tf_config` to ``distopt.distribute.cluster_resolver``, which only parses its text,
:func:`cache_home` to ``distopt.kernels``, :func:`launched_rank` and :func:`~distopt.runtime.signals.last_words` to
``distopt.comm.mpi_start``, and the others to ``distopt.elastic``.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Mapping

from distopt.comm.started_ranks import LaunchedRank
from distopt.runtime.signals import last_words as last_words


def tf_config() -> str | None:
    """Return the value of ``TF_CONFIG``, or None where it is not set."""
    return os.environ.get("TF_CONFIG")


def cache_home() -> str | None:
    """Return the value of ``XDG_CACHE_HOME``, or None where it is not set."""
    return os.environ.get("XDG_CACHE_HOME")


def lets_survivors_live(environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether the MPI launcher keeps the other ranks when one is lost: ``mpirun --with-ft ulfm`` of Open MPI.

    Source: Open MPI 5.0 documentation, "User-Level Fault Mitigation (ULFM)".

    >>> lets_survivors_live({"OMPI_MCA_mpi_ft_enable": "1"}), lets_survivors_live({})
    (True, False)
    """
    return environ.get("OMPI_MCA_mpi_ft_enable", "").lower() in ("1", "true", "yes", "enabled")


def launched_rank(environ: Mapping[str, str] = os.environ) -> LaunchedRank | None:
    """Return which rank a process with this environment is, where the launcher tells nobody of one that is lost.

    None elsewhere. Source: Open MPI 5.0 documentation, "Environment variables that Open MPI sets at run time"; PMIx 5.

    >>> launched_rank({"OMPI_MCA_mpi_ft_enable": "1", "PMIX_NAMESPACE": "prterun-a-7@1", "OMPI_COMM_WORLD_RANK": "2",
    ...                "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_SIZE": "3"})
    LaunchedRank(job='prterun-a-7@1', rank=2, size=4, size_here=3)
    """
    numbers = [environ.get(f"OMPI_COMM_WORLD_{name}", "") for name in ("RANK", "SIZE", "LOCAL_SIZE")]
    job = environ.get("PMIX_NAMESPACE")
    if job is None or not lets_survivors_live(environ) or not all(number.isdecimal() for number in numbers):
        return None
    return LaunchedRank(job, *map(int, numbers))


def end_process(pid: int) -> None:
    """End a process that is stopped and would go on later; one that has ended meanwhile is none."""
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGKILL)
