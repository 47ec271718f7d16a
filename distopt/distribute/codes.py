"""Compressed contributions between the processes of an all-reduce: sent as their codes where that takes fewer bytes.

A process can either send the code of each replica that it hosts, or decode them, add up what it hosts and send the
sums. Both give the same bits; which one takes fewer bytes is known beforehand, on every process alike, from who hosts
what and the lengths of codes, which do not depend on values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from distopt.aggregation import Compression, GradientAggregator
from distopt.comm import combining
from distopt.comm.communicator import Communicator, Contribution, Hosting
from distopt.types import Array


def sends_codes(
    aggregator: GradientAggregator, hosting: Hosting, communicator: Communicator | None, like: Sequence[Array]
) -> bool:
    """Return whether the replicas' codes cross the boundary of a process, and not sums; ``like``: one replica's arrays.

    Gradients of an aggregator that needs each replica's would cross one by one in any case.
    """
    compression = aggregator.compression
    if communicator is None or communicator.size == 1 or compression is None:
        return False
    dense = sum(array.nbytes for array in like)
    nodes = hosting.contributed(summed=aggregator.sums)
    as_sums = combining.most_bytes_received(dense, nodes, communicator.exchange_cost_bytes)
    as_codes = max(hosting.num_replicas - len(leaves) for leaves in hosting.leaves) * compression.num_bytes_of(like)
    return as_codes < as_sums


def gather_codes(
    compression: Compression,
    hosting: Hosting,
    rank: int,
    communicator: Communicator,
    pairs_of: Sequence[Any],
    label: bytes = b"",
) -> dict[int, list[Array]]:
    """Return what the replicas of all other processes contribute, by replica; ``pairs_of``: those hosted here."""
    arrays = pairs_of[0].arrays
    like = [np.empty(compression.num_bytes_of(arrays), np.uint8)]
    leaves = hosting.leaves[rank]
    own = [Contribution(leaf, (pairs.code,)) for leaf, pairs in zip(leaves, pairs_of, strict=False)]
    gathered = communicator.gather(own, hosting, like, label)
    return {
        leaf.start: compression.decode_all(code, arrays)
        for leaf, (code,) in sorted(gathered.items())
        if leaf not in leaves
    }
