"""In which order one exchange begins its sends and receives, so that they do not wait for each other.

MPI announces what is sent, grants it once there is a receive for it, and moves it then; between two ranks all that goes
one way. So:

- No more receives are begun than sends, until all of these are. A peer that was granted megabytes sends these before it
  grants anything itself: two ranks would send one after the other.
- A send to a peer begins once only few bytes are under way to others. If all ranks sent to all others at once, each
  card would get what all of them send. Each rank begins with another peer, as its sends are given in an order that
  begins behind its own place.

A rank begins all its receives of an exchange before it waits, so whoever waits for a send here waits for nobody's send
elsewhere.
"""

from __future__ import annotations

import itertools
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from distopt.types import Array

if TYPE_CHECKING:
    from mpi4py import MPI

MOST_BYTES_ELSEWHERE: Final = 1 << 21
"""A send begins while at most so many bytes are under way to other peers."""

Begin = Callable[[int, Array], "MPI.Request"]
"""Begins to send bytes to a peer, or to receive them from one."""


class Turns:
    """The transfers of one exchange: those that ``receives`` names, and sends, which are added one by one."""

    def __init__(self, send: Begin, receive: Begin, receives: Iterable[tuple[int, Array]]) -> None:
        self._send, self._receive = send, receive
        self._to_receive = iter(receives)
        self._queue: deque[tuple[int, Array]] = deque()
        """Sends that wait for their turn."""
        self.receives: list[MPI.Request] = []
        """Those that were begun."""
        self.sources: list[int] = []
        """The peer of each."""
        self.lengths: list[int] = []
        """The bytes of each."""
        self.sends: list[MPI.Request] = []
        """Those that were begun."""
        self.targets: list[int] = []
        """The peer of each."""
        self._under_way: deque[int] = deque()
        """Bytes of the last sends, of which it is not known that they are done."""
        self._bytes_to: defaultdict[int, int] = defaultdict(int)
        """Of these, by peer."""
        self._num_bytes = 0
        """Of these."""

    def add_send(self, peer: int, array: Array) -> None:
        """Send the bytes ``array`` to ``peer``, now or in :meth:`finish`; those to one peer keep their order."""
        if self._num_bytes - self._bytes_to[peer] <= MOST_BYTES_ELSEWHERE:
            self.sends.append(self._send(peer, array))
            self.targets.append(peer)
            self._under_way.append(len(array))
            self._bytes_to[peer] += len(array)
            self._num_bytes += len(array)
        else:
            self._queue.append((peer, array))

    def receive(self) -> None:
        """Begin as many receives as sends were begun."""
        self._begin_receives(max(0, len(self.sends) - len(self.receives)))

    def receive_all(self) -> None:
        """Begin all receives."""
        self._begin_receives(None)

    def finish(self, complete: Callable[[list[MPI.Request], list[int], int], object]) -> None:
        """Begin all sends, once all receives are; the last ones may be under way then.

        ``complete`` returns when some requests are done, whose peers and bytes it is told.
        """
        while self._queue:
            peer = self._queue[0][0]
            first = last = len(self.sends) - len(self._under_way)
            num_bytes = 0
            while self._num_bytes - self._bytes_to[peer] > MOST_BYTES_ELSEWHERE:
                length = self._under_way.popleft()
                self._bytes_to[self.targets[last]] -= length
                self._num_bytes -= length
                num_bytes += length
                last += 1
            complete(self.sends[first:last], self.targets[first:last], num_bytes)
            waiting, self._queue = self._queue, deque()
            for send in waiting:
                self.add_send(*send)

    def _begin_receives(self, most: int | None) -> None:
        for peer, array in itertools.islice(self._to_receive, most):
            self.receives.append(self._receive(peer, array))
            self.sources.append(peer)
            self.lengths.append(len(array))
