"""``MultiWorkerMirroredStrategy``: replicas spread over the ranks of an MPI job."""

from __future__ import annotations

import enum
import logging
import platform
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import msgspec

from distopt.comm.communicator import Communicator, Hosting
from distopt.distribute.cluster_resolver import ClusterResolver, TFConfigClusterResolver
from distopt.distribute.early_sums import Overlap
from distopt.distribute.optimizer_settings import describe_differing
from distopt.distribute.sharded import Sharded
from distopt.distribute.span_paths import CHUNK_BYTES
from distopt.distribute.strategy import Strategy
from distopt.errors import PlacementError
from distopt.numerics import numerics_fingerprint
from distopt.release import VERSION

logger = logging.getLogger(__name__)


class CommunicationImplementation(enum.Enum):
    """Which collectives to use; accepted, and of no effect: the transport decides."""

    AUTO = "AUTO"
    RING = "RING"
    NCCL = "NCCL"


@dataclass(frozen=True, kw_only=True)
class CommunicationOptions:
    """Hints for collectives.

    ``timeout_seconds``: the longest wait for the other ranks in one collective; default: the communicator's.
    ``bytes_per_pack``: how long the pieces are in which gradients and variables go from host to host, each on its way
    while the next is worked on; 0 is for 1 MB. The same on all processes. No bit depends on it.
    ``overlap``: let what a host tells the others of a piece leave as soon as its gradients exist, while the backward
    pass goes on. The same on all processes. No bit depends on it; see docs/operations.md for where it pays.

    Raises: ValueError for a negative number.
    """

    bytes_per_pack: int = 0
    overlap: bool = False
    timeout_seconds: float | None = None
    implementation: CommunicationImplementation = CommunicationImplementation.AUTO

    def __post_init__(self) -> None:
        if self.bytes_per_pack < 0:
            raise ValueError(f"bytes_per_pack must be 0 or more, not {self.bytes_per_pack}")
        if self.timeout_seconds is not None and self.timeout_seconds <= 0:
            raise ValueError(f"timeout_seconds must be more than 0, not {self.timeout_seconds}")

    def merge(self, options: CommunicationOptions | None) -> CommunicationOptions:
        """Return these options, overridden by what ``options`` sets to anything but the default.

        >>> CommunicationOptions(bytes_per_pack=8).merge(CommunicationOptions(timeout_seconds=2.0)).bytes_per_pack
        8
        """
        if options is None:
            return self
        default = CommunicationOptions()
        given = {f.name: getattr(options, f.name) for f in fields(options)}
        return replace(self, **{name: value for name, value in given.items() if value != getattr(default, name)})


