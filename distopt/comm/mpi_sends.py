"""The sends of one exchange, which go to one peer after another where there is much to send.

If all ranks sent to all others at once, each card would get what all of them send, and what one peer needs to go on
would stand behind what another one gets. So a send to a peer begins once only few bytes are under way to others. Each
rank begins with another peer, as its sends are given in an order that begins behind its own place.

A peer has posted all its receives of the exchange before it waits, so whoever waits for a send here waits for nobody's
send elsewhere.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from distopt.types import Array

if TYPE_CHECKING:
    from mpi4py import MPI

MOST_BYTES_ELSEWHERE: Final = 1 << 21
"""A send begins while at most so many bytes are under way to other peers."""


class Sends:
    """Sends, begun by ``begin``, which adds the request of each to ``requests`` and its peer to ``peers``."""

    def __init__(self, begin: Callable[[int, Array], object], requests: list[MPI.Request], peers: list[int]) -> None:
        self._begin = begin
        self._requests, self._peers = requests, peers
        self._first = len(requests)
        """The position of the first request that may be under way."""
        self._lengths: deque[int] = deque()
        """Bytes of the requests from there on."""
        self._bytes_to: defaultdict[int, int] = defaultdict(int)
        self._num_bytes = 0
        """Under way."""
        self._queue: deque[tuple[int, Array]] = deque()

    def add(self, peer: int, array: Array) -> None:
        """Send the bytes ``array`` to ``peer``, now or in :meth:`finish`; those to one peer keep their order."""
        if self._num_bytes - self._bytes_to[peer] <= MOST_BYTES_ELSEWHERE:
            self._begin(peer, array)
            self._lengths.append(len(array))
            self._bytes_to[peer] += len(array)
            self._num_bytes += len(array)
        else:
            self._queue.append((peer, array))

    def finish(self, complete: Callable[[list[MPI.Request], list[int], int], object]) -> None:
        """Begin all sends; the last ones may be under way then.

        ``complete`` returns when some requests are done, whose peers and bytes it is told.
        """
        while self._queue:
            peer = self._queue[0][0]
            count = num_bytes = 0
            while self._num_bytes - self._bytes_to[peer] > MOST_BYTES_ELSEWHERE:
                length = self._lengths.popleft()
                self._bytes_to[self._peers[self._first + count]] -= length
                self._num_bytes -= length
                num_bytes += length
                count += 1
            done = slice(self._first, self._first + count)
            complete(self._requests[done], self._peers[done], num_bytes)
            self._first += count
            waiting, self._queue = self._queue, deque()
            for send in waiting:
                self.add(*send)
