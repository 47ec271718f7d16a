"""How the gradients of the replicas become one: element-wise aggregators, and those over whole gradients."""

from __future__ import annotations

from distopt.aggregation.adasum import Adasum
from distopt.aggregation.base import GradientAggregator
from distopt.aggregation.compression import BFloat16, Compression, Float16, Int8, TopK
from distopt.aggregation.element_wise import Aggregator, Mean, MeanBySamples, Sum, note_samples
from distopt.aggregation.geometric_median import GeometricMedian
from distopt.aggregation.krum import Krum, MultiKrum
from distopt.aggregation.local_steps import LocalSteps
from distopt.aggregation.power_sgd import PowerSGD
from distopt.aggregation.robust import Median, TrimmedMean
from distopt.aggregation.whole import JointAggregator, Meeting, WholeAggregator

__all__ = [
    "Adasum",
    "Aggregator",
    "BFloat16",
    "Compression",
    "Float16",
    "GeometricMedian",
    "GradientAggregator",
    "Int8",
    "JointAggregator",
    "Krum",
    "LocalSteps",
    "Mean",
    "MeanBySamples",
    "Median",
    "Meeting",
    "MultiKrum",
    "PowerSGD",
    "Sum",
    "TopK",
    "TrimmedMean",
    "WholeAggregator",
    "note_samples",
]
