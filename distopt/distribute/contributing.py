"""What the replicas of this process contribute to an aggregate, where that is not their gradients as they are.

Weights and compression are applied here, once, whatever the placement; see :mod:`distopt.aggregation.compression`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from distopt.aggregation import GradientAggregator, Sum
from distopt.distribute.owners import densified
from distopt.optimizers.pipeline import Pairs, check_gradients
from distopt.types import Array


class ContributedPairs(Pairs):
    """What one replica contributes, with its code where it is compressed."""

    __slots__ = ("code",)

    def __init__(self, pairs: Pairs, code: Array | None) -> None:
        super().__init__(list(pairs), pairs.variables, pairs.arrays, pairs.key)
        self.code = code


def contributed(extended: Any, aggregator: GradientAggregator, pairs_of: Sequence[Pairs]) -> list[ContributedPairs]:
    """Return the contribution of each hosted replica, from its pairs; row-sparse gradients are made dense.

    Raises: ValueError for replicas that have not noted their samples.
    """
    weights = _weights(extended) if aggregator.by_samples else [None] * len(pairs_of)
    found = []
    for context, pairs, weight in zip(extended.contexts, pairs_of, weights, strict=True):
        arrays = [densified(gradient) for gradient, _ in pairs]
        if weight is not None:
            arrays = [array.dtype.type(weight) * array for array in arrays]
        code = None
        compression, memory = aggregator.compression, aggregator.memory
        if compression is not None and memory is not None and extended.hosted:
            replica = context.replica_id_in_sync_group
            said = [
                compression.contribution(memory, replica, variable, array)
                for array, variable in zip(arrays, pairs.variables, strict=True)
            ]
            arrays = [array for array, _ in said]
            code = np.concatenate([code for _, code in said])
        found.append(ContributedPairs(check_gradients(zip(arrays, pairs.variables, strict=True)), code))
    return found


def refuse_repeated(aggregator: GradientAggregator, pairs_of: Sequence[Pairs]) -> None:
    """Refuse a variable that is listed twice where something is remembered of it.

    Raises: ValueError.
    """
    key = pairs_of[0].key
    if aggregator.memory is not None and len(set(key)) < len(key):
        raise ValueError(f"the {aggregator.full_name} remembers what is left by variable, so none may be listed twice")


def _weights(extended: Any) -> list[float]:
    """Return the share that each hosted replica has in the samples of all; a collective."""
    counts = [getattr(context, "samples", None) for context in extended.contexts]
    if not extended.hosted:
        counts = [0] * len(counts)
    for context, count in zip(extended.contexts, counts, strict=True):
        if count is None:
            raise ValueError(
                f"mean_by_samples weighs by samples, and replica {context.replica_id_in_sync_group} has not noted how "
                "many it has: call distopt.aggregation.note_samples(count) in each replica, before apply_gradients"
            )
    (total,) = extended.every_process.aggregate(Sum(), [[np.full(1, count, np.float64) for count in counts]])
    if not total[0] > 0:
        raise ValueError("mean_by_samples: no replica has noted a sample")
    return [float(count / total[0]) for count in counts]
