"""The arithmetic of :meth:`~distopt.comm.communicator.Communicator.combine`: who owns which part, and adding it up.

Nothing here sends anything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from distopt.aggregation import Aggregator
from distopt.canonical_sum import Node, add_nodes
from distopt.comm.hosting import Contribution, Hosting
from distopt.types import Array

Sums: TypeAlias = dict[Node, tuple[Array, ...]]
"""What is known of some nodes: one array each of those that are combined in one call."""

Parts: TypeAlias = Sequence[Sequence[slice]]
"""By rank, then by array, the part that the rank owns."""


def even_parts(like: Sequence[Array], size: int) -> Parts:
    """Return parts that cover each array in rank order, as equal as possible; some are empty in a short array.

    >>> even_parts([np.zeros(5)], 2)
    [[slice(0, 2, None)], [slice(2, 5, None)]]
    """
    return [
        [slice(len(array) * rank // size, len(array) * (rank + 1) // size) for array in like] for rank in range(size)
    ]


def whole(like: Sequence[Array], size: int) -> Parts:
    """Return parts of which every rank owns everything."""
    return [[slice(0, len(array)) for array in like]] * size


def bytes_saved_by_parts(num_bytes: int, num_nodes: int, size: int) -> int:
    """Return about how many bytes less a rank receives, and adds up, if each owns a part and not all own everything.

    ``num_bytes`` are those of one node's arrays. With everything: the sums of all nodes. With parts: a part of those,
    and the others' parts of the result. To add up everything twice over is not free either, so half of the bytes count
    in any case.

    >>> bytes_saved_by_parts(8000, num_nodes=2, size=2), bytes_saved_by_parts(8000, num_nodes=8, size=8)
    (4000, 42000)
    """
    return max(num_bytes // 2, (num_nodes - 2) * num_bytes * (size - 1) // size)


def most_bytes_received(num_bytes: int, nodes: Sequence[Sequence[Node]], exchange_cost_bytes: int) -> int:
    """Return how many bytes the rank that receives most gets when arrays of ``num_bytes`` are combined.

    ``nodes``: by rank, what it contributes. Communicators decide by the same numbers how it goes.
    """
    size = len(nodes)
    count = sum(map(len, nodes))
    others = count - min(map(len, nodes))
    if bytes_saved_by_parts(num_bytes, count, size) <= exchange_cost_bytes:
        return others * num_bytes
    return (others + size - 1) * num_bytes // size


def check(
    contributions: Sequence[Contribution],
    hosting: Hosting,
    aggregator: Aggregator,
    like: Sequence[Array],
    rank: int,
    size: int,
) -> None:
    """Refuse what would make this rank send other buffers than its peers expect.

    Raises: ValueError.
    """
    _check_size(hosting, size)
    expected = hosting.contributed(summed=aggregator.sums)[rank]
    _check_nodes(contributions, expected, like, rank, f"the {aggregator.name}")


def check_leaves(
    contributions: Sequence[Contribution], hosting: Hosting, like: Sequence[Array], rank: int, size: int
) -> None:
    """Do the same for contributions of single replicas that are to be gathered.

    Raises: ValueError.
    """
    _check_size(hosting, size)
    _check_nodes(contributions, hosting.leaves[rank], like, rank, "a gather")


def _check_size(hosting: Hosting, size: int) -> None:
    if len(hosting.hosted) != size:
        raise ValueError(f"the hosting is of {len(hosting.hosted)} ranks, the communicator has {size}")


def _check_nodes(
    contributions: Sequence[Contribution], expected: Sequence[Node], like: Sequence[Array], rank: int, what: str
) -> None:
    given = sorted(contribution.node for contribution in contributions)
    if given != sorted(expected):
        raise ValueError(
            f"rank {rank} contributes {', '.join(map(str, expected)) or 'nothing'} to {what}, "
            f"but was given {', '.join(map(str, given)) or 'nothing'}"
        )
    shapes = [(array.shape, array.dtype) for array in like]
    for shape, _ in shapes:
        if len(shape) != 1:
            raise ValueError(f"arrays are combined flat, not in shape {shape}")
    for node, arrays in contributions:
        if [(array.shape, array.dtype) for array in arrays] != shapes:
            raise ValueError(f"the arrays of {node} differ from `like` in count, length or dtype")
        if not all(array.flags.c_contiguous for array in arrays):
            raise ValueError(f"the arrays of {node} are not contiguous")


def aggregate(
    sums: Mapping[Node, tuple[Array, ...]],
    hosting: Hosting,
    aggregator: Aggregator,
    like: Sequence[Array],
    out: Sequence[Array] | None = None,
) -> list[Array]:
    """Return the aggregate of each array from what the nodes have of it; in ``out`` where that is given.

    Raises: ValueError if the aggregator returns another shape or dtype than it was given.
    """
    results = []
    for index, target in enumerate(like):
        terms = {node: arrays[index] for node, arrays in sums.items()}
        if len(target) == 0:
            result = np.empty(0, target.dtype)
        elif aggregator.sums:
            total = add_nodes(hosting.tree, terms, out=None if out is None else out[index])
            result = aggregator.finish(total, hosting.num_replicas)
        else:
            result = aggregator.combine(np.stack([terms[Node(r, r + 1)] for r in range(hosting.num_replicas)]))
        if result.shape != target.shape or result.dtype != target.dtype:
            raise ValueError(
                f"the {aggregator.name} of {target.dtype} arrays of shape {target.shape} "
                f"came out as {result.dtype} of shape {result.shape}"
            )
        if out is not None and result is not out[index]:
            out[index][...] = result
        results.append(result)
    return results


class Inbox:
    """Memory for what is received, used again in every call: fresh memory costs as much as filling it."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)
        self._used = 0
        self._wanted = 0

    def clear(self) -> None:
        """Take back all arrays, and grow to the size that was wanted since the last time."""
        if self._wanted > len(self._memory):
            self._memory = np.empty(self._wanted, np.uint8)
        self._used = self._wanted = 0

    def empty(self, length: int, dtype: np.dtype[Any]) -> Array:
        """Return a flat array that is valid until ``clear``; new memory as long as there is not enough."""
        num_bytes = length * dtype.itemsize
        aligned = -(-num_bytes // 64) * 64
        self._wanted += aligned
        if self._used + aligned > len(self._memory):
            return np.empty(length, dtype)
        part = self._memory[self._used : self._used + num_bytes]
        self._used += aligned
        return part.view(dtype)


class Packed:
    """Arrays of any shape, as one flat array a dtype, and back."""

    def __init__(self, arrays: Sequence[Array]) -> None:
        self._shapes = [array.shape for array in arrays]
        dtypes = list(dict.fromkeys(array.dtype for array in arrays))
        self._group_of = [dtypes.index(array.dtype) for array in arrays]
        groups: list[list[Array]] = [[] for _ in dtypes]
        for array, group in zip(arrays, self._group_of, strict=True):
            groups[group].append(array.reshape(-1))
        self.flat = tuple(
            np.ascontiguousarray(group[0]) if len(group) == 1 else np.concatenate(group) for group in groups
        )

    def unpack(self, flat: Sequence[Array]) -> list[Array]:
        """Return arrays of the original shapes; never memory of the originals."""
        return [
            view.copy() if flat[group] is self.flat[group] else view
            for view, group in zip(self.views(flat), self._group_of, strict=True)
        ]

    def views(self, flat: Sequence[Array]) -> list[Array]:
        """Return views of ``flat`` in the original shapes."""
        position = [0] * len(flat)
        arrays = []
        for shape, group in zip(self._shapes, self._group_of, strict=True):
            start = position[group]
            position[group] += math.prod(shape)
            arrays.append(flat[group][start : position[group]].reshape(shape))
        return arrays
