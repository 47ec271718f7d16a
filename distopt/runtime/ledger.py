"""The training loss of an epoch so far, replica by replica, kept where the other processes of the host can read it.

What a lost process had added up is then not lost with it. Each step has a row of its own among the last few, written
before the step's gradients are told to anyone: so where a step is known to be done, the rows of all are there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, TypeAlias

import numpy as np

from distopt.comm.communicator import Communicator, Hosting
from distopt.types import Array

_ROWS: Final = 4
"""Processes are never further apart than two steps."""

Sums: TypeAlias = dict[int, tuple[float, float]]
"""By replica: the sum of the losses of its samples, and their number."""


class LossLedger:
    """Of the replicas of ``hosting``; a collective where ``communicator`` has others that share memory."""

    def __init__(self, hosting: Hosting, rank: int, communicator: Communicator | None) -> None:
        self._hosting = hosting
        self._own = hosting.hosted[rank]
        shape = _ROWS, 1 + 2 * hosting.num_replicas
        self._tables: dict[int, Array] = {}
        """By rank. Of each row: the number of steps done, then loss and number of samples of each replica."""
        if communicator is not None and communicator.shares_memory and communicator.survives_losses:
            group = communicator.host_group
            memories = group.share(int(np.prod(shape)) * 8, "the loss of every replica")
            for member, memory in zip(group.ranks, memories, strict=True):
                self._tables[member] = memory.view(np.float64).reshape(shape)
        else:
            self._tables[rank] = np.zeros(shape)
        # Elements of a memoryview cost a tenth of those of an array.
        self._rows: list[Any] = [memoryview(row) for row in self._tables[rank]]
        self._row: Any = self._rows[0]

    def begin(self, step: int) -> None:
        """Open the row of ``step``, which goes on from the one before."""
        row = self._rows[step % _ROWS]
        row[1:] = self._row[1:]
        row[0] = step + 1
        self._row = row

    def add(self, replica: int, loss: float, samples: int) -> None:
        """Add what a replica hosted here found in the step that has begun."""
        self._row[1 + 2 * replica] += loss
        self._row[2 + 2 * replica] += samples

    def own(self) -> list[Array]:
        """Return loss and number of samples of each replica hosted here."""
        return [np.array(self._row[1 + 2 * replica : 3 + 2 * replica]) for replica in self._own]

    def clear(self) -> None:
        """Begin another epoch."""
        empty: Any = np.zeros(len(self._row))
        self._row = memoryview(empty)

    def after(self, steps: int) -> Sums:
        """Return the sums of all replicas that were hosted on this host, when so many steps were done."""
        found: Sums = {}
        for rank, table in self._tables.items():
            row = table[(steps - 1) % _ROWS]
            if row[0] == steps:
                found |= {r: (float(row[1 + 2 * r]), float(row[2 + 2 * r])) for r in self._hosting.hosted[rank]}
        return found

    def restore(self, steps: int, sums: Sums) -> None:
        """Go on from these sums, when so many steps were done; of a replica that is not among them, from nothing."""
        self._row = self._rows[(steps - 1) % _ROWS]
        self._row[0] = steps
        for replica in self._own:
            self._row[1 + 2 * replica], self._row[2 + 2 * replica] = sums.get(replica, (0.0, 0.0))


def united(parts: Iterable[Sums]) -> Sums:
    """Return the sums that several processes know, as one.

    >>> united([{0: (1.5, 3.0)}, {1: (0.5, 2.0)}])
    {0: (1.5, 3.0), 1: (0.5, 2.0)}
    """
    return {replica: sums for part in parts for replica, sums in part.items()}
