"""What one exchange between MPI processes has under way: buffers in pieces, as requests of MPI.

Pieces are so short that MPI sends them at once. Longer messages are announced, granted by their receiver, and sent
then: that takes a round trip, and a grant waits behind whatever goes the same way.

But MPI takes in what nobody receives yet whenever it is called, and keeps the memory. So of what is sent to a peer one
message asks whether it is received, which is so when the peer has come: it begins all its receives first. Until that is
answered, only a few megabytes go to it.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from distopt.comm.transfers import bytes_of
from distopt.types import Array

if TYPE_CHECKING:
    from mpi4py import MPI

_PIECE_BYTES: Final = 60 << 10
"""Open MPI sends 64 kB over TCP at once (``btl_tcp_eager_limit``), its own header among them."""

FIRST_BYTES: Final = 1 << 20
"""So many go to a peer before one message asks: few of them are sent, and gone, sooner than any answer comes."""

MOST_BYTES: Final = 4 << 20
"""So many go to a peer that has not answered; on a link of 10 Gbit/s they take 3 ms."""

Complete = Callable[[list["MPI.Request"], list[int]], object]
"""Returns when requests to some peers are done."""


def pieces_of(array: Array) -> list[Array]:
    """Return the bytes of a contiguous ``array`` as messages: one at least, even if it is empty.

    Raises: ValueError if it is not contiguous.
    """
    flat = bytes_of(array)
    return [flat[start : start + _PIECE_BYTES] for start in range(0, max(1, len(flat)), _PIECE_BYTES)]


class Transfers:
    """Those of one exchange over ``comm``, whose messages have this ``tag``; ``mpi`` is mpi4py's module.

    Receives are begun first, and take messages of any tag.
    """

    def __init__(self, mpi: Any, comm: MPI.Intracomm, tag: int) -> None:
        self._mpi, self._comm, self._tag = mpi, comm, tag
        self.requests: list[MPI.Request] = []
        """What is under way: receives, then sends."""
        self.peers: list[int] = []
        """The other rank of each."""
        self.lengths: list[int] = []
        """Of each receive, the number of bytes."""
        self._sends = Sends(self._begin_send)

    def add_receive(self, peer: int, array: Array) -> None:
        """Begin to receive the next buffer from ``peer``."""
        for piece in pieces_of(array):
            self.requests.append(self._comm.Irecv([piece, self._mpi.BYTE], peer, self._mpi.ANY_TAG))
            self.peers.append(peer)
            self.lengths.append(len(piece))

    def add_send(self, peer: int, array: Array) -> None:
        """Send a buffer, now or in :meth:`finish_sends`."""
        for piece in pieces_of(array):
            self._sends.add(peer, piece)

    def finish_sends(self, complete: Complete) -> None:
        """Begin what has not begun."""
        self._sends.finish(complete)

    def _begin_send(self, peer: int, piece: Array, asks: bool) -> MPI.Request:
        begin = self._comm.Issend if asks else self._comm.Isend
        request = begin([piece, self._mpi.BYTE], peer, self._tag)
        self.requests.append(request)
        self.peers.append(peer)
        return request


class _Peer:
    def __init__(self) -> None:
        self.num_bytes = 0
        """That were sent to it."""
        self.question: MPI.Request | None = None
        self.held: deque[Array] = deque()
        """What waits for its answer."""


class Sends:
    """``send`` begins to send bytes to a peer; with True, the request is done only once they are received."""

    def __init__(self, send: Callable[[int, Array, bool], MPI.Request]) -> None:
        self._send = send
        self._peers: defaultdict[int, _Peer] = defaultdict(_Peer)

    def add(self, peer: int, array: Array) -> None:
        """Send the bytes ``array`` to ``peer``, now or in :meth:`finish`; those to one peer keep their order."""
        state = self._peers[peer]
        state.held.append(array)
        self._let_go(peer, state)

    def finish(self, complete: Complete) -> None:
        """Begin all sends."""
        asked = {
            peer: state.question for peer, state in self._peers.items() if state.held and state.question is not None
        }
        if asked:
            complete(list(asked.values()), list(asked))
        for peer in asked:
            self._let_go(peer, self._peers[peer])

    def _let_go(self, peer: int, state: _Peer) -> None:
        while state.held and self._may_send(state):
            array = state.held.popleft()
            asks = state.question is None and state.num_bytes >= FIRST_BYTES
            request = self._send(peer, array, asks)
            if asks:
                state.question = request
            state.num_bytes += len(array)

    @staticmethod
    def _may_send(state: _Peer) -> bool:
        return state.question is None or state.num_bytes < MOST_BYTES or bool(state.question.Get_status())
