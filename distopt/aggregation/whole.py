"""Aggregators that look at whole gradients: they run where these are, on every process or on one server."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import TypeAlias

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
