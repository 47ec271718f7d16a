"""What one exchange sends: at once, but not more than a peer that does not come yet can hold.

MPI takes in what nobody receives yet whenever it is called, and keeps the memory. So of what is sent to a peer one
message asks whether it is received, which is so when the peer has come: it begins all its receives first. Until that is
answered, only a few megabytes go to it.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from distopt.types import Array

if TYPE_CHECKING:
    from mpi4py import MPI

FIRST_BYTES: Final = 1 << 20
"""So many go to a peer before one message asks: few of them are sent, and gone, sooner than any answer comes."""

MOST_BYTES: Final = 4 << 20
"""So many go to a peer that has not answered; on a link of 10 Gbit/s they take 3 ms."""


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

    def finish(self, complete: Callable[[list[MPI.Request], list[int]], object]) -> None:
        """Begin all sends; ``complete`` returns when requests to some peers are done."""
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
