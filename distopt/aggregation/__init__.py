"""How the gradients of the replicas become one: element-wise aggregators, and hooks over whole gradients."""

from __future__ import annotations

from distopt.aggregation.element_wise import Aggregator, Mean, Sum

__all__ = ["Aggregator", "Mean", "Sum"]
