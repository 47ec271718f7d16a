"""Row-sparse gradients with placement ``replica`` where processes share the memory of a host.

Every process needs the rows of all replicas. What it needs once a host is brought there once, and read by all::

    summed    each process adds up some rows of every table: what this host contributes, which it also sends to each
              other host, and what these send. It writes the sums where the others of its host read them
    stored    where something looks at rows before they are summed, each process sends what its replicas stored to one
              process of each other host, which receives it where its whole host reads it

Sums of several hosts stay apart until all are there, as subtrees of the canonical sum; the last addition writes to
where the others read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from distopt.canonical_sum import Node
from distopt.comm.communicator import Communicator, Hosting, Receive, Send
from distopt.distribute.host_rows import HostRows, Met, Wish
from distopt.distribute.row_memory import HostMemory, listed_in, num_bytes_of
from distopt.distribute.row_paths import Interval, RowPaths
from distopt.distribute.shared_gradients import padded
from distopt.indexed_slices import IndexedSlices
from distopt.row_lists import Rows, halves, listed, write_sum
from distopt.row_sums import RowSum
from distopt.types import Array

_SUMMED = Wish(summed=True, in_order=True)
_STORED = Wish(summed=False, in_order=False)


class RowsInHostMemory:
    """Of the processes of ``communicator``; making it is a collective."""

    def __init__(self, hosting: Hosting, communicator: Communicator) -> None:
        self._hosting = hosting
        self._communicator = communicator
        self._group = communicator.host_group
        self._rows = HostRows(hosting, communicator)
        self.arrays = self._rows.arrays
        self._paths = RowPaths(hosting, communicator)
        self._shared = HostMemory(self._group)
        """What each process makes for the others of its host."""
        self.num_bytes_told = 0
        """Of what the others of this host have read of this process's memory in the latest call."""

    def sum(self, columns: Sequence[Sequence[Any]], label: bytes) -> list[IndexedSlices | None]:
        """Return the canonical sum over all replicas of each gradient; None for one that is dense somewhere."""
        met = self._rows.meet(columns, [True] * len(columns), _SUMMED, label, own_part=self._own_part)
        collected = self._paths.own_sums(met, self._division, summed=True)
        told, read = self._paths.local_traffic(met, self._rows.own_nodes(_SUMMED), collected, self._division)
        tree = self._hosting.tree
        own = {i: halves(tree, collected[i]) if i in collected else [] for i in met.with_rows}
        parts = self._publish(own, met)
        results: list[IndexedSlices | None] = [None] * len(columns)
        for i in met.with_rows:
            indices, values = (np.concatenate(arrays) for arrays in zip(*(sums[i] for sums in parts), strict=True))
            total = RowSum(indices, _shaped(values, columns[i]))
            results[i] = IndexedSlices.of_sum(total, columns[i][0].shape)
        for place, sums in enumerate(parts):
            num_bytes = sum(array.nbytes for rows in sums.values() for array in rows)
            told, read = (told + num_bytes, read) if place == self._group.index else (told, read + num_bytes)
        self._finish(told, read)
        return results

    def gather(self, columns: Sequence[Sequence[Any]], label: bytes) -> list[IndexedSlices | None]:
        """Return the rows of all replicas as they were stored, in replica order, likewise."""
        met = self._rows.meet(columns, [True] * len(columns), _STORED, label, copies_all=self._paths.crosses_hosts)
        received = self._receive(met)
        results: list[IndexedSlices | None] = [None] * len(columns)
        for i in met.with_rows:
            of_nodes: dict[Node, Any] = {**met.rows[i], **received[i]}
            stored = [listed(of_nodes[leaf]) for leaf in sorted(of_nodes)]
            shape = columns[i][0].shape
            results[i] = IndexedSlices.concatenate(
                [IndexedSlices(_shaped(rows.values, columns[i]), rows.indices, shape) for rows in stored]
            )
        told = read = 0
        own = self._rows.own_nodes(_STORED)
        for i, of_nodes in met.rows.items():
            for node, rows in of_nodes.items():
                num_bytes = met.shapes[i].num_bytes(len(rows.indices))
                told, read = (told + num_bytes, read) if node in own else (told, read + num_bytes)
        self._finish(told, read)
        return results

    def _own_part(self, num_rows: int) -> Interval:
        """Return which rows of this process no other one reads: with other hosts, what they want may be sent by any."""
        return Interval(0, 0) if self._paths.crosses_hosts else self._division(self._communicator.rank, num_rows)

    def _division(self, rank: int, num_rows: int) -> Interval:
        """Return which rows a process adds up for its host."""
        ranks = next(ranks for ranks in self._group.hosts if rank in ranks)
        place = ranks.index(rank)
        return Interval(num_rows * place // len(ranks), num_rows * (place + 1) // len(ranks))

    def _publish(self, own: Mapping[int, Sequence[Rows]], met: Met) -> list[dict[int, RowSum]]:
        """Add up two lists of each variable, or take one, for the processes of this host; return the sums of all.

        They go where the others read them, with two numbers of each variable before: how many rows the sum has, and for
        how many there is room.
        """
        room = {i: sum(len(rows.indices) for rows in lists) for i, lists in own.items()}
        num_head_bytes = 16 * len(own)
        size = padded(num_head_bytes) + sum(num_bytes_of(met.shapes[i], most) for i, most in room.items())

        def write() -> None:
            memory = self._shared.own
            head = memory[:num_head_bytes].view(np.int64).reshape(len(own), 2)
            at = padded(num_head_bytes)
            for place, (i, lists) in enumerate(own.items()):
                head[place] = write_sum(lists, listed_in(memory, at, met.shapes[i], room[i])), room[i]
                at += num_bytes_of(met.shapes[i], room[i])

        self._write_for_host(size, write, "the rows of all are added up")
        found = []
        for memory in self._shared.of:
            told = memory[:num_head_bytes].view(np.int64).reshape(len(own), 2).tolist()
            at = padded(num_head_bytes)
            of_place = {}
            for i, (count, most) in zip(own, told, strict=True):
                indices, values = listed_in(memory, at, met.shapes[i], most)
                of_place[i] = RowSum(indices[:count], values[:count])
                at += num_bytes_of(met.shapes[i], most)
            found.append(of_place)
        return found

    def _write_for_host(self, size: int, write: Callable[[], None], phase: str) -> None:
        fits = size <= len(self._shared.own)
        if fits:
            write()
        sizes = [int(told) for told in self._group.exchange(phase, payload=b"%d" % size)]
        if self._shared.grow(sizes, "sums of row-sparse gradients"):
            if not fits:
                write()
            self._group.exchange(phase)

    def _receive(self, met: Met) -> dict[int, dict[Node, Rows]]:
        """Bring what the processes of other hosts stored to this host, once; return it by variable and replica."""
        found: dict[int, dict[Node, Rows]] = {i: {} for i in met.with_rows}
        if not self._paths.crosses_hosts:
            return found
        sizes = {rank: met.told[rank].num_bytes for rank in self._paths.partners}
        places: dict[int, tuple[int, slice]] = {}
        ends = [0] * self._group.size
        for rank, partner in self._paths.partners.items():
            place = self._group.ranks.index(partner)
            places[rank] = place, slice(ends[place], ends[place] + sizes[rank])
            ends[place] += sizes[rank]
        self._shared.grow(ends, "row-sparse gradients of other hosts")
        own = self._rows.own_memory
        self._communicator.exchange(
            [Send(peer, own) for peer in self._paths.own_partners.values() if len(own)],
            [
                Receive(rank, self._shared.own[part])
                for rank, (place, part) in places.items()
                if place == self._group.index and sizes[rank]
            ],
            "rows of the other hosts",
        )
        self._group.exchange("the rows of the other hosts are here")
        for rank, (place, part) in places.items():
            self._rows.read(self._shared.of[place][part], rank, met, found)
        return found

    def _finish(self, told: int, read: int) -> None:
        """End a call: what was read has been copied, and may be overwritten."""
        self._group.exchange("the rows of all are read")
        self.num_bytes_told = told
        self._communicator.traffic.bytes_sent += told
        self._communicator.traffic.bytes_received += read


def _shaped(values: Array, column: Sequence[Any]) -> Array:
    """Return a table of rows, ``[n, width]``, as rows of the shape that those of ``column`` have."""
    first = column[0]
    row_shape = (first.values if isinstance(first, IndexedSlices) else first).shape[1:]
    return values.reshape(len(values), *row_shape)
