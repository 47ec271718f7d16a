"""Early messages between MPI processes: on a communicator of their own, moved on whenever MPI is called.

A rank may leave with messages begun that no exchange will end: of a gradient that was taken and never applied. MPI must
not be finalized before these are received. So each rank that leaves begins to receive whatever its batches can receive,
waits until what it has sent itself is gone, and cancels what does not come once all others have left, too.
"""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from distopt.comm.communicator import Traffic
from distopt.comm.early import Batch, Channel, Expected
from distopt.comm.mpi_transfers import pieces_of
from distopt.errors import DistoptError
from distopt.types import Array

if TYPE_CHECKING:
    from mpi4py import MPI

_PAUSE_S: Final = 1e-4


class MpiRank(Protocol):
    """What early messages need of the communicator whose they are."""

    traffic: Traffic

    def failed(self, error: Exception, what: str) -> DistoptError:
        """Return the error for a call of MPI that failed; the communicator cannot be used any more."""
        ...


class MpiChannel(Channel):
    """The channel over ``comm``, which carries nothing else; ``mpi`` is mpi4py's module."""

    def __init__(self, mpi: Any, comm: MPI.Intracomm, rank: MpiRank, num_tags: int) -> None:
        super().__init__()
        self.num_tags = num_tags
        self._mpi, self._comm, self._rank = mpi, comm, rank
        self._batches: weakref.WeakSet[MpiBatch] = weakref.WeakSet()
        self._under_way: set[MpiBatch] = set()
        """Those of which MPI may still use buffers."""

    def _batch(self, first_tag: int, expected: Sequence[Expected]) -> Batch:
        batch = MpiBatch(self._mpi, self._comm, self._rank, first_tag, expected, self._under_way)
        self._batches.add(batch)
        return batch

    def requests(self) -> list[MPI.Request]:
        """Return what is under way, which keeps the buffers alive."""
        return [request for batch in self._under_way for request in batch.requests]

    def leave(self, patience_s: float) -> None:
        """Return when what this rank has sent is gone, or that takes too long; go on receiving."""
        with contextlib.suppress(DistoptError, self._mpi.Exception):  # what cannot be sent is given up
            for batch in self._batches:
                batch.open()
            deadline_s = time.monotonic() + patience_s
            while not all(batch.has_sent() for batch in self._under_way) and time.monotonic() < deadline_s:
                time.sleep(_PAUSE_S)

    def cancel(self) -> None:
        """End what was never received: nobody sends any more."""
        with contextlib.suppress(self._mpi.Exception):
            for batch in self._under_way:
                batch.cancel()


class MpiBatch:
    """Messages whose tags begin at ``first_tag``."""

    def __init__(
        self,
        mpi: Any,
        comm: MPI.Intracomm,
        rank: MpiRank,
        first_tag: int,
        expected: Sequence[Expected],
        under_way: set[MpiBatch],
    ) -> None:
        self._mpi, self._comm, self._rank, self._first_tag = mpi, comm, rank, first_tag
        self._expected = expected
        self._under_way = under_way
        self._is_open = False
        self.requests: list[MPI.Request] = []
        """What is under way; each keeps its buffer alive."""
        self.peers: list[int] = []
        """The other rank of each."""
        self.num_bytes_sent = 0
        self._receives = range(0)
        """The positions of those that receive."""

    def send(self, peer: int, tag: int, array: Array) -> None:
        self._begin(self._comm.Isend, peer, tag, pieces_of(array))
        self.num_bytes_sent += array.nbytes

    def withhold(self, peer: int, tag: int, array: Array) -> None:
        # One empty message for each that is expected.
        self._begin(self._comm.Isend, peer, tag, [piece[:0] for piece in pieces_of(array)])

    def open(self) -> None:
        if not self._is_open:
            self._is_open = True
            first = len(self.requests)
            for peer, tag, array in self._expected:
                self._begin(self._comm.Irecv, peer, tag, pieces_of(array))
            self._receives = range(first, len(self.requests))

    def _begin(self, function: Callable[..., Any], peer: int, tag: int, pieces: Sequence[Array]) -> None:
        self._under_way.add(self)
        try:
            for piece in pieces:
                self.requests.append(function([piece, self._mpi.BYTE], peer, self._first_tag + tag))
                self.peers.append(peer)
        except self._mpi.Exception as error:
            raise self._rank.failed(error, "sending before the exchange") from error

    def progress(self) -> None:
        if self.requests:
            try:
                self._comm.Iprobe(self._mpi.ANY_SOURCE)
            except self._mpi.Exception as error:
                raise self._rank.failed(error, "sending before the exchange") from error

    def end(self, statuses: list[MPI.Status]) -> None:
        """Forget all requests, which are done; ``statuses`` are theirs."""
        traffic = self._rank.traffic
        traffic.bytes_sent += self.num_bytes_sent
        traffic.bytes_received += sum(statuses[i].Get_count(self._mpi.BYTE) for i in self._receives)
        self.requests, self.peers, self._receives = [], [], range(0)
        self._is_open, self.num_bytes_sent = False, 0
        self._under_way.discard(self)

    def has_sent(self) -> bool:
        """Return whether no send is under way."""
        return all(request.Test() for i, request in enumerate(self.requests) if i not in self._receives)

    def cancel(self) -> None:
        """Cancel the receives that are under way."""
        for i in self._receives:
            if not self.requests[i].Test():
                self.requests[i].Cancel()
                self.requests[i].Wait()
