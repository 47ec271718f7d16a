"""Splitting global batches over replicas.

Policy DATA of ``tf.data.experimental.AutoShardPolicy``: every global batch of b rows is cut into chunks of
``ceil(b / R)`` rows, in order; chunk j belongs to replica j. So what a replica computes depends on neither the number
of processes nor on which of them hosts it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from distopt.distribute import values
from distopt.nest import map_structure
from distopt.sampling import batch_length, replica_chunk


class DistributedDataset:
    """An iterable of per-replica batches; made by ``strategy.experimental_distribute_dataset``.

    Each element is what this process's replicas get: plain where it hosts one, else ``PerReplica``. A replica without
    rows gets zero-row arrays of the right rank and dtype.
    """

    def __init__(self, dataset: Iterable[Any], strategy: Any) -> None:
        self._dataset = dataset
        self._strategy = strategy

    def __iter__(self) -> Iterator[Any]:
        for batch in self._dataset:
            yield split_batch(batch, self._strategy.extended)


def split_batch(batch: Any, extended: Any) -> Any:
    """Return the part of a global ``batch`` that belongs to the replicas of this process."""
    length = batch_length(batch)
    replicas = extended.hosting.num_replicas
    if extended.hosted:
        slices = [replica_chunk(length, replicas, replica) for replica in extended.hosted]
    else:
        slices = [slice(length, length)]
    return values.regroup([map_structure(lambda leaf, rows=rows: leaf[rows], batch) for rows in slices])
