"""Where an update takes its gradient from: an array, or terms that are added, scaled and clipped as they are read.

Theory of operation. An owner reads what the replicas contributed where it lies, and each element is needed once. To add
the contributions up, store the sum, clip it, store that, and then run the rule costs three passes over memory; one loop
that does everything to an element while it is in a register costs one. So what becomes of the terms on the way to the
rule is described by a :class:`Source`, and engines run a rule from a source: the compiled one by a kernel that is
generated for the two, the NumPy one on blocks that stay in the cache. Both have the bits of the passes one by one.

With more terms than :data:`distopt.sum_loops.MOST_STREAMS`, a processor cannot follow all arrays at once: a kernel then
adds up groups of them block by block into memory that stays in the cache.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from distopt.canonical_sum import Node, SumTree, additions
from distopt.optimizers.choose import maximum, minimum
from distopt.sum_loops import Additions, count
from distopt.types import Array


class Terms(NamedTuple):
    """What the gradients of an owner's spans are added up from: the canonical sum, divided by ``divisor`` if given.

    ``sums`` has for each node one flat array a span; together the nodes cover the tree. They are read where they lie,
    and not written to.
    """

    tree: SumTree
    sums: Mapping[Node, Sequence[Array]]
    divisor: int | None = None


Gradients: TypeAlias = Sequence[Array] | Terms
"""What an owner updates its spans with: one flat aggregated gradient for each, or what they are added up from."""


@dataclass(frozen=True)
class Source:
    """What becomes of terms before the rule sees them, in this order.

    They are added up, in the order of ``additions``; divided by a ``divisor``; clipped to ``low`` and ``high``;
    multiplied by a ``factor``. A step that is on takes the scalars of these names, in this order, in the gradient's
    dtype.
    """

    additions: Additions = 0
    is_mean: bool = False
    is_clipped: bool = False
    is_scaled: bool = False

    @property
    def scalars(self) -> tuple[str, ...]:
        """The names of the scalars that it takes."""
        names = (("divisor",) if self.is_mean else (), ("low", "high") if self.is_clipped else ())
        return (*names[0], *names[1], *(("factor",) if self.is_scaled else ()))

    @property
    def num_terms(self) -> int:
        """How many arrays are read."""
        return count(self.additions)

    @functools.cached_property
    def scaled(self) -> Source:
        """This source with a ``factor``: the same object in every step."""
        assert not self.is_scaled, "a gradient is scaled once"
        return Source(self.additions, self.is_mean, self.is_clipped, is_scaled=True)

    def evaluate(self, terms: Sequence[Array], scalars: Sequence[Any]) -> Array:
        """Return the gradient from blocks of the terms: the NumPy form; a block itself if there is nothing to do."""
        values = _added(self.additions, terms)
        rest = iter(scalars)
        if self.is_mean:
            values = values / next(rest)
        if self.is_clipped:
            values = clip_value(values, next(rest), next(rest))
        if self.is_scaled:
            values = values * next(rest)
        return values


PLAIN = Source()
"""One array, as it is."""


@dataclass(frozen=True)
class Gradient:
    """The gradient of one range: a source, the arrays and the scalars that it takes."""

    source: Source
    terms: tuple[Array, ...]
    scalars: tuple[Any, ...] = ()

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the terms and of the gradient."""
        return self.terms[0].dtype

    def part(self, start: int, stop: int) -> Gradient:
        """Return the gradient of the elements ``start <= i < stop``."""
        return Gradient(self.source, tuple([term[start:stop] for term in self.terms]), self.scalars)

    def clipped(self, limit: float) -> Gradient:
        """Return the gradient clipped to ``-limit`` and ``limit``."""
        source, scalar = self.source, self.dtype.type
        assert not source.is_clipped, "a gradient is clipped once"
        assert not source.is_scaled, "a gradient is clipped before it is scaled"
        clipped = Source(source.additions, source.is_mean, is_clipped=True)
        return Gradient(clipped, self.terms, (*self.scalars, scalar(-limit), scalar(limit)))

    def scaled(self, factor: Any) -> Gradient:
        """Return the gradient times ``factor``, which has its dtype."""
        return Gradient(self.source.scaled, self.terms, (*self.scalars, factor))


def gradients_of(terms: Terms) -> list[Gradient]:
    """Return the gradient of each span of an owner.

    Raises: ValueError if the nodes do not cover the tree, or have not equally many arrays.
    """
    nodes = tuple(sorted(terms.sums))
    source = _source(terms.tree.num_replicas, nodes, terms.divisor is not None)
    found = []
    for arrays in zip(*(terms.sums[node] for node in nodes), strict=True):
        scalars = () if terms.divisor is None else (arrays[0].dtype.type(terms.divisor),)
        found.append(Gradient(source, arrays, scalars))
    return found


@functools.lru_cache(maxsize=256)
def _source(num_replicas: int, nodes: tuple[Node, ...], is_mean: bool) -> Source:
    return Source(additions(SumTree(num_replicas), nodes), is_mean)


def clip_value(gradient: Any, low: Any, high: Any) -> Any:
    """Return ``gradient`` where it lies between ``low`` and ``high``, else the nearer of them; NaN stays NaN.

    >>> clip_value(np.array([-2.0, 0.5, np.nan]), -1.0, 1.0)
    array([-1. ,  0.5,  nan])
    """
    return minimum(maximum(gradient, low), high)


def _added(sum_of: Additions, terms: Sequence[Array]) -> Array:
    if isinstance(sum_of, int):
        return terms[sum_of]
    left, right = sum_of
    total: Array = _added(left, terms) + _added(right, terms)
    return total
