"""``MultiWorkerMirroredStrategy``: replicas spread over the ranks of an MPI job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from distopt.comm.communicator import Communicator, Hosting
from distopt.distribute.strategy import Strategy
from distopt.errors import PlacementError


@dataclass(frozen=True, kw_only=True)
class CommunicationOptions:
    """Hints for collectives.

    ``timeout_seconds``: the longest wait for the other ranks in one collective; default: the communicator's.
    ``bytes_per_pack``: accepted where TensorFlow has it; gradients travel as one buffer a dtype.

    Raises: ValueError for a negative number.
    """

    bytes_per_pack: int = 0
    timeout_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.bytes_per_pack < 0:
            raise ValueError(f"bytes_per_pack must be 0 or more, not {self.bytes_per_pack}")
        if self.timeout_seconds is not None and self.timeout_seconds <= 0:
            raise ValueError(f"timeout_seconds must be more than 0, not {self.timeout_seconds}")


class MultiWorkerMirroredStrategy(Strategy):
    """Synchronous replicas over several processes, by all-reduce.

    ``replicas``: how many make a step, whatever the number of processes; default one a rank. Each rank hosts a
    contiguous range of them; ranks beyond the replicas host none and still take part. ``placement``: ``"replica"``,
    every process makes the same update. ``communicator``: default is MPI's world, through mpi4py. A variable's initial
    value is that of rank 0.

    Raises: PlacementError for a placement that needs servers; EndpointError if MPI cannot be loaded; ValueError for
    fewer than one replica, or a ``cluster_resolver`` (the MPI launcher knows the cluster).
    """

    def __init__(
        self,
        cluster_resolver: Any = None,
        communication_options: CommunicationOptions | None = None,
        *,
        replicas: int | None = None,
        placement: str = "replica",
        communicator: Communicator | None = None,
    ) -> None:
        if cluster_resolver is not None:
            raise ValueError(
                "cluster_resolver is not used here: start the ranks with `mpirun`, which knows the cluster"
            )
        if placement != "replica":
            raise PlacementError(
                f"placement {placement!r} is not offered by MultiWorkerMirroredStrategy; use 'replica', or "
                "SyncParameterServerStrategy for 'server'"
            )
        if communicator is None:
            from distopt.comm.mpi import MpiCommunicator

            timeout_s = communication_options.timeout_seconds if communication_options else None
            communicator = MpiCommunicator() if timeout_s is None else MpiCommunicator(timeout_s=timeout_s)
        self.communicator = communicator
        hosting = Hosting.contiguous(communicator.size if replicas is None else replicas, communicator.size)
        super().__init__(hosting, communicator.rank, communicator)
