"""What this process was started by, and so how the job is deployed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal, TypeAlias

from distopt.errors import ConfigError
from distopt.runtime.config import JobConfig

Deployment: TypeAlias = Literal["process", "mpi", "cluster"]

_RANK_AND_SIZE = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),  # Open MPI
    ("PMI_RANK", "PMI_SIZE"),  # MPICH, Intel MPI, Slurm with PMI-1 or PMI-2
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),  # MVAPICH
    ("PMIX_RANK", "SLURM_NTASKS"),  # Slurm with PMIx, which gives a rank but no size
)
"""What MPI launchers set. Slurm's own variables (``SLURM_PROCID``) are also there without MPI, so they do not count."""

INSTALL_MPI = "install one with `pip install 'distopt[mpi]'` (or your system's Open MPI or MPICH)"


def environment() -> Mapping[str, str]:
    """Return this process's environment."""
    return os.environ


def mpi_rank_and_size(environ: Mapping[str, str]) -> tuple[int, int] | None:
    """Return this process's rank and the number of ranks if an MPI launcher started it, else None.

    >>> mpi_rank_and_size({"PMI_RANK": "1", "PMI_SIZE": "4"})
    (1, 4)
    >>> mpi_rank_and_size({"SLURM_PROCID": "1", "SLURM_NTASKS": "4"}) is None
    True
    """
    for rank_name, size_name in _RANK_AND_SIZE:
        rank, size = environ.get(rank_name, ""), environ.get(size_name, "")
        if rank.isdecimal() and size.isdecimal():
            return int(rank), int(size)
    return None


def choose_deployment(config: JobConfig, environ: Mapping[str, str]) -> Deployment:
    """Return where the job runs: what ``deployment.on`` says; ``"auto"`` is MPI inside an MPI launcher, else a cluster.

    Raises: ConfigError if an MPI launcher runs several of what must be one process, or the placement needs servers that
    MPI does not have, or memory that only its ranks share.
    """
    deployment = config.deployment
    launched = mpi_rank_and_size(environ)
    if deployment.on == "auto":
        chosen: Deployment = "cluster" if launched is None else "mpi"
    else:
        chosen = deployment.on
    if chosen == "mpi" and deployment.placement == "server":
        raise ConfigError(
            'deployment.placement = "server" and an MPI launcher exclude each other: ranks have no servers; '
            'set deployment.placement to "replica" or "auto", or start without mpirun'
        )
    if chosen == "cluster" and deployment.placement == "sharded":
        raise ConfigError(
            'deployment.placement = "sharded" needs the ranks of an MPI launcher, which share memory: start the job '
            'with `mpirun -n RANKS distopt train`, or set deployment.placement to "replica" or "server"'
        )
    if chosen != "mpi" and deployment.communication.overlap:
        raise ConfigError(
            f'deployment.communication.overlap = true is for the ranks of an MPI launcher, not for a "{chosen}": start '
            "the job with `mpirun -n RANKS distopt train`, or leave it out"
        )
    if chosen != "mpi" and launched is not None and launched[1] > 1:
        raise ConfigError(
            f'deployment.on = "{chosen}" and an MPI launcher of {launched[1]} ranks exclude each other: '
            'every rank would run the whole job; start without mpirun, or set deployment.on to "mpi"'
        )
    return chosen
