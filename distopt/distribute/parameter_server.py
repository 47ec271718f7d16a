"""``SyncParameterServerStrategy``: replicas on workers, variables on servers, in lock step.

TensorFlow's ``ParameterServerStrategy`` is asynchronous; this is the synchronous one that it lacks, with the
arithmetic of ``MirroredStrategy``.
"""

from __future__ import annotations

from typing import Any

from distopt.comm.communicator import Hosting
from distopt.distribute.servers import Servers
from distopt.distribute.strategy import Strategy
from distopt.errors import PlacementError


class SyncParameterServerStrategy(Strategy):
    """Synchronous training through parameter servers.

    ``communicator``: this worker's link to the servers (:class:`distopt.comm.zmq.ServerCommunicator`), which the
    runtime makes. ``replicas``: how many make a step; default one a worker. ``placement``: ``"server"``, servers
    aggregate, clip and update, and variables travel back; ``"replica"``, servers only aggregate, and every worker
    makes the same update.

    Raises: PlacementError for any other placement.
    """

    def __init__(self, communicator: Any, *, replicas: int | None = None, placement: str = "server") -> None:
        self.communicator = communicator
        hosting = Hosting.contiguous(communicator.size if replicas is None else replicas, communicator.size)
        super().__init__(hosting, communicator.rank, communicator)
        if placement == "server":
            extended = self.extended
            extended.owners = Servers(hosting, communicator.rank, communicator, extended.phases, extended.inspector)
        elif placement != "replica":
            raise PlacementError(
                f"placement {placement!r} is not known to parameter servers; use 'server' or 'replica'"
            )
