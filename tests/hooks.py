"""Gradient hooks that the same-bits matrix names in its configurations, as users would name theirs."""

from __future__ import annotations

from typing import Any

import numpy as np

from distopt import replica_context
from distopt.aggregation import Aggregator
from distopt.types import Array


class MedianOfReplicas(Aggregator):
    """Coordinate-wise median, times the number of replicas so that its size is that of a sum."""

    name = "tests.median"

    def combine(self, contributions: Array) -> Array:
        median: Array = np.median(contributions, axis=0).astype(contributions.dtype)
        return median * contributions.dtype.type(len(contributions))


def unit_length_before_sum(grads_and_vars: Any) -> list[tuple[Any, Any]]:
    """Scale each replica's gradients to a common length over *all* variables, then sum: needs whole gradients."""
    pairs = list(grads_and_vars)
    square = sum(float(np.sum(np.square(np.asarray(gradient, np.float64)))) for gradient, _ in pairs)
    scale = np.float32(0.1 / np.sqrt(square)) if square > 0 else np.float32(0)
    context = replica_context.current_replica("unit_length_before_sum")
    scaled = [np.asarray(gradient) * scale for gradient, _ in pairs]
    return list(zip(context.all_reduce("SUM", scaled), (variable for _, variable in pairs), strict=True))
