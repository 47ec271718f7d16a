"""The canonical sum over replicas: one tree of additions, whoever carries them out.

``S(a, b) = S(a, m) + S(m, b)`` with ``m - a`` the largest power of two below ``b - a``. The shape depends on the
number of replicas alone, so a sum has the same bits wherever its parts were added.

For five replicas::

            [0,5)
           /     \\
        [0,4)    [4,5)
        /   \\
     [0,2) [2,4)
     /  \\   /  \\
    0    1 2    3

A worker adds the subtrees that it hosts (:meth:`SumTree.cover`) and passes on their roots; an owner adds the roots
(:func:`add_nodes`). Nothing here knows a process, a socket or an optimizer.

Row-sparse gradients. A replica has some rows of a table, a row perhaps several times: its occurrences. They are added
left to right, which gives the replica's row. The rows of the replicas are then added along the *same* tree over all
replica ids, where what is absent is skipped: of two subtrees of which one lacks the row, the sum is the other's row,
unchanged. If replicas 1, 2 and 4 of five have the row, it is ``(r1 + r2) + r4``; the tree is not drawn anew over three
leaves, for a worker that hosts replicas 2 and 3 could not know which subtree is its own. So the bits depend on the
replica ids that have the row, and on nothing about where these are hosted. The order of rows in a sum is that of their
first occurrence, replica after replica. :mod:`distopt.row_sums` does it; to be exact, skipping means what adding -0.0
would mean: the sign of a zero survives.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Final, NamedTuple

import numpy as np

from distopt import sum_loops
from distopt.sum_loops import Additions
from distopt.types import Array

_COMPILED_FROM: Final = 2**15
"""Elements from which a compiled loop adds three terms or more; what is smaller is not worth a first use."""

_BLOCK: Final = 32768
"""Elements that are added up at a time where there are intermediate sums."""


class Node(NamedTuple):
    """The replicas ``start <= r < stop`` of one step, as a node of the tree."""

    start: int
    stop: int

    def __str__(self) -> str:
        return f"replica {self.start}" if self.stop - self.start == 1 else f"replicas {self.start}..{self.stop - 1}"


class SumTree:
    """The canonical tree over ``num_replicas`` replicas.

    Raises: ValueError if ``num_replicas`` is not positive.
    """

    def __init__(self, num_replicas: int) -> None:
        if num_replicas < 1:
            raise ValueError(f"a sum needs at least 1 replica, not {num_replicas}")
        self.num_replicas = num_replicas
        self.root = Node(0, num_replicas)
        self._nodes = frozenset(self._walk(self.root))

    def __contains__(self, node: object) -> bool:
        return node in self._nodes

    def children(self, node: Node) -> tuple[Node, Node]:
        """Return the two nodes that ``node`` is the sum of.

        Raises: ValueError for a single replica, or for a node that is not in the tree.

        >>> SumTree(5).children(Node(0, 5))
        (Node(start=0, stop=4), Node(start=4, stop=5))
        """
        if node not in self._nodes or node.stop - node.start < 2:
            raise ValueError(f"{node} has no children in a tree over {self.num_replicas} replicas")
        middle = node.start + _largest_power_of_two_below(node.stop - node.start)
        return Node(node.start, middle), Node(middle, node.stop)

    def cover(self, replicas: Iterable[int]) -> tuple[Node, ...]:
        """Return the fewest nodes that cover exactly ``replicas``, in order.

        These are what a worker that hosts ``replicas`` sends: at most ``2 * log2(R)`` for a contiguous range.

        Raises: ValueError for a replica that does not exist.

        >>> SumTree(8).cover(range(3, 8))
        (Node(start=3, stop=4), Node(start=4, stop=8))
        """
        wanted = frozenset(replicas)
        if unknown := sorted(r for r in wanted if not 0 <= r < self.num_replicas):
            raise ValueError(f"replicas {unknown} do not exist; there are {self.num_replicas}, from 0")
        return tuple(self._cover(self.root, wanted))

    def is_covered_by(self, nodes: Iterable[Node]) -> bool:
        """Return whether disjoint ``nodes`` hold every replica."""
        return sum(node.stop - node.start for node in nodes) == self.num_replicas

    def missing(self, nodes: Iterable[Node]) -> tuple[Node, ...]:
        """Return the fewest nodes that ``nodes`` leave uncovered."""
        present = {replica for node in nodes for replica in range(node.start, node.stop)}
        return self.cover(set(range(self.num_replicas)) - present)

    def overlapping(self, node: Node, others: Iterable[Node]) -> tuple[Node, ...]:
        """Return those of ``others`` that share a replica with ``node`` without being ``node``."""
        return tuple(o for o in others if o != node and o.start < node.stop and node.start < o.stop)

    def _cover(self, node: Node, wanted: frozenset[int]) -> Iterator[Node]:
        inside = sum(1 for replica in range(node.start, node.stop) if replica in wanted)
        if inside == node.stop - node.start:
            yield node
        elif inside:
            for child in self.children(node):
                yield from self._cover(child, wanted)

    def _walk(self, node: Node) -> Iterator[Node]:
        yield node
        if node.stop - node.start > 1:
            middle = node.start + _largest_power_of_two_below(node.stop - node.start)
            yield from self._walk(Node(node.start, middle))
            yield from self._walk(Node(middle, node.stop))


def add_nodes(tree: SumTree, sums: Mapping[Node, Array], wanted: Node | None = None, out: Array | None = None) -> Array:
    """Return the canonical sum of ``wanted`` (default: all replicas) from sums of nodes that cover it.

    Shapes: all alike; so is the result. The dtype is kept. Inputs are not written to.
    The result is ``out`` where that is given (it must not overlap an input); else the very array that is given for
    ``wanted``; else a new one.

    Raises: ValueError if a replica below ``wanted`` is covered by no node.
    """
    node = tree.root if wanted is None else wanted
    present = sums.get(node)
    if present is not None:
        if out is None:
            return present
        out[...] = present
        return out
    plan = _planned(tree, frozenset(sums), node)
    terms = [sums[given] for given in plan.nodes]
    if out is None:
        out = np.empty_like(terms[0])
    if out.size >= _COMPILED_FROM and len(terms) > 2 and sum_loops.can_add(out, terms):
        sum_loops.add(plan.sum_of, terms, out)
        return out
    if out.ndim != 1 or len(out) <= _BLOCK or len(terms) < 3:
        plan.run(terms, out, [np.empty_like(out) for _ in range(plan.num_temporaries)])
        return out
    # Sums of sums stay in the cache: each input is read once and the result written once.
    temporaries = [np.empty_like(out, shape=_BLOCK) for _ in range(plan.num_temporaries)]
    for start in range(0, len(out), _BLOCK):
        block = slice(start, start + _BLOCK)
        length = len(out[block])
        plan.run([term[block] for term in terms], out[block], [t[:length] for t in temporaries])
    return out


class _Plan:
    """The additions that make up one node from terms, in order: a left operand is added up where the sum goes."""

    def __init__(self, tree: SumTree, given: Set[Node], node: Node) -> None:
        self.nodes: list[Node] = []
        """Of which of the ``given`` ones a term is wanted, in order."""
        self.num_temporaries = 0
        self._tree = tree
        self._given = given
        self._additions: list[tuple[int, int, int]] = []
        """Operands and result by index: from 0 up a term, ``-1 - k`` buffer k, of which buffer 0 is the result."""
        _, self.sum_of = self._visit(node, 0)

    def run(self, terms: Sequence[Array], out: Array, temporaries: Sequence[Array]) -> None:
        buffers = [out, *temporaries]
        for left, right, result in self._additions:
            np.add(
                terms[left] if left >= 0 else buffers[-1 - left],
                terms[right] if right >= 0 else buffers[-1 - right],
                out=buffers[-1 - result],
            )

    def _visit(self, node: Node, buffer: int) -> tuple[int, Additions]:
        """Plan the sum of ``node`` into ``buffer``, those after it being free; return where it is, and of what."""
        if node in self._given:
            self.nodes.append(node)
            return len(self.nodes) - 1, len(self.nodes) - 1
        if node.stop - node.start < 2:
            raise ValueError(f"no contribution covers {node}")
        left_node, right_node = self._tree.children(node)
        self.num_temporaries = max(self.num_temporaries, buffer)
        left, of_left = self._visit(left_node, buffer)
        right, of_right = self._visit(right_node, buffer + (left < 0))
        self._additions.append((left, right, -1 - buffer))
        return -1 - buffer, (of_left, of_right)


_planned = functools.lru_cache(maxsize=1024)(_Plan)


def additions(tree: SumTree, nodes: Sequence[Node]) -> Additions:
    """Return the additions that make up the sum over all replicas from the sums of ``nodes``, which are in order.

    Raises: ValueError if a replica is covered by no node.

    >>> tree = SumTree(5)
    >>> additions(tree, [Node(0, 2), Node(2, 3), Node(3, 4), Node(4, 5)])
    ((0, (1, 2)), 3)
    """
    position = {node: index for index, node in enumerate(nodes)}

    def of(node: Node) -> Additions:
        if node in position:
            return position[node]
        if node.stop - node.start < 2:
            raise ValueError(f"no contribution covers {node}")
        left, right = tree.children(node)
        return of(left), of(right)

    return of(tree.root)


def add_rows(contributions: Array) -> Array:
    """Return the canonical sum over axis 0 of ``contributions``, shape ``[replicas, ...]``, in its dtype.

    >>> import numpy as np
    >>> add_rows(np.array([[1.0], [2.0], [4.0]]))
    array([7.])
    """
    tree = SumTree(len(contributions))
    return add_nodes(tree, {Node(r, r + 1): row for r, row in enumerate(contributions)})


def contiguous_ranges(num_replicas: int, num_workers: int) -> tuple[range, ...]:
    """Return the replicas that each worker hosts by default; workers beyond the replicas host none.

    >>> contiguous_ranges(8, 3)
    (range(0, 3), range(3, 6), range(6, 8))
    >>> contiguous_ranges(1, 2)
    (range(0, 1), range(1, 1))
    """
    quotient, rest = divmod(num_replicas, num_workers)
    bounds = [0]
    for worker in range(num_workers):
        bounds.append(bounds[-1] + quotient + (worker < rest))
    return tuple(range(a, b) for a, b in itertools.pairwise(bounds))


def _largest_power_of_two_below(n: int) -> int:
    return 1 << ((n - 1).bit_length() - 1)
