"""Krum and multi-Krum: trust the gradients that many others are near to."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from distopt import norms
from distopt.aggregation.options import whole_number
from distopt.aggregation.whole import Gradients, WholeAggregator
from distopt.canonical_sum import add_rows
from distopt.types import Array


class MultiKrum(WholeAggregator):
    """The mean of the ``selected`` contributions that have the lowest Krum score.

        score(i) = the sum of |g_i - g_j|^2 over the R - byzantine - 2 others j that are nearest to i

    Up to ``byzantine`` replicas may send anything; equal scores go to the lower replica id. ``selected`` is
    ``R - byzantine - 2`` unless given.

    Units: those of one contribution, so give each replica the mean loss of its own samples (a job does).
    Raises: ValueError for negative numbers, for fewer than ``2 * byzantine + 3`` replicas, and for more ``selected``
        than there are replicas.
    Source: Blanchard et al. 2017, "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", sections 4
        and 6; the number that is selected by default: Damaskinos et al. 2019, "AggregaThor", section 2.

    >>> near = [[np.array([1.0])], [np.array([2.0])], [np.array([1.5])], [np.array([1.5])], [np.array([1e9])]]
    >>> MultiKrum(byzantine=1).combine(near)
    [array([1.5])]
    """

    name = "multi_krum"
    of_means = True
    averages = True

    def __init__(self, byzantine: int = 1, selected: int | None = None) -> None:
        self.byzantine = whole_number("byzantine", byzantine, least=0)
        self.selected = None if selected is None else whole_number("selected", selected, least=1)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(byzantine={self.byzantine}, selected={self.selected})"

    def check_replicas(self, num_replicas: int) -> None:
        """See :meth:`GradientAggregator.check_replicas`."""
        needed = 2 * self.byzantine + 3
        if num_replicas < needed:
            raise ValueError(
                f"byzantine = {self.byzantine} needs at least 2 * {self.byzantine} + 3 = {needed} replicas, "
                f"not {num_replicas}"
            )
        if self.selected is not None and self.selected > num_replicas:
            raise ValueError(f"selected = {self.selected} is more than the {num_replicas} replicas")

    def combine(self, gradients: Sequence[Gradients]) -> list[Array]:
        """See :meth:`WholeAggregator.combine`."""
        self.check_replicas(len(gradients))
        number = self.selected or len(gradients) - self.byzantine - 2
        scores = krum_scores(squared_distances(gradients), self.byzantine)
        best = sorted(sorted(range(len(gradients)), key=lambda replica: (scores[replica], replica))[:number])
        if number == 1:
            return list(gradients[best[0]])
        return [
            add_rows(np.stack(column)) / column[0].dtype.type(number)
            for column in zip(*(gradients[replica] for replica in best), strict=True)
        ]


class Krum(MultiKrum):
    """The contribution that has the lowest Krum score: :class:`MultiKrum` that selects one.

    Raises: as :class:`MultiKrum`.
    Source: Blanchard et al. 2017, "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", section 4.
    """

    name = "krum"

    def __init__(self, byzantine: int = 1) -> None:
        super().__init__(byzantine, selected=1)

    def __repr__(self) -> str:
        return f"Krum(byzantine={self.byzantine})"


def squared_distances(gradients: Sequence[Gradients]) -> list[list[float]]:
    """Return ``|g_i - g_j|^2`` for each two replicas, over all variables; infinite where it is not a number.

    Each variable's is the canonical sum of squares of :mod:`distopt.norms`; those of the variables are added in order.
    """
    count = len(gradients)
    found = [[0.0] * count for _ in range(count)]
    for i in range(count):
        for j in range(i):
            with np.errstate(all="ignore"):
                total = sum(_squares(a, b) for a, b in zip(gradients[i], gradients[j], strict=True))
            found[i][j] = found[j][i] = math.inf if math.isnan(total) else total
    return found


def krum_scores(distances: Sequence[Sequence[float]], byzantine: int) -> list[float]:
    """Return each replica's score from the squared distances between them.

    >>> krum_scores([[0, 1, 4, 81], [1, 0, 1, 64], [4, 1, 0, 49], [81, 64, 49, 0]], byzantine=0)
    [5, 2, 5, 113]
    """
    count = len(distances)
    scores = []
    for i, row in enumerate(distances):
        others = sorted(distance for j, distance in enumerate(row) if j != i)
        scores.append(sum(others[: count - byzantine - 2]))
    return scores


def _squares(a: Array, b: Array) -> float:
    dtype = norms.accumulation_dtype(a.dtype)
    return float(norms.sum_of_squares(a.astype(dtype, copy=False) - b.astype(dtype, copy=False)))
