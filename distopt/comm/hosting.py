"""Which rank hosts which replicas, and what it therefore contributes to an aggregate."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from distopt.canonical_sum import Node, SumTree, contiguous_ranges
from distopt.types import Array


class Contribution(NamedTuple):
    """The sum of the replicas of one node: flat, contiguous arrays, alike in count, length and dtype everywhere."""

    node: Node
    arrays: tuple[Array, ...]


class Parcel(NamedTuple):
    """What one server gets of one node; ``with_rows``: the variables, by position, of which it holds rows.

    What the arrays are is between those who push and the owners; see :class:`~distopt.protocol.messages.Push`.
    """

    node: Node
    arrays: Sequence[Array]
    with_rows: tuple[int, ...] = ()


class Answer(NamedTuple):
    """What one server answered to an update, likewise."""

    with_rows: tuple[int, ...]
    arrays: tuple[Array, ...]


@dataclass(frozen=True)
class Hosting:
    """Which replicas each rank hosts; the same value on every rank.

    >>> Hosting.contiguous(8, 3).hosted[1]
    (3, 4, 5)
    """

    num_replicas: int
    hosted: tuple[tuple[int, ...], ...]
    tree: SumTree = field(init=False, repr=False, compare=False)
    covers: tuple[tuple[Node, ...], ...] = field(init=False, repr=False, compare=False)
    """By rank, the nodes whose sums it contributes to an aggregate that is a function of the sum."""
    leaves: tuple[tuple[Node, ...], ...] = field(init=False, repr=False, compare=False)
    """By rank, the replicas it hosts, as nodes: what it contributes to any other aggregate."""

    def __post_init__(self) -> None:
        everyone = sorted(r for replicas in self.hosted for r in replicas)
        if everyone != list(range(self.num_replicas)):
            raise ValueError(f"each of {self.num_replicas} replicas needs one host; hosted are {self.hosted}")
        tree = SumTree(self.num_replicas)
        object.__setattr__(self, "tree", tree)
        object.__setattr__(self, "covers", tuple(tree.cover(replicas) for replicas in self.hosted))
        object.__setattr__(self, "leaves", tuple(tuple(Node(r, r + 1) for r in replicas) for replicas in self.hosted))

    def contributed(self, *, summed: bool) -> tuple[tuple[Node, ...], ...]:
        """Return what each rank contributes, by rank: sums of the replicas it hosts, or each of these by itself.

        >>> Hosting.contiguous(4, 2).contributed(summed=True)
        ((Node(start=0, stop=2),), (Node(start=2, stop=4),))
        """
        return self.covers if summed else self.leaves

    @classmethod
    @functools.lru_cache(maxsize=64)
    def contiguous(cls, num_replicas: int, num_workers: int) -> Hosting:
        """Return the default: contiguous ranges, as equal as possible, larger ones first."""
        return cls(num_replicas, tuple(tuple(r) for r in contiguous_ranges(num_replicas, num_workers)))
