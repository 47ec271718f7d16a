"""The ways of rows between hosts: what a host has of some rows goes to their owner once, and what became of them back.

For two hosts of two ranks each, which own a quarter of a table's rows each (placement ``sharded``)::

    rank 0 (host A)  owns a    rank 2 (host B)  owns c        partners: 0 and 2, 1 and 3
    rank 1 (host A)  owns b    rank 3 (host B)  owns d

    collect   rank 0 reads what host A contributes to the rows c, adds it up, tells rank 2 how many they are, sends them
    spread    rank 2 tells rank 0 how many rows of c there are new, and sends them, for all of host A to see

With placement ``replica`` every host owns all rows, divided among its ranks, and nothing comes back.

Rules of this file:

- A host sends a row once to each host that owns it: the sums of its subtrees of the canonical sum where rows may be
  summed, else the occurrences of each replica.
- Rows travel as their indices and values; where they ascend and a bit for each row of the part is shorter than the
  indices, as these bits and the values. Either way no value travels of a row that is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from distopt.arena import flattened
from distopt.canonical_sum import Node
from distopt.comm.communicator import Communicator, Hosting, Receive, Send
from distopt.comm.transfers import others_of
from distopt.distribute.host_rows import Met
from distopt.distribute.row_memory import Shape
from distopt.distribute.span_paths import nodes_of_host
from distopt.errors import RemoteProtocolError
from distopt.row_lists import PlacedRows, Rows, add_lists, listed, selected
from distopt.row_sums import RowSum
from distopt.types import Array


class Interval(NamedTuple):
    """The rows ``start <= row < stop`` of a table."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


Division = Callable[[int, int], Interval]
"""Of a rank and a number of rows: those that the rank owns."""


