"""The ways of gradients to the owners of spans, and of what these make of them to all hosts, for one layout.

Every process owns spans. Where there are several hosts, spans are divided among hosts first, then among the ranks of
each, and are cut into chunks, which are on their way to and from other hosts while the next ones are worked on; see
:mod:`distopt.comm.between_hosts`. On one host nothing is on its way: owners read where others have written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import numpy as np

from distopt.arena import Span, aligned_zeros
from distopt.canonical_sum import Node, add_nodes
from distopt.comm.between_hosts import BetweenHosts, Chunk
from distopt.comm.communicator import Communicator, Hosting
from distopt.distribute.early_sums import EarlySums, Overlap
from distopt.distribute.shared_gradients import SharedGradients
from distopt.types import Array

CHUNK_BYTES: Final = 1 << 20
"""Long enough that a message costs little beside its bytes, short enough to stay in the cache."""


ROWS: Final = b"rows"
"""What a process tells its host whose replicas begin to have row-sparse gradients."""


def told_of(begins_rows: bool, differs: bool) -> bytes:
    """Return what a process tells its host when its gradients are ready; ``differs``: see :meth:`SpanPaths.collect`."""
    return ROWS if begins_rows else b"differs" if differs else b""


class SpanPaths:
    """Between ``gradients``, those of the processes of this host, and the owners of everything.

    ``anywhere``: spans may also be cut in variables that are not to be divided between those who update them.
    ``chunk_bytes``: how long the chunks of spans are where there are several hosts; ``host_chunk_bytes``: where there
    is one, None for spans in one piece. ``overlap``: what sends partial sums early, if any does.
    """

    def __init__(
        self,
        hosting: Hosting,
        communicator: Communicator,
        gradients: SharedGradients,
        chunk_bytes: int = CHUNK_BYTES,
        *,
        anywhere: bool = False,
        host_chunk_bytes: int | None = None,
        overlap: Overlap | None = None,
    ) -> None:
        layout, group = gradients.layout, gradients.group
        self._hosting = hosting
        self._gradients = gradients
        self._layout = layout
        self._early: EarlySums | None = None
        spans_of = spans_of_ranks(layout, group.hosts, anywhere=anywhere)
        self.crosses_hosts = not group.holds_all
        """Whether there are other hosts."""
        length = chunk_bytes if self.crosses_hosts else host_chunk_bytes
        if length is not None:
            spans_of = [layout.chunks(spans, length, anywhere=anywhere) for spans in spans_of]
        self.spans_of = spans_of
        """By rank, cut into chunks as ``spans``."""
        self.spans: tuple[Span, ...] = spans_of[communicator.rank]
        """Of this process, cut into chunks."""
        self.sums = {node: tuple(layout.take(flat, self.spans)) for node, flat in gradients.flat_of.items()}
        """By node, what was contributed to ``spans``; current between :meth:`collect` and the end of the apply call."""
        own_bytes = sum(map(layout.num_bytes_of, self.spans))
        host_bytes = sum(layout.num_bytes_of(span) for rank in group.ranks for span in spans_of[rank])
        self.num_bytes_read = own_bytes * (gradients.num_nodes - len(gradients.own_nodes))
        """Of what the other processes of this host contribute to the spans of this one."""
        self.num_bytes_told = (host_bytes - own_bytes) * len(gradients.own_nodes)
        """Of what this process contributes to the spans of the others of this host."""
        if not self.crosses_hosts:
            return
        nodes_of_hosts = [nodes_of_host(hosting, ranks, gradients.summed) for ranks in group.hosts]
        num_bytes_of = [list(map(layout.num_bytes_of, spans)) for spans in spans_of]
        self._between = BetweenHosts(communicator, group.hosts, nodes_of_hosts, num_bytes_of)
        self._received: dict[Node, tuple[Array, ...]] = {}
        for ranks, nodes in zip(group.hosts, nodes_of_hosts, strict=True):
            for node in nodes if ranks != group.ranks else ():
                memory = [aligned_zeros(span.stop - span.start, layout.segment_of(span).dtype) for span in self.spans]
                self._received[node] = tuple(memory)
        self.sums.update(self._received)
        self._added: dict[tuple[Chunk, Node], Array] = {}
        self._blocks_of: list[list[int]] | None = None
        if overlap is not None:
            self._early = overlap.watch(gradients, self._between, self._received, self._span_of, self._add_into)

    def write(self, pairs_of: Sequence[Any]) -> bool:
        """Write what this process contributes; return whether what may have left early was something else."""
        if self._early is not None:
            return self._early.write(pairs_of)
        self._gradients.write(pairs_of)
        return False

    def send_nothing_early(self) -> None:
        """Let no partial sum leave before :meth:`collect` from now on; the same on all processes."""
        if self._early is not None:
            self._early.is_given_up = True

    def collect(self, label: bytes, *, withdraws: bool, differs: bool = False) -> bool:
        """Get what the other hosts contribute to ``spans``; return whether a process withdrew.

        The contributions of all processes of this host are ready, and these agree on whether they withdraw, and on
        whether what may have left early ``differs`` from them.
        """
        if not self.crosses_hosts:
            return withdraws
        if self._early is not None:
            must_send_again = self._early.agree(label, withdraws=withdraws or differs)
            if self._early.is_given_up:
                self._early = None
            if not must_send_again:
                return False
        return self._between.collect(self._add, self._received, label, withdraws=withdraws)

    def spread(self, made: Iterable[int], arrays_of: Callable[[Span], Sequence[Array]]) -> None:
        """Send each of ``spans`` to the other hosts as soon as ``made`` yields its position, and receive theirs.

        ``arrays_of`` returns where a span lies in memory that all processes of this host map.
        """
        if self.crosses_hosts:
            self._between.spread(made, lambda chunk: arrays_of(self.spans_of[chunk.owner][chunk.number]))
            return
        for _ in made:
            pass

    def exchange_sums(self, own: Array, by_block: Array) -> None:
        """Write the sums of squares of the blocks of owners on other hosts into ``by_block``, of shape [blocks, n].

        ``own`` are those of ``spans``. Each process of this host writes what it is told.
        """
        if not self.crosses_hosts:
            return
        if self._blocks_of is None:
            self._blocks_of = [list(self._layout.blocks_in(spans)) for spans in self.spans_of]
        blocks_of, num_sums = self._blocks_of, by_block.shape[1]
        found = self._between.exchange_parts(own, lambda owner: (len(blocks_of[owner]) * num_sums, by_block.dtype))
        for owner, sums in found.items():
            by_block[blocks_of[owner]] = sums.reshape(-1, num_sums)

    def _add(self, chunk: Chunk, node: Node) -> Array:
        """Return what this host contributes of ``node`` to a chunk of an owner elsewhere."""
        flat_of = self._gradients.flat_of
        if node in flat_of:
            (view,) = self._layout.take(flat_of[node], (self._span_of(chunk),))
            return np.asarray(view)
        target = self._added.get((chunk, node))
        if target is None:
            span = self._span_of(chunk)
            target = self._added[chunk, node] = aligned_zeros(
                span.stop - span.start, self._layout.segment_of(span).dtype
            )
        return self._add_into(chunk, node, target)

    def _add_into(self, chunk: Chunk, node: Node, target: Array) -> Array:
        """Write what this host contributes of ``node`` to a chunk of an owner elsewhere."""
        span = (self._span_of(chunk),)
        terms = {
            below: self._layout.take(flat, span)[0]
            for below, flat in self._gradients.flat_of.items()
            if node.start <= below.start < node.stop
        }
        return add_nodes(self._hosting.tree, terms, node, out=target)

    def _span_of(self, chunk: Chunk) -> Span:
        return self.spans_of[chunk.owner][chunk.number]


def spans_of_ranks(layout: Any, hosts: Sequence[Sequence[int]], *, anywhere: bool = False) -> list[tuple[Span, ...]]:
    """Return the spans of every rank: equal parts for the hosts, of these equal parts for the ranks of each.

    ``anywhere``: as :meth:`~distopt.optimizers.layout.Layout.cut_points` takes it.
    """
    units_of_host = math.lcm(*map(len, hosts))
    units = layout.divide(len(hosts) * units_of_host, anywhere=anywhere)
    found: dict[int, tuple[Span, ...]] = {}
    for host, ranks in enumerate(hosts):
        own = units_of_host // len(ranks)
        for place, rank in enumerate(ranks):
            first = host * units_of_host + place * own
            found[rank] = _joined([span for unit in units[first : first + own] for span in unit])
    return [found[rank] for rank in sorted(found)]


def _joined(spans: Sequence[Span]) -> tuple[Span, ...]:
    """Return the same elements in as few spans as they fit in.

    >>> _joined([Span(0, 0, 2), Span(0, 2, 3), Span(1, 3, 4)])
    (Span(segment_index=0, start=0, stop=3), Span(segment_index=1, start=3, stop=4))
    """
    found: list[Span] = []
    for span in spans:
        if found and found[-1].segment_index == span.segment_index and found[-1].stop == span.start:
            found[-1] = found[-1]._replace(stop=span.stop)
        else:
            found.append(span)
    return tuple(found)


def nodes_of_host(hosting: Hosting, ranks: Sequence[int], summed: bool) -> tuple[Node, ...]:
    """Return what the ranks of one host contribute together: the fewest nodes, or a node for each replica."""
    if summed:
        return hosting.tree.cover(replica for rank in ranks for replica in hosting.hosted[rank])
    return tuple(sorted(node for rank in ranks for node in hosting.leaves[rank]))