class MultiWorkerMirroredStrategy(Strategy):
    """Synchronous replicas over several processes, by all-reduce or with owners of parts.

    ``replicas``: how many make a step, whatever the number of processes; default one a rank. Each rank hosts a
    contiguous range of them; ranks beyond the replicas host none and still take part. ``placement``: with
    ``"replica"`` every process makes the same update; with ``"sharded"`` each process of a host updates a part of the
    variables, which lie in memory that all of them map, once, as their slots do. ``communicator``: default is MPI's
    world, through mpi4py. A variable's initial value is that of rank 0. With ``"sharded"`` on several hosts, each host
    has all variables and updates a part; to read a slot is then a collective, as its owner may be on another host.

    The MPI launcher knows the cluster; a ``cluster_resolver`` is only compared with it, where it has a cluster. Of a
    process that no launcher has started, ``TF_CONFIG`` is looked at as well: it may say that there should be others.

    Raises: PlacementError for a placement that needs servers; EndpointError if MPI cannot be loaded; ValueError for
    fewer than one replica, arguments of another type, a placement, number of replicas, ``bytes_per_pack``, ``overlap``
    or release of distopt that is another one on other processes, ``overlap`` where lost ranks are survived, or a
    ``cluster_resolver`` that has another number of workers than there are ranks, or takes this one for another, or a
    ``TF_CONFIG`` with others for a process that was started by itself.
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
        if cluster_resolver is not None and not isinstance(cluster_resolver, ClusterResolver):
            raise ValueError(f"cluster_resolver must be a ClusterResolver, not a {type(cluster_resolver).__name__}")
        if communication_options is not None and not isinstance(communication_options, CommunicationOptions):
            raise ValueError(
                f"communication_options must be CommunicationOptions, not a {type(communication_options).__name__}"
            )
        if placement not in ("replica", "sharded"):
            raise PlacementError(
                f"placement {placement!r} is not offered by MultiWorkerMirroredStrategy; use 'replica' or 'sharded', "
                "or SyncParameterServerStrategy for 'server'"
            )
        if communicator is None:
            from distopt.comm.mpi import MpiCommunicator

            timeout_s = communication_options.timeout_seconds if communication_options else None
            communicator = MpiCommunicator() if timeout_s is None else MpiCommunicator(timeout_s=timeout_s)
            if cluster_resolver is None and communicator.size == 1:
                _check_alone(TFConfigClusterResolver())
        if cluster_resolver is not None:
            _check_same_cluster(cluster_resolver, communicator)
        self.communicator = communicator
        hosting = Hosting.contiguous(communicator.size if replicas is None else replicas, communicator.size)
        super().__init__(hosting, communicator.rank, communicator)
        extended = self.extended
        options = communication_options or CommunicationOptions()
        chunk_bytes = options.bytes_per_pack or CHUNK_BYTES
        if communicator.shares_memory:
            _check_same_strategy(options, placement, hosting.num_replicas, communicator)
        extended.every_process.chunk_bytes = chunk_bytes
        overlap = _overlap(communicator, extended.contexts, placement) if options.overlap else None
        if overlap is not None:
            extended.every_process.overlap = overlap
            extended.listener = overlap.listener
        if placement == "sharded":
            sharded = Sharded(hosting, communicator.rank, communicator, extended.phases, extended.inspector)
            sharded.chunk_bytes, sharded.overlap = chunk_bytes, overlap
            extended.owners = sharded
        self._cluster_resolver = cluster_resolver


def _overlap(communicator: Communicator, contexts: Sequence[Any], placement: str) -> Overlap | None:
    """Return what lets partial sums leave early, None where nothing leaves a host; a collective.

    Raises: ValueError where lost ranks are survived.
    """
    if communicator.survives_losses:
        raise ValueError(
            "overlap=True sends gradients before it is sure that they are applied, which is not done where lost ranks "
            "are survived; leave it out, or make the communicator without survives_losses"
        )
    if communicator.size == 1 or not (communicator.shares_memory or placement == "sharded"):
        return None
    return None if communicator.host_group.holds_all else Overlap(communicator, contexts)


def _check_same_strategy(
    options: CommunicationOptions, placement: str, num_replicas: int, communicator: Communicator
) -> None:
    """Compare what the processes were given; a collective. Rank 0 logs what may decide bits and differs.

    A job that is run from a configuration compares that before, and refuses it.

    Raises: ValueError, the same on all of them, that names the one that differs from most, and both values.
    """
    own = {
        "bytes_per_pack": str(options.bytes_per_pack),
        "distopt": release(),
        "overlap": str(int(options.overlap)),
        "placement": placement,
        "replicas": str(num_replicas),
    }
    computes = {**numerics_fingerprint("numpy"), "python": ".".join(platform.python_version_tuple()[:2])}
    payloads = communicator.all_gather_bytes(msgspec.json.encode((own, computes)))
    told = [msgspec.json.decode(payload, type=tuple[dict[str, str], dict[str, str]]) for payload in payloads]
    if lines := describe_differing([given for given, _ in told]):
        raise ValueError(f"the strategies of the processes differ: {lines}; make them alike on every process")
    lines = describe_differing([numerics for _, numerics in told])
    if lines and communicator.rank == 0:
        logger.warning("the processes may compute different bits: %s", lines)


def release() -> str:
    """Return the release of distopt that this process runs."""
    return VERSION


def _check_alone(resolver: ClusterResolver) -> None:
    """Refuse a cluster of which this process, started by itself, would be one worker."""
    if resolver.cluster_spec() and resolver.worker_count > 1:
        raise ValueError(
            f"TF_CONFIG says that this is one of {resolver.worker_count} workers, but it was started by itself and "
            f"would train alone: start all of them with `mpirun -n {resolver.worker_count}`, or unset TF_CONFIG"
        )


def _check_same_cluster(resolver: ClusterResolver, communicator: Communicator) -> None:
    if not resolver.cluster_spec():
        return
    found = (resolver.worker_count, resolver.id_in_cluster)
    if found != (communicator.size, communicator.rank):
        raise ValueError(
            f"the cluster resolver says that this is worker {found[1]} of {found[0]}, but it was started as rank "
            f"{communicator.rank} of {communicator.size}; start the workers with `mpirun -n {found[0]}`, in that order"
        )
