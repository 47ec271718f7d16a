"""``MirroredStrategy``: all replicas in this process. ``default_strategy``: one replica, outside of every scope."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from distopt import replica_context
from distopt.comm.communicator import Hosting
from distopt.distribute.cross_device_ops import check_cross_device_ops
from distopt.distribute.inputs import InputContext, InputOptions
from distopt.distribute.owners import Phases
from distopt.distribute.strategy import Strategy
from distopt.distribute.strategy_extended import StrategyExtended
from distopt.distribute.variable_access import CrossReplicaAccess
from distopt.replica_context import Context
from distopt.types import ReduceOp


class MirroredStrategy(Strategy):
    """Several replicas in one process; the obviously right one, and the yardstick for the others.

    ``devices``: a number of replicas, or TensorFlow's list of device names (``["/cpu:0", "/cpu:1"]``), one replica
    each; default 1. ``cross_device_ops``: every choice gives the canonical sum, see
    :mod:`distopt.distribute.cross_device_ops`.

    Raises: ValueError for no replica, or for a device that is named twice; as ``check_cross_device_ops``.
    """

    def __init__(self, devices: int | Sequence[str] | None = None, cross_device_ops: Any = None) -> None:
        check_cross_device_ops(cross_device_ops)
        self.cross_device_ops = cross_device_ops
        super().__init__(Hosting.contiguous(num_replicas_of(devices), 1))


class DefaultStrategy(Strategy):
    """What is current outside of every strategy's scope: one replica, always in its replica context.

    It leaves the threads of the BLAS alone.
    """

    def __init__(self) -> None:
        self._cluster_resolver = None
        self.extended = StrategyExtended(self, Hosting.contiguous(1, 1), 0, None, Phases())
        self.extended.inspector.is_default = True
        replica = self.extended.contexts[0]
        access = CrossReplicaAccess(self, is_default=True)
        self.context = Context(self, replica, access, is_default=True)
        self.extended.cross_context = Context(self, None, access, is_default=True)
        replica.context = self.context

    def reduce(self, reduce_op: ReduceOp | str, value: Any, axis: int | tuple[int, ...] | None) -> Any:
        """Return ``value`` itself for ``axis=None``, else reduced over that axis."""
        return value if axis is None else super().reduce(reduce_op, value, axis)

    def experimental_distribute_dataset(self, dataset: Any, options: InputOptions | None = None) -> Iterable[Any]:  # noqa: ARG002
        """Return ``dataset``."""
        batches: Iterable[Any] = dataset
        return batches

    def distribute_datasets_from_function(
        self,
        dataset_fn: Callable[[InputContext], Iterable[Any]],
        options: InputOptions | None = None,  # noqa: ARG002
    ) -> Iterable[Any]:
        """Return ``dataset_fn(InputContext())``."""
        return dataset_fn(InputContext())


def num_replicas_of(devices: int | Sequence[str] | None) -> int:
    """Return how many replicas ``devices`` means: a number, one for each name of a list, or 1 by default.

    Raises: ValueError for none, or for a device that is named twice.
    """
    if devices is None:
        return 1
    if isinstance(devices, bool) or not isinstance(devices, int | Sequence) or isinstance(devices, str):
        raise ValueError(f"devices is a number of replicas or a list of device names, not {devices!r}")
    if isinstance(devices, int):
        if devices < 1:
            raise ValueError(f"a strategy needs at least 1 replica, not {devices}")
        return devices
    names = list(devices)
    if not names or any(not isinstance(name, str) for name in names):
        raise ValueError(f"devices is a number of replicas or a non-empty list of device names, not {devices!r}")
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"device {repeated[0]!r} is named twice; each replica needs a device of its own")
    return len(names)


default_strategy = DefaultStrategy()
replica_context.install_default(default_strategy.context)