class RowPaths:
    """Between the processes of ``communicator``, on whichever hosts they are."""

    def __init__(self, hosting: Hosting, communicator: Communicator) -> None:
        group = communicator.host_group
        self._hosting = hosting
        self._communicator = communicator
        self._own_nodes_of = {summed: nodes_of_host(hosting, group.ranks, summed) for summed in (True, False)}
        self._hosts = group.hosts
        self.crosses_hosts = not group.holds_all
        """Whether there are other hosts."""
        self.partners: dict[int, int] = {}
        """By rank elsewhere, that of this host which sends to it and receives from it."""
        self.own_partners: dict[int, int] = {}
        """By other host, the rank there that does so with this rank."""
        rank, ranks = communicator.rank, group.ranks
        for host in others_of(group.hosts.index(ranks), len(group.hosts)):
            others = group.hosts[host]
            self.own_partners[host] = others[ranks.index(rank) * len(others) // len(ranks)]
            for place, other in enumerate(others):
                self.partners[other] = ranks[place * len(ranks) // len(others)]

    def own_sums(self, met: Met, division: Division, *, summed: bool) -> dict[int, dict[Node, Rows]]:
        """Return, by variable and node of the sum tree, what all hosts contribute to the rows of this rank.

        Views of shared memory, where nothing had to be added. With several hosts, for which rows must be in order, two
        exchanges, of all ranks.
        """
        rank = self._communicator.rank
        own = {i: division(rank, met.shapes[i].num_rows) for i in met.with_rows}
        own_of = _within if met.wish.in_order else selected
        found: dict[int, dict[Node, Rows]] = {
            i: {node: own_of(rows, *own[i]) for node, rows in met.rows[i].items()} for i in met.with_rows if own[i].size
        }
        if not self.crosses_hosts:
            return found
        owners = [owner for owner, partner in self.partners.items() if partner == rank]
        sends = {owner: self._packed_for(met, owner, division, summed) for owner in owners}
        nodes_from = {
            partner: [(i, node) for i in found for node in nodes_of_host(self._hosting, self._hosts[host], summed)]
            for host, partner in self.own_partners.items()
        }
        receives = {partner: [Slot(own[i], met.shapes[i]) for i, _ in nodes] for partner, nodes in nodes_from.items()}
        for partner, parts in self._exchange(sends, receives, "rows of the other hosts").items():
            for (i, node), rows in zip(nodes_from[partner], parts, strict=True):
                found[i][node] = rows
        return found

    def local_traffic(
        self, met: Met, own_nodes: Sequence[Node], own_sums: Mapping[int, Mapping[Node, Rows]], division: Division
    ) -> tuple[int, int]:
        """Return the bytes that the others of this host read of what this rank contributed, and it of theirs.

        ``own_sums``: what the method of this name returned.
        """
        rank = self._communicator.rank
        readers = [owner for owner, partner in self.partners.items() if partner == rank]
        told = read = 0
        for i, of_nodes in met.rows.items():
            shape, sums = met.shapes[i], own_sums.get(i)
            parts = [division(reader, shape.num_rows) for reader in readers]
            for node, rows in of_nodes.items():
                looked_at = 0 if sums is None else len(sums[node].indices)
                for part in parts:
                    looked_at += len(within(rows, part).indices)
                if node in own_nodes:
                    told += shape.num_bytes(len(rows.indices) - looked_at)
                else:
                    read += shape.num_bytes(looked_at)
        return told, read

    def spread(
        self,
        made: Mapping[int, RowSum],
        shapes: Mapping[int, Shape],
        division: Division,
        table_of: Callable[[int], Array],
    ) -> None:
        """Send the rows that this rank ``made`` of its own of each variable to the other hosts, and write theirs here.

        ``table_of`` returns where the rows ``[num_rows, width]`` of a variable lie in the memory of this host. Two
        exchanges of all ranks if there are several hosts.
        """
        if not self.crosses_hosts:
            return
        rank = self._communicator.rank
        own = {i: division(rank, shape.num_rows) for i, shape in shapes.items()}
        packed = [pack(made[i], own[i]) for i in shapes if own[i].size]
        places: dict[int, list[tuple[int, Slot]]] = {}
        for owner, partner in self.partners.items():
            if partner == rank:
                theirs = {i: division(owner, shape.num_rows) for i, shape in shapes.items()}
                places[owner] = [
                    (i, Slot(theirs[i], shape, table_of(i)[slice(*theirs[i])]))
                    for i, shape in shapes.items()
                    if theirs[i].size
                ]
        receives = {owner: [slot for _, slot in of_owner] for owner, of_owner in places.items()}
        sends = dict.fromkeys(self.own_partners.values(), packed)
        for owner, parts in self._exchange(sends, receives, "rows that the owners on other hosts made").items():
            for (i, slot), rows in zip(places[owner], parts, strict=True):
                if rows.values is not slot.table:  # where all rows of the part were received
                    table_of(i)[rows.indices] = rows.values

    def _packed_for(self, met: Met, owner: int, division: Division, summed: bool) -> list[Packed]:
        """Return what this host contributes to the rows of a rank elsewhere."""
        packed = []
        for i in met.with_rows:
            part = division(owner, met.shapes[i].num_rows)
            if part.size:
                of_nodes = {node: within(rows, part) for node, rows in met.rows[i].items()}
                for node in self._own_nodes_of[summed]:
                    packed.append(pack(listed(add_lists(self._hosting.tree, of_nodes, node)), part))
        return packed

    def _exchange(
        self, sends: Mapping[int, Sequence[Packed]], receives: Mapping[int, Sequence[Slot]], what: str
    ) -> dict[int, list[RowSum]]:
        """Send packed rows to ranks elsewhere; return what they sent, by rank."""
        exchange = self._communicator.exchange
        codes_of = {peer: np.empty(len(slots), np.int64) for peer, slots in receives.items()}
        told = {peer: np.array([each.code for each in packed], np.int64) for peer, packed in sends.items()}
        exchange(
            [Send(peer, codes) for peer, codes in told.items() if len(codes)],
            [Receive(peer, codes) for peer, codes in codes_of.items() if len(codes)],
            f"the numbers of {what}",
        )
        boxes_of = {
            peer: [_Box(peer, slot, code) for slot, code in zip(slots, codes_of[peer].tolist(), strict=True)]
            for peer, slots in receives.items()
        }
        exchange(
            [Send(peer, array) for peer, packed in sends.items() for each in packed for array in each.arrays],
            [Receive(peer, array) for peer, boxes in boxes_of.items() for box in boxes for array in box.arrays],
            what,
        )
        return {peer: [box.rows() for box in boxes] for peer, boxes in boxes_of.items()}


def divide_rows(num_rows: int, hosts: Sequence[Sequence[int]], rank: int) -> Interval:
    """Return the rows of a rank: equal parts for the hosts, of these equal parts for the ranks of each.

    >>> [divide_rows(10, [(0, 1), (2,)], rank) for rank in range(3)]
    [Interval(start=0, stop=2), Interval(start=2, stop=5), Interval(start=5, stop=10)]
    """
    for host, ranks in enumerate(hosts):
        if rank in ranks:
            units, place = len(hosts) * len(ranks), ranks.index(rank)
            first = host * len(ranks) + place
            return Interval(num_rows * first // units, num_rows * (first + 1) // units)
    raise ValueError(f"there is no rank {rank} on hosts {list(hosts)}")


def within(rows: Rows, part: Interval) -> Rows:
    """Return those of the rows, which are in order, that lie in a part; views."""
    if not len(rows.indices):
        return rows
    indices = rows.indices
    start, stop = int(indices.searchsorted(part.start)), int(indices.searchsorted(part.stop))
    if isinstance(rows, PlacedRows):
        return PlacedRows(indices[start:stop], rows.positions[start:stop], rows.values)
    return RowSum(indices[start:stop], rows.values[start:stop])


def _within(rows: Rows, start: int, stop: int) -> Rows:
    return within(rows, Interval(start, stop))


# ------------------------------------------------------------------------------------------------ as they travel


class Packed(NamedTuple):
    """Rows of a part of a table, ready to be sent; ``code``: how many, ``-1 - n`` where n are told by bits."""

    code: int
    arrays: tuple[Array, ...]


class Slot(NamedTuple):
    """Where rows go: the part of a table that they lie in, and, if there is such a place, the memory of its rows."""

    part: Interval
    shape: Shape
    table: Array | None = None


def pack(rows: RowSum, part: Interval) -> Packed:
    """Return rows of a part as they travel."""
    indices = rows.indices
    count = len(indices)
    values = (flattened(rows.values),) if rows.values.size else ()
    if not count:
        return Packed(0, ())
    takes_bits = count * _index_dtype(part).itemsize > -(-part.size // 8)
    if takes_bits and bool((indices[1:] > indices[:-1]).all()):
        if count == part.size:
            return Packed(-1 - count, values)
        bits = np.zeros(part.size, bool)
        bits[indices - part.start] = True
        return Packed(-1 - count, (np.packbits(bits), *values))
    return Packed(count, ((indices - part.start).astype(_index_dtype(part)), *values))


class _Box:
    """What arrives from a rank: :attr:`arrays`, and, once they are filled, :meth:`rows`.

    Raises: RemoteProtocolError for a number of rows that no part has.
    """

    def __init__(self, peer: int, slot: Slot, code: int) -> None:
        part, shape = slot.part, slot.shape
        self._part = part
        self._count = count = code if code >= 0 else -1 - code
        if code < 0 and count > part.size:
            raise RemoteProtocolError(
                f"rank {peer} told of {count} of the {part.size} rows {part.start}..{part.stop - 1}"
            )
        self._is_whole = code < 0 and count == part.size
        if self._is_whole and slot.table is not None:
            self._values = slot.table
        else:
            self._values = np.empty((count, shape.width), shape.dtype)
        self._where: Array | None = None
        if not self._is_whole and count:
            size, dtype = (-(-part.size // 8), np.uint8) if code < 0 else (count, _index_dtype(part))
            self._where = np.empty(size, dtype)
        self._by_bits = code < 0
        self._peer = peer
        found = (self._where, self._values.reshape(-1))
        self.arrays = [array for array in found if array is not None and len(array)]

    def rows(self) -> RowSum:
        """Return the rows.

        Raises: RemoteProtocolError for rows that do not lie in the part.
        """
        part = self._part
        if self._is_whole:
            return RowSum(np.arange(*part), self._values)
        if self._where is None:
            return RowSum(np.empty(0, np.int64), self._values)
        if self._by_bits:
            indices = np.flatnonzero(np.unpackbits(self._where, count=part.size))
        else:
            indices = self._where.astype(np.int64)
        if len(indices) != self._count or indices.max() >= part.size:
            raise RemoteProtocolError(f"rank {self._peer} sent rows that are not of {part.start}..{part.stop - 1}")
        return RowSum(indices + part.start, self._values)


def _index_dtype(part: Interval) -> np.dtype[Any]:
    return np.dtype(np.uint32 if part.size < 2**32 else np.uint64)
