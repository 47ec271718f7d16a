"""Compressed contributions on their way to servers: the codes of whole variables, where these are shorter than sums.

A server gets, of each replica, one buffer with the codes of all variables of which it owns a part, in their order. It
decodes them whole and keeps its part, so any code goes, however a variable is cut. Whether codes are pushed is known to
workers and servers beforehand, from who hosts what; see :mod:`~distopt.distribute.codes`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from distopt.aggregation import Compression, GradientAggregator
from distopt.comm.communicator import Hosting
from distopt.comm.hosting import Parcel
from distopt.distribute.variable_parts import VariablePart
from distopt.types import Array


def pushes_codes(aggregator: GradientAggregator, hosting: Hosting, variables: Sequence[Any]) -> bool:
    """Return whether workers push codes to servers that update spans of ``variables``."""
    compression = aggregator.compression
    if compression is None:
        return False
    arrays = [variable.storage for variable in variables]
    nodes = hosting.contributed(summed=aggregator.sums)
    as_sums = max(map(len, nodes)) * sum(array.nbytes for array in arrays)
    as_codes = max(map(len, hosting.leaves)) * compression.num_bytes_of(arrays)
    return bool(as_codes < as_sums)


def coded_parcels(
    compression: Compression,
    hosting: Hosting,
    rank: int,
    pairs_of: Sequence[Any],
    parts_of_servers: Sequence[Sequence[VariablePart]],
) -> list[list[Parcel]]:
    """Return what each server gets of the replicas that ``rank`` hosts."""
    lengths = [compression.num_bytes(array.size, array.dtype) for array in pairs_of[0].arrays]
    bounds = list(itertools.pairwise(itertools.accumulate(lengths, initial=0)))
    return [
        [
            Parcel(leaf, [np.concatenate([pairs.code[slice(*bounds[i])] for i in positions_of(parts)] or [_NOTHING])])
            for leaf, pairs in zip(hosting.leaves[rank], pairs_of, strict=False)
        ]
        for parts in parts_of_servers
    ]


class CodedSpans:
    """What a server that owns ``parts`` of ``variables`` gets of each replica."""

    def __init__(self, compression: Compression, variables: Sequence[Any], parts: Sequence[VariablePart]) -> None:
        self._compression = compression
        self._parts = tuple(parts)
        self._positions = positions_of(parts)
        self._like = [variables[i].storage for i in self._positions]
        self.num_bytes = compression.num_bytes_of(self._like)

    def decode(self, code: Array) -> dict[VariablePart, Array]:
        """Return the flat elements of each part."""
        arrays = self._compression.decode_all(code, self._like)
        flat = {i: array.reshape(-1) for i, array in zip(self._positions, arrays, strict=True)}
        return {part: flat[part.variable][part.start : part.stop] for part in self._parts}


def positions_of(parts: Sequence[VariablePart]) -> list[int]:
    """Return the positions of the variables that ``parts`` are of, each once, in order."""
    return sorted({part.variable for part in parts})


_NOTHING = np.empty(0, np.uint8)
