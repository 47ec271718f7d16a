"""The gradients of one layout in memory that all processes of a host map: written by one, read by all.

Rules of this file: what a process contributes is written before an exchange, and read by others from then on until the
next one; the caller makes the exchanges.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from distopt.aggregation import Aggregator, Mean, Sum
from distopt.arena import ALIGNMENT, flattened
from distopt.autodiff.places import GradientPlace
from distopt.canonical_sum import Node, add_nodes
from distopt.comm import combining
from distopt.comm.communicator import Communicator, Hosting
from distopt.optimizers.layout import Part
from distopt.optimizers.terms import Terms
from distopt.types import Array

_STEP: Final = 1 << 16
"""Bytes that are compared at once: what differs is mostly found in the first ones."""


class SharedGradients:
    """Flat gradients of every node of the sum tree that a process of this host contributes.

    ``summed``: each process contributes the sums of the replicas that it hosts, not the gradients of each.
    ``extra_bytes`` are for what all write, each process about its equal part.

    Making it is a collective.

    Raises: SharedMemoryError if there is not enough memory.
    """

    def __init__(
        self, layout: Any, hosting: Hosting, communicator: Communicator, *, summed: bool, extra_bytes: int = 0
    ) -> None:
        self.layout = layout
        self.group = group = communicator.host_group
        self.summed = summed
        self._hosting = hosting
        self.nodes_of_ranks = contributed = hosting.contributed(summed=summed)
        nodes_of = [contributed[rank] for rank in group.ranks]
        self.num_nodes = sum(map(len, nodes_of))
        self.own_nodes = nodes_of[group.index]
        self.num_hosted = len(hosting.hosted[communicator.rank])
        self._leaves = hosting.leaves[communicator.rank]
        self._sizes = [padded(run.size * run.segment.dtype.itemsize) for run in layout.runs]
        what = f"the gradients of {len(layout.variables)} variables"
        memories = group.share(sum(self._sizes) * len(self.own_nodes), what)
        begins = equal_parts(0, extra_bytes, group.size)
        self.extra: Array = group.share_one(extra_bytes, begins, f"what is made of {what}")
        self.flat_of: dict[Node, list[Array]] = {}
        """By node, one flat array a run."""
        for memory, nodes in zip(memories, nodes_of, strict=True):
            for place, node in enumerate(nodes):
                self.flat_of[node] = self.flat_arrays(memory[place * sum(self._sizes) :])
        self.arrays: list[Array] | None = None
        """Where the one replica of this process may write its gradients; None where there are several, or none."""
        self._places: dict[int, GradientPlace] = {}
        """By position of the variable, for those that are large."""
        self._latest_terms: Terms | None = None
        self._alone = [place.position for packing in layout.packings for place in packing.alone]
        if len(self.own_nodes) == 1 and self.own_nodes == self._leaves:
            self.arrays = layout.unpack(self.flat_of[self.own_nodes[0]])
            # The small ones are copied all at once, which costs less than to look for them.
            for position in self._alone:
                storage = layout.variables[position].storage
                self._places[position] = GradientPlace(storage, self.arrays[position])

    def flat_arrays(self, memory: Array) -> list[Array]:
        """Return flat arrays for each run, one after another in ``memory``."""
        found = []
        start = 0
        for run, size in zip(self.layout.runs, self._sizes, strict=True):
            dtype = run.segment.dtype
            found.append(memory[start : start + run.size * dtype.itemsize].view(dtype))
            start += size
        return found

    def write(self, pairs_of: Sequence[Any]) -> None:
        """Write what this process contributes, for the others to read."""
        own = self.arrays
        given = pairs_of[0].arrays
        if given is own or (own is not None and all(map(operator.is_, given, own))):
            return  # they were written where they are read
        if own is not None:
            for packing, target in zip(self.layout.packings, self.flat_of[self.own_nodes[0]], strict=True):
                packing.write_small(given, target)
            for position in self._alone:
                self._put_alone(position, given[position])
            return
        gradients = dict(zip(self._leaves, pairs_of, strict=False))  # a stand-in contributes nothing
        for node in self.own_nodes:
            flat = self.flat_of[node]
            if node in gradients:
                self.layout.fill(gradients[node].arrays, flat)
                continue
            for variable, run, start, stop, _ in self.layout.parts:
                self._sum_of(node, [pairs.arrays[variable] for pairs in pairs_of], flat[run][start:stop])

    def put(self, part: Part, arrays: Sequence[Array]) -> None:
        """Write what this process contributes of one variable; ``arrays`` are the gradients of its replicas."""
        if self.arrays is not None:
            self._put_alone(part.variable, arrays[0])
            return
        for node in self.own_nodes:
            self._sum_of(node, arrays, self.flat_of[node][part.run][part.start : part.stop])

    def _put_alone(self, position: int, given: Array) -> None:
        assert self.arrays is not None, "asked by the callers"
        place = self._places.get(position)
        if place is not None:
            if place.holds(given):
                return
            place.vacate()
        self.arrays[position][...] = given

    def are_in_place(self, part: Part, arrays: Sequence[Array]) -> bool:
        """Return whether an operation has written ``arrays`` where they are read."""
        place = self._places.get(part.variable)
        return place is not None and place.holds(arrays[0])

    def may_put(self, part: Part) -> bool:
        """Return whether :meth:`put` would change no gradient that somebody still holds."""
        place = self._places.get(part.variable)
        return place is None or place.is_free

    def hold(self, part: Part) -> Array | None:
        """Return what keeps operations from writing a gradient of this variable, as long as it is held."""
        place = self._places.get(part.variable)
        return None if place is None else place.take(self.layout.variables[part.variable].storage)

    def holds(self, part: Part, arrays: Sequence[Array]) -> bool:
        """Return whether :meth:`put` would change nothing, not a bit."""
        if self.are_in_place(part, arrays):
            return True
        _, run, start, stop, _ = part
        scratch = np.empty(stop - start, self.flat_of[self.own_nodes[0]][run].dtype)
        return all(
            have_same_bits(self._sum_of(node, arrays, scratch), self.flat_of[node][run][start:stop])
            for node in self.own_nodes
        )

    def _sum_of(self, node: Node, arrays: Sequence[Array], out: Array) -> Array:
        terms = {
            leaf: flattened(array)
            for leaf, array in zip(self._leaves, arrays, strict=True)
            if node.start <= leaf.start < node.stop
        }
        return add_nodes(self._hosting.tree, terms, node, out=out)

    def terms(self, aggregator: Aggregator, sums: dict[Node, tuple[Array, ...]]) -> Terms | None:
        """Return ``sums`` as what the aggregate is added up from; None for one that is no plain sum or mean.

        The same object as the last time, where the arguments are: they are not to change.
        """
        kind = type(aggregator)
        if kind is not Sum and kind is not Mean:
            return None
        divisor = self._hosting.num_replicas if kind is Mean else None
        latest = self._latest_terms
        if latest is None or latest.sums is not sums or latest.divisor != divisor:
            latest = self._latest_terms = Terms(self._hosting.tree, sums, divisor)
        return latest

    def aggregate(
        self, aggregator: Aggregator, sums: dict[Node, tuple[Array, ...]], out: Sequence[Array]
    ) -> list[Array]:
        """Write the aggregate of ``sums``, whole arrays or alike parts of them, into ``out``, and return that."""
        return combining.aggregate(sums, self._hosting, aggregator, out, out=out)


def have_same_bits(first: Array, second: Array) -> bool:
    """Return whether two flat arrays of one dtype and length are the same, bit for bit.

    >>> have_same_bits(np.array([0.0]), np.array([-0.0])), have_same_bits(np.array([np.nan]), np.array([np.nan]))
    (False, True)
    """
    a, b = first.view(np.uint8), second.view(np.uint8)
    return all(np.array_equal(a[i : i + _STEP], b[i : i + _STEP]) for i in range(0, len(a), _STEP))


def padded(num_bytes: int) -> int:
    """Return ``num_bytes`` rounded up to whole alignment units."""
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT


def equal_parts(start: int, stop: int, number: int) -> list[tuple[int, int]]:
    """Return where each of ``number`` equal parts of ``start <= i < stop`` begins, and its number; none of nothing.

    >>> equal_parts(10, 17, 3), equal_parts(10, 10, 3)
    ([(10, 0), (12, 1), (14, 2)], [])
    """
    return [(start + (stop - start) * part // number, part) for part in range(number if start < stop else 0)]
