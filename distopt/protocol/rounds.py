"""One synchronous collection of contributions, and what of it is missing.

Rules of this file: no socket, no clock, no optimizer. What is refused changes nothing.

A round is complete when its contributions cover every leaf of the sum tree *and* every worker has asked for the
result. The second half costs nothing, since a worker asks with its last push, and gives three things: all
workers get one answer, none of them can still be reading the previous one (so its memory may be reused), and what is
decided at completion, such as to stop, is decided for all of them alike.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

import msgspec

from distopt.agreement import label_mismatch
from distopt.canonical_sum import Node, SumTree
from distopt.errors import NondeterministicReplicaError, RemoteProtocolError, StaleGradientError
from distopt.protocol.messages import Pull, Push, RoundHead, RoundKind
from distopt.types import Array


class Outcome(enum.Enum):
    """What became of a contribution."""

    ACCEPTED = enum.auto()
    REPEATED = enum.auto()
    """The same node with the same digest was there already; the copy is dropped."""


class Round:
    """Collect one round.

    ``leaves_of[w]``: the leaves (replicas, or ranks) of worker w; only used to say who is missing, so a replica
    may be computed by anyone. ``tree``: over the same leaves, where one exists already.

    Raises: RemoteProtocolError if ``head`` is for another number of leaves than ``leaves_of``.
    """

    def __init__(self, head: RoundHead, leaves_of: Sequence[Sequence[int]], tree: SumTree | None = None) -> None:
        if sum(map(len, leaves_of)) != head.width:
            raise RemoteProtocolError(f"{head} is over {head.width} leaves, not {sum(map(len, leaves_of))}")
        self.head = head
        self.tree = tree or SumTree(head.width)
        self.contributions: dict[Node, tuple[Array, ...]] = {}
        self.with_rows: dict[Node, tuple[int, ...]] = {}
        """The variables of which a contribution holds rows, for those that do."""
        self.hypers: dict[str, float] = {}
        self.is_withdrawn = False
        """Whether a worker has withdrawn."""
        self._leaves_of = leaves_of
        self._accepted: dict[Node, Push] = {}
        self._covered = 0
        self._asked: set[int] = set()

    @property
    def is_complete(self) -> bool:
        """Whether every leaf is covered and every worker has asked."""
        return self._covered == self.head.width and len(self._asked) == len(self._leaves_of)

    def receive(self, push: Push, buffers: tuple[Array, ...]) -> Outcome:
        """Accept or drop one contribution, and note whether its sender asks for the result.

        Raises: StaleGradientError for an earlier round; NondeterministicReplicaError for a node that is there with
        other bytes, naming both workers; RemoteProtocolError for another round, a node that is not in the tree, or
        one that overlaps an accepted one.
        """
        self.check_head(push.head, push.sender)
        self.is_withdrawn |= push.withdraws
        outcome = self._accept(push, buffers)
        if push.asks:
            self._ask(push.sender)
        return outcome

    def _accept(self, push: Push, buffers: tuple[Array, ...]) -> Outcome:
        node = push.node
        if node not in self.tree:
            raise RemoteProtocolError(
                f"worker {push.sender} pushed {list(node)}, which is no part of the sum of {self.head}"
            )
        earlier = self._accepted.get(node)
        if earlier is not None:
            if earlier.digest != push.digest:
                raise NondeterministicReplicaError(
                    f"worker {earlier.sender} and worker {push.sender} pushed different bytes for "
                    f"{self._name(node)} in step {self.head.step}: {earlier.digest.hex()} and {push.digest.hex()}"
                )
            return Outcome.REPEATED
        if overlapping := self.tree.overlapping(node, self._accepted):
            raise RemoteProtocolError(
                f"worker {push.sender} pushed {self._name(node)} over {', '.join(map(self._name, overlapping))} in "
                f"step {self.head.step}"
            )
        self._accepted[node] = push
        self._covered += node.stop - node.start
        self.contributions[node] = buffers
        if push.with_rows:
            self.with_rows[node] = push.with_rows
        if push.hypers is not None:
            self.hypers = push.hypers
        return Outcome.ACCEPTED

    def ask(self, pull: Pull) -> None:
        """Note that a worker wants the result.

        Raises: as :meth:`receive`.
        """
        self.check_head(pull.head, pull.sender)
        self.is_withdrawn |= pull.withdraws
        self._ask(pull.sender)

    def _ask(self, sender: int) -> None:
        if sender >= len(self._leaves_of):
            raise RemoteProtocolError(f"worker {sender} does not exist; there are {len(self._leaves_of)}")
        self._asked.add(sender)

    def missing(self) -> str:
        """Return whom the round waits for, such as ``"replicas 4..7 of worker 1, worker 2"``; empty if complete."""
        present = {leaf for node in self._accepted for leaf in range(node.start, node.stop)}
        waited_for = []
        for worker, leaves in enumerate(self._leaves_of):
            nodes = self.tree.cover(set(leaves) - present)
            if nodes and self._leaves_are_ranks:
                waited_for.append(f"worker {worker}")
            elif nodes:
                waited_for.append(f"{', '.join(map(str, nodes))} of worker {worker}")
            elif worker not in self._asked:
                waited_for.append(f"worker {worker}")
        return ", ".join(waited_for)

    @property
    def _leaves_are_ranks(self) -> bool:
        return self.head.kind is RoundKind.GATHER

    def _name(self, node: Node) -> str:
        return f"the part of rank {node.start}" if self._leaves_are_ranks else str(node)

    def check_head(self, head: RoundHead, sender: int) -> None:
        """Refuse a message of another round; see :meth:`receive`.

        Raises: also the MistakeError of two workers that take one round to be of different things.
        """
        if head == self.head:
            return
        if head.number < self.head.number:
            raise StaleGradientError(f"worker {sender} is late with {head}; the server is at {self.head}")
        if msgspec.structs.replace(head, label=self.head.label) == self.head:
            raise label_mismatch(f"worker {sender}", head.label, "the first one of the round", self.head.label)
        raise RemoteProtocolError(
            f"worker {sender} takes part in {head} {head.aggregator}, "
            f"but the round is {self.head} {self.head.aggregator}"
        )
