"""Aggregators that look at whole gradients: they run where these are, on every process or on one server."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from distopt.aggregation.base import GradientAggregator
from distopt.types import Array

Gradients: TypeAlias = Sequence[Array]
"""One replica's gradients, one array of any shape for each variable."""


class WholeAggregator(GradientAggregator):
    """Combine the contributions of all replicas, each with all its variables.

    A subclass gives :meth:`combine`. With placement ``replica`` every process gets the gradients of all replicas and
    combines them, alike; one server does so too. Several servers, of which each has a part, are refused by name.
    """

    @abc.abstractmethod
    def combine(self, gradients: Sequence[Gradients]) -> list[Array]:
        """Return one array for each variable from ``gradients[replica][variable]``, which are not written to.

        Shapes and dtypes are those of any replica's gradients.
        """


@dataclass(frozen=True)
class Meeting:
    """One step of an aggregator that itself adds up what it likes, as one process sees it."""

    num_replicas: int
    replicas: Sequence[int]
    """Those hosted here; none where one stand-in takes part, and contributes nothing."""
    variables: Sequence[Any]
    gradients_of: Sequence[Gradients]
    """Of each hosted replica, or of the stand-in."""
    total: Callable[[Sequence[Sequence[Array]]], list[Array]]
    """Return the canonical sum over all replicas of each column, which has one array a hosted replica; a collective."""


class JointAggregator(GradientAggregator):
    """Find the result by sums over replicas of its own, so that no process needs the gradients of the others."""

    @abc.abstractmethod
    def combine_jointly(self, meeting: Meeting) -> list[Array]:
        """Return one array for each variable, the same bits on every process; every process makes the same sums."""
