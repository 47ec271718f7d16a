"""Strategies whose variables lie in one place: ``OneDeviceStrategy`` and ``CentralStorageStrategy``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distopt.comm.communicator import Hosting
from distopt.distribute.every_process import EveryProcess
from distopt.distribute.mirrored import num_replicas_of
from distopt.distribute.strategy import Strategy
from distopt.errors import PlacementError, UnaggregatedGradientsError


class OneDeviceStrategy(Strategy):
    """One replica, on ``device``; to try code for strategies with.

    Raises: ValueError for anything but a device name.
    """

    def __init__(self, device: str) -> None:
        if not isinstance(device, str) or not device:
            raise ValueError(f"OneDeviceStrategy needs the name of a device, such as '/cpu:0', not {device!r}")
        self.device = device
        super().__init__(Hosting.contiguous(1, 1))


class CentralStorageStrategy(Strategy):
    """Several replicas in this process and one value of each variable, which cannot differ between them.

    ``compute_devices`` as for MirroredStrategy. Gradients are summed; applying them unaggregated is
    UnaggregatedGradientsError, an unaggregated assignment in a replica a PlacementError, and so is a clip option.
    """

    def __init__(self, compute_devices: int | Sequence[str] | None = None, parameter_device: str | None = None) -> None:
        self.parameter_device = parameter_device
        super().__init__(Hosting.contiguous(num_replicas_of(compute_devices), 1))
        extended = self.extended
        extended.owners = _OnePlace(extended.hosting, 0, None, extended.phases, extended.inspector)


class _OnePlace(EveryProcess):
    """Owners of variables that have one value by definition."""

    def check(self, path: Any) -> None:
        """Refuse what the reference refuses: unaggregated gradients, and clips."""
        if not path.aggregate:
            raise UnaggregatedGradientsError(
                "experimental_aggregate_gradients=False would update each replica's own copy, but "
                "CentralStorageStrategy has one value for all; use MirroredStrategy"
            )
        if path.optimizer.clips.active:
            raise PlacementError("CentralStorageStrategy takes no clip options; use MirroredStrategy, or a transformer")

    def may_split(self, what: str) -> None:
        """Refuse: there is one value for all replicas."""
        raise PlacementError(
            f"{what} would give each replica a value of its own, but CentralStorageStrategy has one for all; give the "
            "variable an aggregation, or use MirroredStrategy"
        )
