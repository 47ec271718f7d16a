"""The way of spans between hosts: partial sums go to owners, what owners made of them comes back.

How a step goes, for two hosts of two ranks each, which own a quarter of everything each::

    rank 0 (host A)  owns a    rank 2 (host B)  owns c        partners: 0 and 2, 1 and 3
    rank 1 (host A)  owns b    rank 3 (host B)  owns d

    collect   ranks 0 and 1 read what host A contributes to c and d, where it lies, add it up, and send it to the owners
              while they add up the next chunk; ranks 2 and 3 do so for a and b
    spread    each owner makes something of its spans, chunk by chunk, and sends it once to its partner on each other
              host, which receives it where its whole host sees it

Rules of this file:

- Only what hosts have to tell each other travels: a host's partial sums of a span once, to the owner of the span, and
  what the owner made once to each other host. With ``H`` hosts that hold a subtree of the canonical sum each, a host
  sends ``2 (H - 1) / H`` times the bytes of all spans.
- The ranks of a host share the work evenly: each is the partner of as many owners of another host as any other, or,
  where there are more ranks here than there, of a part of an owner's chunks.
- Chunks, partners and the order of messages follow from what all ranks know, so nothing of it is told.
- Nothing here adds, updates, or knows what a span is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from distopt.canonical_sum import Node
from distopt.comm.communicator import Communicator, Receive, Send
from distopt.comm.early import Batch, Expected
from distopt.comm.transfers import others_of
from distopt.types import Array

_NOTHING = np.empty(0, np.uint8)


class Chunk(NamedTuple):
    """One chunk of rank ``owner``, counted from 0."""

    owner: int
    number: int


class BetweenHosts:
    """For one division of everything into spans: ``num_bytes_of[rank]`` are the lengths of that rank's chunks.

    ``hosts`` are the ranks of each host, ``nodes_of_hosts`` the nodes of the canonical sum that each contributes.
    """

    def __init__(
        self,
        communicator: Communicator,
        hosts: Sequence[Sequence[int]],
        nodes_of_hosts: Sequence[Sequence[Node]],
        num_bytes_of: Sequence[Sequence[int]],
    ) -> None:
        rank = communicator.rank
        self._communicator = communicator
        self._own_host = next(host for host, ranks in enumerate(hosts) if rank in ranks)
        self._nodes = nodes_of_hosts
        self._first_partners: dict[int, dict[int, int]] = {}
        """By owner, the first of its partners on each other host."""
        self._partners: dict[int, list[dict[int, int]]] = {}
        """By owner and chunk, its partner on each other host."""
        for home, ranks in enumerate(hosts):
            for place, owner in enumerate(ranks):
                others = {h: _candidates(place, len(ranks), hosts[h]) for h in others_of(home, len(hosts))}
                self._first_partners[owner] = {host: candidates[0] for host, candidates in others.items()}
                self._partners[owner] = [
                    {
                        host: candidates[min(int(share * len(candidates)), len(candidates) - 1)]
                        for host, candidates in others.items()
                    }
                    for share in _shares(num_bytes_of[owner])
                ]
        self.as_partner = sorted(
            (
                Chunk(owner, index)
                for owner, partners in self._partners.items()
                for index, by_host in enumerate(partners)
                if rank in by_host.values()
            ),
            key=lambda chunk: (chunk.number, (chunk.owner - rank) % communicator.size),
        )
        """The chunks of owners on other hosts that this rank adds up, and receives, for its host."""

    def collect(
        self,
        add: Callable[[Chunk, Node], Array],
        into: Mapping[Node, Sequence[Array]],
        label: bytes,
        *,
        withdraws: bool = False,
    ) -> bool:
        """Bring the partial sums of all other hosts into ``into``, which has an array for each own chunk.

        ``add`` returns what this host contributes of a node to a chunk of ``as_partner``; the array stays as it is
        until this returns. Return whether a rank withdrew, as :meth:`Communicator.exchange` does: every rank hears from
        every other host, and hosts agree among themselves before.
        """
        rank, own_host = self._communicator.rank, self._own_host
        nodes = self._nodes[own_host]

        def sends() -> Iterator[Send]:
            told = set()
            for chunk in self.as_partner if nodes else ():
                told.add(chunk.owner)
                for node in nodes:
                    yield Send(chunk.owner, add(chunk, node))
            for owner, partners in self._first_partners.items():
                if partners.get(own_host) == rank and (owner not in told) and not self._has_chunks(owner, own_host):
                    yield Send(owner, _NOTHING)

        receives = [
            Receive(partner, into[node][index])
            for index, partners in enumerate(self._partners[rank])
            for host, partner in partners.items()
            for node in self._nodes[host]
        ]
        for host, partner in self._first_partners[rank].items():
            if not self._has_chunks(rank, host):
                receives.append(Receive(partner, _NOTHING))
        what = "partial sums of the gradients of the other hosts"
        return self._communicator.exchange(sends(), receives, what, label, withdraws=withdraws) or withdraws

    def early_sends(self) -> list[tuple[Chunk, Node, int]]:
        """Return the partial sums that this rank sends to owners elsewhere, each with its tag among early messages."""
        nodes = self._nodes[self._own_host]
        return [(chunk, node, self._tag(chunk, i)) for chunk in self.as_partner for i, node in enumerate(nodes)]

    def early_messages(self, into: Mapping[Node, Sequence[Array]]) -> tuple[int, list[Expected]]:
        """Return how many tags early messages have, on all ranks, and those that go ``into`` arrays of this rank."""
        rank = self._communicator.rank
        expected = [
            Expected(partner, self._tag(Chunk(rank, index), i), into[node][index])
            for index, partners in enumerate(self._partners[rank])
            for host, partner in partners.items()
            for i, node in enumerate(self._nodes[host])
        ]
        return max(map(len, self._partners.values())) * max(map(len, self._nodes)), expected

    def _tag(self, chunk: Chunk, node: int) -> int:
        return chunk.number * max(map(len, self._nodes)) + node

    def agree(self, send_the_rest: Callable[[], None], label: bytes, *, withdraws: bool, batch: Batch) -> bool:
        """End ``batch``, which ``send_the_rest`` begins to do; return whether a rank of any host withdrew."""
        own_host = self._own_host

        def sends() -> Iterator[Send]:
            send_the_rest()
            for owner, partners in self._first_partners.items():
                if partners.get(own_host) == self._communicator.rank:
                    yield Send(owner, _NOTHING)

        receives = [Receive(partner, _NOTHING) for partner in self._first_partners[self._communicator.rank].values()]
        what = "partial sums of the gradients of the other hosts, of which some may have left early"
        heard = self._communicator.exchange(sends(), receives, what, label, withdraws=withdraws, batch=batch)
        return heard or withdraws

    def spread(self, made: Iterable[int], arrays_of: Callable[[Chunk], Sequence[Array]], label: bytes = b"") -> None:
        """Send own chunks to all other hosts, each as soon as ``made`` yields its index, and receive theirs.

        ``arrays_of`` returns where a chunk lies in the memory of this host: one that is this rank's own, or one of
        ``as_partner``.
        """
        rank = self._communicator.rank

        def sends() -> Iterator[Send]:
            for index in made:
                arrays = arrays_of(Chunk(rank, index))
                for partner in self._partners[rank][index].values():
                    for array in arrays:
                        yield Send(partner, array)

        receives = [Receive(chunk.owner, array) for chunk in self.as_partner for array in arrays_of(chunk)]
        self._communicator.exchange(sends(), receives, "what the owners on the other hosts made", label)

    def exchange_parts(self, own: Array, part_of: Callable[[int], tuple[int, np.dtype[Any]]]) -> dict[int, Array]:
        """Send ``own`` to the first partner on every other host; return what this rank was sent, by owner.

        ``part_of`` returns length and dtype of the array of an owner.
        """
        rank, own_host = self._communicator.rank, self._own_host
        found = {
            owner: np.empty(*part_of(owner))
            for owner, partners in self._first_partners.items()
            if partners.get(own_host) == rank
        }
        sends = [Send(partner, own) for partner in self._first_partners[rank].values() if len(own)]
        receives = [Receive(owner, array) for owner, array in found.items() if len(array)]
        self._communicator.exchange(sends, receives, "sums of squares of the owners on other hosts")
        return found

    def _has_chunks(self, owner: int, host: int) -> bool:
        """Return whether ``host`` sends partial sums to ``owner`` at all."""
        return bool(self._nodes[host]) and bool(self._partners[owner])


def _candidates(place: int, num_owners: int, ranks: Sequence[int]) -> list[int]:
    """Return those of ``ranks``, one host's, that are partners of the owner at ``place`` of ``num_owners`` of another.

    >>> _candidates(2, 3, [10, 11]), _candidates(0, 1, [10, 11])
    ([11], [10, 11])
    """
    size = len(ranks)
    if size <= num_owners:
        return [ranks[place * size // num_owners]]
    return [rank for i, rank in enumerate(ranks) if i * num_owners // size == place]


def _shares(lengths: Sequence[int]) -> list[float]:
    """Return where the middle of each chunk lies, from 0 to 1.

    >>> _shares([2, 2])
    [0.25, 0.75]
    """
    total, before, shares = sum(lengths), 0, []
    for length in lengths:
        shares.append((before + length / 2) / total if total else 0.0)
        before += length
    return shares
