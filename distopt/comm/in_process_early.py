"""Early messages between the threads of one process: they are there as soon as they are sent."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from distopt.comm.communicator import Traffic
from distopt.comm.early import Batch, Channel, Expected
from distopt.types import Array

Put = Callable[[int, int, Array], None]
"""Puts a copy of an array into the box of a rank, under a tag."""


class InProcessChannel(Channel):
    """The channel of the rank that ``put`` is for."""

    num_tags = 1 << 30

    def __init__(self, traffic: Traffic, put: Put) -> None:
        super().__init__()
        self._traffic, self._put = traffic, put

    def _batch(self, first_tag: int, expected: Sequence[Expected]) -> Batch:
        return InProcessBatch(self._traffic, self._put, first_tag, expected)


class InProcessBatch:
    """What is received is looked for when the batch is ended."""

    def __init__(self, traffic: Traffic, put: Put, first_tag: int, expected: Sequence[Expected]) -> None:
        self._traffic, self._put, self._first_tag = traffic, put, first_tag
        self._expected = {(first_tag + tag, peer): array for peer, tag, array in expected}
        self._num_bytes = 0

    def open(self) -> None:
        """Do nothing: what arrives is kept."""

    def send(self, peer: int, tag: int, array: Array) -> None:
        self._put(peer, self._first_tag + tag, array)
        self._num_bytes += array.nbytes

    def withhold(self, peer: int, tag: int, array: Array) -> None:
        self._put(peer, self._first_tag + tag, array[:0])

    def progress(self) -> None:
        """Do nothing: nothing is under way."""

    def end(self) -> dict[tuple[int, int], Array]:
        """Return what is to be received, by tag and source, and begin anew."""
        self._traffic.bytes_sent += self._num_bytes
        self._num_bytes = 0
        return self._expected
