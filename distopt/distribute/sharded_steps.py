"""What the apply calls of placement ``sharded`` for the variables of one layout share.

Each process writes what it contributes into a segment that its host maps, and owns some spans. Where there are several
hosts, spans are divided among hosts first, then among the ranks of each, and are cut into chunks, which are on their
way to and from other hosts while the next ones are worked on; see :mod:`distopt.comm.between_hosts`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from distopt.aggregation import Mean, Sum
from distopt.arena import ALIGNMENT, Span, aligned_zeros
from distopt.canonical_sum import Node, add_nodes
from distopt.comm import combining
from distopt.comm.between_hosts import BetweenHosts, Chunk
from distopt.comm.communicator import Communicator, Hosting
from distopt.comm.shared_memory import HostGroup
from distopt.optimizers.terms import Terms
from distopt.types import Array

CHUNK_BYTES: Final = 1 << 19
"""Long enough that a message costs little beside its bytes, short enough to stay in the cache."""


class LayoutSteps:
    """Segments for gradients and norms, the owner of this process's spans, and the way between hosts.

    ``summed``: each process contributes the sums of the replicas that it hosts, not the gradients of each. ``before``
    is what this replaces, whose segments are used again if they fit.
    """

    def __init__(
        self,
        optimizer: Any,
        layout: Any,
        hosting: Hosting,
        communicator: Communicator,
        summed: bool,
        before: LayoutSteps | None,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        self.layout = layout
        self._optimizer = optimizer
        self._hosting = hosting
        self._communicator = communicator
        self._group = group = communicator.host_group
        self._summed = summed
        self._stamp = self._bindings()
        rank = communicator.rank
        self._nodes_of = hosting.covers if summed else hosting.leaves
        """By rank, what it contributes."""
        spans_of = _spans_of_ranks(layout, group.hosts)
        if len(group.hosts) > 1:
            spans_of = [layout.chunks(spans, chunk_bytes) for spans in spans_of]
        self._spans = spans_of[rank]
        """Of this process; where there are several hosts, its chunks."""
        self._owner = optimizer.span_owner(layout, self._spans)
        own_bytes = sum(map(layout.num_bytes_of, self._spans))
        num_nodes, num_own = sum(len(self._nodes_of[r]) for r in group.ranks), len(self._nodes_of[rank])
        self.num_bytes_read = own_bytes * (num_nodes - num_own)
        """Of the contributions of the other processes of this host to the spans of this one."""
        self.num_bytes_told = (
            sum(layout.num_bytes_of(s) for r in group.ranks for s in spans_of[r]) - own_bytes
        ) * num_own
        """Of the contributions of this process to the spans of the others of its host."""
        reused = None if before is None or not before._is_of(group, summed) else before._memory
        self._memory: tuple[dict[Node, list[Array]], Array] = self._share() if reused is None else reused
        self._flat_of, self._all_sums = self._memory
        self._sums = {node: tuple(layout.take(flat, self._spans)) for node, flat in self._flat_of.items()}
        self._blocks = list(self._owner.blocks)
        self._own: list[Array] | None = None
        self._between: _Between | None = None
        if len(group.hosts) > 1:
            self._between = _Between(self, spans_of)
            self._sums.update(self._between.received)

    @property
    def crosses_hosts(self) -> bool:
        """Whether slots are current at their owners alone after an update."""
        return self._between is not None

    def is_current(self, group: HostGroup, summed: bool) -> bool:
        """Return whether variables and slots are still where they were, and treated as they were."""
        return self._is_of(group, summed) and self._stamp == self._bindings()

    def write(self, pairs_of: Sequence[Any]) -> None:
        """Write what this process contributes into its segment, for the others to read."""
        rank = self._communicator.rank
        leaves = self._hosting.leaves[rank]
        gradients = dict(zip(leaves, pairs_of, strict=False))  # a stand-in contributes nothing
        for node in self._nodes_of[rank]:
            flat = self._flat_of[node]
            if node in gradients:
                self.layout.pack(gradients[node].arrays, flat)
                continue
            below = [leaf for leaf in leaves if node.start <= leaf.start < node.stop]
            for variable, run, start, stop, _ in self.layout.parts:
                terms = {leaf: np.ascontiguousarray(gradients[leaf].arrays[variable]).reshape(-1) for leaf in below}
                add_nodes(self._hosting.tree, terms, node, out=flat[run][start:stop])

    def collect(self, label: bytes, *, withdraws: bool) -> bool:
        """Get what the other hosts contribute to the spans of this process; return whether a process withdrew.

        The contributions of all processes of this host are ready.
        """
        return withdraws if self._between is None else self._between.collect(label, withdraws)

    def update(self, aggregator: Any, hypers: dict[str, float]) -> None:
        """Aggregate the contributions to the spans of this process, and update them."""
        gradients = self._gradients(aggregator)
        owner, between = self._owner, self._between
        all_sums = self._all_sums[:0]
        if owner.exchanges:
            all_sums = self._all_sums[: len(self.layout.blocks) * owner.num_sums]
            by_block = all_sums.reshape(-1, owner.num_sums)
            own = owner.partials(gradients, hypers) if self._spans else np.empty(0)
            if self._spans:
                by_block[self._blocks] = own.reshape(-1, owner.num_sums)
            if between is not None:
                between.exchange_sums(own, by_block)
            self._group.exchange("the sums of squares of all are ready")
        if between is not None and not self._optimizer.only_accumulates:
            made = owner.apply_each(gradients, hypers, all_sums) if self._spans else ()
            between.way.spread(made, between.variables_of)
        elif self._spans:
            owner.apply(gradients, hypers, all_sums)

    def gather_slots(self) -> None:
        """Bring the slots from their owners to all hosts; a collective."""
        if self._between is None:
            return
        self._group.exchange("the slots are wanted on all hosts")
        self._between.way.spread(range(len(self._spans)), self._between.slots_of)
        self._group.exchange("the slots are on all hosts")

    def _gradients(self, aggregator: Any) -> Terms | list[Array]:
        """Return the aggregate over all replicas for each span, or what it is added up from."""
        if type(aggregator) in (Sum, Mean):
            # Added up in the very loop that updates, so each contribution is read once and no sum is stored.
            return Terms(
                self._hosting.tree, self._sums, self._hosting.num_replicas if type(aggregator) is Mean else None
            )
        if self._own is None:
            self._own = [np.empty_like(array) for array in next(iter(self._sums.values()))]
        return combining.aggregate(self._sums, self._hosting, aggregator, self._own, out=self._own)

    def _share(self) -> tuple[dict[Node, list[Array]], Array]:
        """Return the flat gradients of every node that a process of this host contributes, and the sums of all blocks.

        Sums of squares, that is, of which a rule takes two for each block.
        """
        group, layout = self._group, self.layout
        sizes = [padded(run.size * run.segment.dtype.itemsize) for run in layout.runs]
        num_sums = 2 * len(layout.blocks)
        num_nodes = len(self._nodes_of[self._communicator.rank])
        asked = sum(sizes) * num_nodes + (8 * num_sums if group.index == 0 else 0)
        memories = group.share(asked, f"the gradients of {len(layout.variables)} variables")
        found: dict[Node, list[Array]] = {}
        for memory, rank in zip(memories, group.ranks, strict=True):
            start = 0
            for node in self._nodes_of[rank]:
                found[node] = []
                for run, size in zip(layout.runs, sizes, strict=True):
                    dtype = run.segment.dtype
                    found[node].append(memory[start : start + run.size * dtype.itemsize].view(dtype))
                    start += size
        return found, memories[0][len(memories[0]) - 8 * num_sums :].view(np.float64)

    def _is_of(self, group: HostGroup, summed: bool) -> bool:
        return self._group is group and self._summed == summed

    def _bindings(self) -> tuple[int, int]:
        return self._optimizer.num_bindings, self._optimizer.slots.num_added


class _Between:
    """The way to the other hosts, and the arrays that travel on it."""

    def __init__(self, steps: LayoutSteps, spans_of: Sequence[Sequence[Span]]) -> None:
        self._hosting = hosting = steps._hosting
        self._layout = layout = steps.layout
        self._slots = steps._optimizer.slots
        self._flat_of = steps._flat_of
        self._spans_of = spans_of
        hosts, own_host = steps._group.hosts, steps._group.ranks
        nodes_of_hosts = [_nodes_of_host(hosting, ranks, steps._summed) for ranks in hosts]
        num_bytes_of = [list(map(layout.num_bytes_of, spans)) for spans in spans_of]
        self.way = BetweenHosts(steps._communicator, hosts, nodes_of_hosts, num_bytes_of)
        self._blocks_of = [_blocks_in(layout, spans) for spans in spans_of]
        own_spans = steps._spans
        self.received: dict[Node, tuple[Array, ...]] = {}
        """By node of another host, its sums of the own spans, once they are collected."""
        for ranks, nodes in zip(hosts, nodes_of_hosts, strict=True):
            for node in nodes if ranks != own_host else ():
                memory = [aligned_zeros(span.stop - span.start, self._dtype_of(span)) for span in own_spans]
                self.received[node] = tuple(memory)
        self._sums: dict[tuple[Chunk, Node], Array] = {}

    def collect(self, label: bytes, withdraws: bool) -> bool:
        """See :meth:`LayoutSteps.collect`."""
        return self.way.collect(self._add, self.received, label, withdraws=withdraws)

    def _add(self, chunk: Chunk, node: Node) -> Array:
        """Return what this host contributes of ``node`` to a chunk of an owner elsewhere."""
        span = (self._spans_of[chunk.owner][chunk.number],)
        whole = self._flat_of.get(node)
        if whole is not None:
            (view,) = self._layout.take(whole, span)
            return np.asarray(view)
        terms = {
            below: self._layout.take(flat, span)[0]
            for below, flat in self._flat_of.items()
            if node.start <= below.start < node.stop
        }
        target = self._sums.get((chunk, node))
        if target is None:
            first = next(iter(terms.values()))
            target = self._sums[chunk, node] = aligned_zeros(first.size, first.dtype)
        return add_nodes(self._hosting.tree, terms, node, out=target)

    def variables_of(self, chunk: Chunk) -> list[Array]:
        """Return where the variables of a chunk lie."""
        span = self._spans_of[chunk.owner][chunk.number]
        return [self._segment_of(span).buffer[span.start : span.stop]]

    def slots_of(self, chunk: Chunk) -> list[Array]:
        """Return where the slots of a chunk lie."""
        span = self._spans_of[chunk.owner][chunk.number]
        segment = self._segment_of(span)
        found = [array[span.start : span.stop] for array in self._slots.buffers(segment).values()]
        for variable, offset in zip(segment.variables, segment.offsets, strict=True):
            if span.start <= offset < span.stop:
                found += [array.reshape(-1) for array in self._slots.apart(variable).values()]
        return found

    def exchange_sums(self, own: Array, by_block: Array) -> None:
        """Write the sums of squares of the blocks of all owners on other hosts into ``by_block``.

        Each process of this host writes those that it is told.
        """
        num_sums = by_block.shape[1]
        found = self.way.exchange_parts(own, lambda owner: (len(self._blocks_of[owner]) * num_sums, own.dtype))
        for owner, sums in found.items():
            by_block[self._blocks_of[owner]] = sums.reshape(-1, num_sums)

    def _segment_of(self, span: Span) -> Any:
        return self._layout.runs[self._layout.run_of(span)].segment

    def _dtype_of(self, span: Span) -> np.dtype[Any]:
        dtype: np.dtype[Any] = self._segment_of(span).dtype
        return dtype


def _spans_of_ranks(layout: Any, hosts: Sequence[Sequence[int]]) -> list[tuple[Span, ...]]:
    """Return the spans of every rank: equal parts for the hosts, of these equal parts for the ranks of each."""
    units_of_host = math.lcm(*map(len, hosts))
    units = layout.divide(len(hosts) * units_of_host)
    found: dict[int, tuple[Span, ...]] = {}
    for host, ranks in enumerate(hosts):
        own = units_of_host // len(ranks)
        for place, rank in enumerate(ranks):
            first = host * units_of_host + place * own
            found[rank] = _joined([span for unit in units[first : first + own] for span in unit])
    return [found[rank] for rank in sorted(found)]


def _joined(spans: Sequence[Span]) -> tuple[Span, ...]:
    found: list[Span] = []
    for span in spans:
        if found and found[-1].segment_index == span.segment_index and found[-1].stop == span.start:
            found[-1] = found[-1]._replace(stop=span.stop)
        else:
            found.append(span)
    return tuple(found)


def _nodes_of_host(hosting: Hosting, ranks: Sequence[int], summed: bool) -> tuple[Node, ...]:
    """Return what the ranks of one host contribute together: the fewest nodes, or a node for each replica."""
    if summed:
        return hosting.tree.cover(replica for rank in ranks for replica in hosting.hosted[rank])
    return tuple(sorted(node for rank in ranks for node in hosting.leaves[rank]))


def _blocks_in(layout: Any, spans: Sequence[Span]) -> list[int]:
    """Return the positions of the norm blocks that lie in ``spans``, in the order of an owner of them."""
    joined = _joined(spans)
    return [
        index
        for span in joined
        for index, block in enumerate(layout.blocks)
        if block.segment_index == span.segment_index and span.start <= block.start < span.stop
    ]


def padded(num_bytes: int) -> int:
    """Return ``num_bytes`` rounded up to the alignment of arrays."""
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT
