"""The geometric median of whole gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from distopt import norms
from distopt.aggregation.options import whole_number
from distopt.aggregation.robust import Median
from distopt.aggregation.whole import Gradients, WholeAggregator
from distopt.canonical_sum import add_rows
from distopt.types import Array


class GeometricMedian(WholeAggregator):
    """The point whose distances to all contributions have the least sum, by the smoothed Weiszfeld algorithm.

        z_0     = the coordinate-wise median
        beta_r  = 1 / max(smoothing, |g_r - z_t|)
        z_(t+1) = sum of beta_r g_r / sum of beta_r          ``iterations`` times

    Fewer than half of the replicas can move it only as far as a multiple of the honest ones' spread. A contribution
    that is not finite is infinitely far away. The source may begin anywhere; this begins where outliers have no say.

    Units: those of one contribution, so give each replica the mean loss of its own samples (a job does).
        ``smoothing`` is a distance.
    Raises: ValueError for fewer than 1 of ``iterations`` and a ``smoothing`` that is not positive.
    Source: Pillutla, Kakade and Harchaoui 2019, "Robust Aggregation for Federated Learning", algorithm 2, with equal
        weights.

    >>> [z] = GeometricMedian().combine([[np.array([0.0, 0.0])], [np.array([0.0, 1.0])], [np.array([1e9, np.nan])]])
    >>> bool(np.abs(z).max() <= 1.0)
    True
    """

    name = "geometric_median"
    of_means = True
    averages = True

    def __init__(self, iterations: int = 8, smoothing: float = 1e-6) -> None:
        if not smoothing > 0:
            raise ValueError(f"smoothing must be greater than 0, but is {smoothing}")
        self.iterations = whole_number("iterations", iterations, least=1)
        self.smoothing = smoothing

    def __repr__(self) -> str:
        return f"GeometricMedian(iterations={self.iterations}, smoothing={self.smoothing})"

    def combine(self, gradients: Sequence[Gradients]) -> list[Array]:
        """See :meth:`WholeAggregator.combine`."""
        columns = [np.stack(column) for column in zip(*gradients, strict=True)]
        rows = [column.reshape(len(column), -1) for column in columns]
        center = [Median().combine(of_variable) for of_variable in rows]
        for _ in range(self.iterations):
            weights = [1.0 / max(self.smoothing, distance) for distance in _distances(rows, center)]
            total = sum(weights)
            if total == 0.0:
                break
            center = [_weighted_sum(of_variable, [weight / total for weight in weights]) for of_variable in rows]
        return [z.reshape(column.shape[1:]) for z, column in zip(center, columns, strict=True)]


def _distances(rows: Sequence[Array], center: Gradients) -> list[float]:
    """Return how far each replica is from ``center``; in float64, in which no float32 is too far away."""
    found = []
    for replica in range(len(rows[0])):
        with np.errstate(all="ignore"):
            square = sum(
                float(norms.sum_of_squares(row[replica].astype(np.float64) - z.astype(np.float64)))
                for row, z in zip(rows, center, strict=True)
            )
        found.append(math.inf if math.isnan(square) else math.sqrt(square))
    return found


def _weighted_sum(rows: Array, weights: Sequence[float]) -> Array:
    """Return the canonical sum of ``weights[r] * rows[r]``; what has no weight is left out, even if it is infinite."""
    scaled = np.zeros_like(rows)
    for replica, weight in enumerate(weights):
        if weight > 0.0:
            np.multiply(rows[replica], rows.dtype.type(weight), out=scaled[replica])
    return add_rows(scaled)
