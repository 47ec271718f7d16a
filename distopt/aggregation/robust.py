"""Element-wise aggregators that a few replicas cannot lead astray, whatever they send.

Both sort the contributions of each element. What is not a number counts as plus infinity, so a replica that sends it is
an outlier like any other; minus zero counts as zero, so that equal numbers have equal bits.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from distopt.aggregation.element_wise import Aggregator
from distopt.aggregation.options import whole_number
from distopt.canonical_sum import add_rows
from distopt.types import Array

_BLOCK = 8192
"""Elements that are sorted at a time, so that all replicas' lie in the cache."""


class Median(Aggregator):
    """The coordinate-wise median; of an even number of replicas, the mean of the two in the middle.

        m_j = median(g_1j, ..., g_Rj)

    Fewer than half of the replicas cannot move an element out of the range of the others.

    Units: those of one contribution, so give each replica the mean loss of its own samples (a job does).
    Source: Yin et al. 2018, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", definition 1.

    >>> Median().combine(np.array([[1.0, 5.0], [2.0, np.nan], [9.0, 3.0]]))
    array([2., 5.])
    """

    name = "median"
    of_means = True
    averages = True

    def combine(self, contributions: Array) -> Array:
        count = len(contributions)
        median: Array = np.empty_like(contributions[0])
        half = contributions.dtype.type(0.5)
        for block in _blocks(median):
            ordered = sorted_rows(contributions[:, block])
            low, high = ordered[(count - 1) // 2], ordered[count // 2]
            # Halved before they are added, so that the sum of two large numbers is none that overflows.
            median[block] = low if count % 2 else half * low + half * high
        return median


class TrimmedMean(Aggregator):
    """The coordinate-wise mean without the ``trim`` largest and the ``trim`` smallest contributions.

        m_j = 1 / (R - 2 trim) * the sum of g_rj over the replicas between these

    At most ``trim`` replicas cannot move an element out of the range of the others. The sum is the canonical one over
    the contributions in ascending order.

    Units: as :class:`Median`.
    Raises: ValueError for a ``trim`` below 0, and where ``2 * trim`` is not less than the number of replicas.
    Source: Yin et al. 2018, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", definition 2,
        with ``beta = trim / R``.

    >>> TrimmedMean(trim=1).combine(np.array([[1.0], [2.0], [4.0], [1e9]]))
    array([3.])
    """

    name = "trimmed_mean"
    of_means = True
    averages = True

    def __init__(self, trim: int = 1) -> None:
        self.trim = whole_number("trim", trim, least=0)

    def __repr__(self) -> str:
        return f"TrimmedMean(trim={self.trim})"

    def check_replicas(self, num_replicas: int) -> None:
        """See :meth:`GradientAggregator.check_replicas`."""
        if 2 * self.trim >= num_replicas:
            raise ValueError(
                f"trim = {self.trim} leaves nothing of {num_replicas} replicas; allowed: less than half of them"
            )

    def combine(self, contributions: Array) -> Array:
        count = len(contributions)
        self.check_replicas(count)
        mean: Array = np.empty_like(contributions[0])
        kept = contributions.dtype.type(count - 2 * self.trim)
        for block in _blocks(mean):
            ordered = sorted_rows(contributions[:, block])
            mean[block] = add_rows(ordered[self.trim : count - self.trim]) / kept
        return mean


def sorted_rows(contributions: Array) -> Array:
    """Return ``contributions``, shape ``[R, n]``, with each column in ascending order; NaN becomes plus infinity.

    A network of comparisons of neighbours: ``R`` rounds over whole rows, which for the few replicas that there are is
    faster than sorting columns one by one, and does the same to every column whatever is beside it.

    >>> sorted_rows(np.array([[2.0, -0.0], [1.0, np.nan]]))
    array([[ 1.,  0.],
           [ 2., inf]])
    """
    rows: Array = contributions + contributions.dtype.type(0)
    rows[np.isnan(rows)] = np.inf
    smaller = np.empty_like(rows[0])
    for turn in range(len(rows)):
        for low, high in list(pairwise(range(len(rows))))[turn % 2 :: 2]:
            np.minimum(rows[low], rows[high], out=smaller)
            np.maximum(rows[low], rows[high], out=rows[high])
            rows[low] = smaller
    return rows


def _blocks(array: Array) -> list[slice]:
    return [slice(start, start + _BLOCK) for start in range(0, len(array), _BLOCK)]
