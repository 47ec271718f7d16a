"""One worker and its servers in one thread, without sockets: for tests that try many combinations.

What the servers do in a round is what ``ServerLoop`` does with a complete one; the worker's side is the real one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from distopt.aggregation import Aggregator, Mean, Sum
from distopt.comm import combining
from distopt.comm.communicator import Hosting, Traffic
from distopt.comm.hosting import Answer, Parcel
from distopt.comm.zmq import ServerCommunicator
from distopt.distribute.served import ServedReplicas, relative_division, served
from distopt.distribute.served_rows import Contributed
from distopt.protocol.messages import RoundKind
from distopt.types import Array


class LoopbackServers(ServerCommunicator):
    """The communicator of a worker that hosts all replicas.

    ``make`` returns an optimizer and its variables, as each process of a job would make them for itself.
    """

    def __init__(self, make: Callable[[], tuple[Any, list[Any]]], num_replicas: int, num_servers: int) -> None:
        self.rank, self.size, self.num_servers = 0, 1, num_servers
        self.hosting = Hosting.contiguous(num_replicas, 1)
        self.traffic = Traffic()
        self.stop_requested = False
        self._cuts = {}
        self.owners = []
        for server in range(num_servers):
            optimizer, variables = make()
            layout = optimizer.layout(variables)
            self.spans = relative_division(layout, num_servers)
            self.owners.append(served(optimizer, layout, self.spans[server], num_replicas, self.hosting))

    def close(self) -> None:
        """See :meth:`Communicator.close`."""

    def _round(
        self,
        kind: RoundKind,
        width: int,
        parcels: Sequence[Sequence[Parcel]],
        aggregator: str = "",
        hypers: Mapping[str, float] | None = None,
        label: bytes = b"",
        *,
        withdraws: bool = False,
        what: str = "",
    ) -> list[Answer]:
        del label, withdraws, what  # there is nobody to compare them with
        self.traffic.bytes_sent += sum(a.nbytes for of_server in parcels for _, arrays, _ in of_server for a in arrays)
        if kind is RoundKind.UPDATE:
            return self._update(parcels, dict(hypers or {}))
        found: list[Answer] = []
        for of_server in parcels:
            sums = {node: tuple(arrays) for node, arrays, _ in of_server}
            like = next(iter(sums.values()))
            if kind is RoundKind.GATHER:
                found.append(Answer((), like))
                continue
            by_name: dict[str, Aggregator] = {"sum": Sum(), "mean": Mean()}
            hosting = Hosting.contiguous(width, 1)
            found.append(Answer((), tuple(combining.aggregate(sums, hosting, by_name[aggregator], like))))
        return found

    def _update(self, parcels: Sequence[Sequence[Parcel]], hypers: dict[str, float]) -> list[Answer]:
        finishes: list[Callable[[Array], Contributed]] = []
        partials: list[Array | None] = []
        for owner, of_server in zip(self.owners, parcels, strict=True):
            given = {node: Contributed(rows, tuple(arrays)) for node, arrays, rows in of_server}
            for node, contributed in given.items():
                if contributed.with_rows:
                    owner.check_rows(node, contributed)
            if isinstance(owner, ServedReplicas):
                owner.apply_replicas(0, {node.start: one for node, one in given.items()}, hypers)
                finishes.append(_answer_of(owner))
                continue
            if any(one.with_rows for one in given.values()):
                update = owner.begin_rows(self.hosting.tree, given, hypers)
                finishes.append(update.finish)
                partials.append(update.partials)
                continue
            sums = {node: one.buffers for node, one in given.items()}
            if owner.code_bytes is not None:
                sums = {node: owner.decode(code) for node, (code,) in sums.items()}
            flat = combining.aggregate(sums, self.hosting, owner.aggregator, next(iter(sums.values())))
            partials.append(owner.partials(flat, hypers))
            finishes.append(_apply(owner, flat, hypers))
        of_all = joined(partials)
        return [Answer(*finish(of_all)) for finish in finishes]


def joined(partials: Iterable[Array | None]) -> Array:
    """Return the partials of all servers, of which some have none, as each of them is told those of all."""
    found = [own for own in partials if own is not None]
    return np.concatenate(found) if found else np.empty(0)


def _answer_of(owner: Any) -> Callable[[Array], Contributed]:
    return lambda _: Contributed((), tuple(owner.variables()))


def _apply(owner: Any, flat: list[Array], hypers: dict[str, float]) -> Callable[[Array], Contributed]:
    def finish(partials: Array) -> Contributed:
        owner.apply(0, flat, hypers, partials)
        return Contributed((), tuple(owner.variables()))

    return finish
