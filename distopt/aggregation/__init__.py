"""How the gradients of the replicas become one: element-wise aggregators, and those over whole gradients."""

from __future__ import annotations

from distopt.aggregation.base import GradientAggregator
from distopt.aggregation.element_wise import Aggregator, Mean, Sum
from distopt.aggregation.robust import Median, TrimmedMean

__all__ = ["Aggregator", "GradientAggregator", "Mean", "Median", "Sum", "TrimmedMean"]
