"""Ways to add up values of replicas, by the names of ``tf.distribute``: all of them give the canonical sum.

The reference's choices differ in speed and in the order of additions, and so in the last bits. Here that order is
defined (:mod:`distopt.canonical_sum`), and how values travel is the transport's business. So a choice is accepted,
checked, and changes nothing; :class:`CrossDeviceOps` can be called by itself as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from distopt.canonical_sum import add_rows
from distopt.distribute import values
from distopt.indexed_slices import IndexedSlices
from distopt.tensor import Tensor
from distopt.types import Array, ReduceOp


class CrossDeviceOps:
    """Reduce and copy values of the replicas of this process."""

    def reduce(self, reduce_op: ReduceOp | str, per_replica_value: Any, destinations: Any, options: Any = None) -> Any:  # noqa: ARG002
        """Return the canonical sum (or mean) of a per-replica value as ``Mirrored``, one component a replica.

        ``destinations`` is a per-replica value, a variable or device names, and decides nothing. IndexedSlices are
        concatenated in replica order. A value that is the same everywhere is its own mean.

        Raises: ValueError for the sum of a value that is not per replica, other than 0.
        """
        operation = ReduceOp.parse(reduce_op)
        if not isinstance(per_replica_value, values.DistributedValues):
            if operation is ReduceOp.SUM and np.any(np.asarray(per_replica_value) != 0):
                raise ValueError(f"the sum of {per_replica_value!r} is not defined: it is no per-replica value")
            return values.Mirrored([per_replica_value])
        components = per_replica_value.values
        if isinstance(components[0], IndexedSlices):
            total: Any = _concatenated(components, operation)
        else:
            total = Tensor(_reduced([np.asarray(component) for component in components], operation))
        return values.Mirrored([total] * len(components))

    def batch_reduce(
        self, reduce_op: ReduceOp | str, value_destination_pairs: Sequence[tuple[Any, Any]], options: Any = None
    ) -> list[Any]:
        """Return :meth:`reduce` of each value."""
        return [self.reduce(reduce_op, value, destination, options) for value, destination in value_destination_pairs]

    def broadcast(self, tensor: Any, destinations: Any) -> Any:
        """Return ``tensor`` as ``Mirrored``, one component for each of ``destinations``."""
        count = len(destinations.values) if isinstance(destinations, values.DistributedValues) else 1
        return values.Mirrored([tensor] * count)


class ReductionToOneDevice(CrossDeviceOps):
    """``reduce_to_device`` has no effect.

    Raises: ValueError for an ``accumulation_fn``, which would give other bits than the canonical sum.
    """

    def __init__(self, reduce_to_device: Any = None, accumulation_fn: Any = None) -> None:
        if accumulation_fn is not None:
            raise ValueError(
                "accumulation_fn is not offered, the order of additions is fixed; combine gradients in your own way "
                "with the optimizer's gradient_aggregator (distopt.aggregation.Aggregator)"
            )
        self.reduce_to_device = reduce_to_device


class _Packed(CrossDeviceOps):
    def __init__(self, num_packs: int = 1) -> None:
        if num_packs < 0:
            raise ValueError(f"num_packs must not be negative, but is {num_packs}")
        self.num_packs = num_packs


class NcclAllReduce(_Packed):
    """``num_packs`` has no effect; ValueError if it is negative."""


class HierarchicalCopyAllReduce(_Packed):
    """``num_packs`` has no effect; ValueError if it is negative."""


def check_cross_device_ops(choice: Any) -> None:
    """Refuse what a strategy does not take for ``cross_device_ops``.

    Raises: TypeError for anything but CrossDeviceOps; ValueError for a subclass with a reduction of its own.
    """
    if choice is None:
        return
    if not isinstance(choice, CrossDeviceOps):
        raise TypeError(f"cross_device_ops must be a tf.distribute.CrossDeviceOps, not a {type(choice).__name__}")
    if not type(choice).__module__.startswith("distopt."):
        raise ValueError(
            f"{type(choice).__name__} would reduce in a way of its own, but a strategy's sum is the canonical one; "
            "give the optimizer a gradient_aggregator instead"
        )


def _reduced(arrays: Sequence[Array], operation: ReduceOp) -> Array:
    total = add_rows(np.stack(arrays))
    if operation is ReduceOp.SUM:
        return total
    mean: Array = total / len(arrays) if total.dtype.kind in "biu" else total / total.dtype.type(len(arrays))
    return mean


def _concatenated(slices: Sequence[IndexedSlices], operation: ReduceOp) -> IndexedSlices:
    rows = np.concatenate([each.values.numpy() for each in slices])
    if operation is ReduceOp.MEAN:
        rows = rows / rows.dtype.type(len(slices))
    return IndexedSlices(rows, np.concatenate([each.indices for each in slices]), slices[0].dense_shape)
