"""Messages that are begun early and ended by a later exchange: what a transport offers for that.

They cannot be mixed up with those of exchanges in between, which know nothing of them: a channel is a way of its own,
and each batch of messages has tags of its own on it. Between two ranks, messages of one tag keep their order. So a
batch can be used again and again, if each of its uses is ended by both (``Communicator.exchange(batch=...)``).
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from distopt.types import Array


class Expected(NamedTuple):
    """A message of a batch: who sends it, its tag, and the contiguous array it goes to, if it is not withheld."""

    peer: int
    tag: int
    array: Array


class Batch(Protocol):
    """Messages that ranks send each other once in each use of the batch, in whatever order; tags count from 0."""

    def open(self) -> None:
        """Begin to receive, where that was not done in this use.

        Raises: as :meth:`send`.
        """
        ...

    def send(self, peer: int, tag: int, array: Array) -> None:
        """Begin to send a contiguous array, which stays as it is until the batch is ended.

        Raises: as :meth:`~distopt.comm.communicator.Communicator.exchange` for a peer that is lost.
        """
        ...

    def withhold(self, peer: int, tag: int, array: Array) -> None:
        """Send nothing where ``array`` would have been sent, which ends the message as well.

        Raises: as :meth:`send`.
        """
        ...

    def progress(self) -> None:
        """Let the transport work for a moment.

        Raises: as :meth:`send`.
        """
        ...


class Channel(abc.ABC):
    """The way of early messages between all ranks of a communicator."""

    num_tags: int
    """How many tags there are at all."""

    def __init__(self) -> None:
        self._reserved = 0

    def batch(self, num_tags: int, expected: Sequence[Expected]) -> Batch | None:
        """Return a batch with so many tags of its own, None if there are not so many left; the same on all ranks.

        ``expected``: all that this rank is sent in each use. To be called by all ranks in the same order.
        """
        first, self._reserved = self._reserved, self._reserved + num_tags
        return None if self._reserved > self.num_tags else self._batch(first, expected)

    @abc.abstractmethod
    def _batch(self, first_tag: int, expected: Sequence[Expected]) -> Batch:
        """Return a batch whose tag 0 is ``first_tag``."""
