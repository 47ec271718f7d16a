"""Aggregators by the names that job files use, and what options each takes."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Mapping
from typing import Any

from distopt.aggregation.adasum import Adasum
from distopt.aggregation.base import GradientAggregator
from distopt.aggregation.compression import BFloat16, Compression, Float16, Int8, TopK
from distopt.aggregation.element_wise import Mean, MeanBySamples, Sum
from distopt.aggregation.geometric_median import GeometricMedian
from distopt.aggregation.krum import Krum, MultiKrum
from distopt.aggregation.power_sgd import PowerSGD
from distopt.aggregation.robust import Median, TrimmedMean

AGGREGATORS: dict[str, type[GradientAggregator]] = {
    cls.name: cls for cls in (Sum, Mean, MeanBySamples, Median, TrimmedMean, Krum, MultiKrum, GeometricMedian, Adasum)
}
COMPRESSIONS: dict[str, type[Compression | PowerSGD]] = {
    cls.name: cls for cls in (Float16, BFloat16, Int8, TopK, PowerSGD)
}


@functools.cache
def options_of(kind: type) -> Mapping[str, Any]:
    """Return the types of the keyword arguments that ``kind`` is made with, by name.

    >>> options_of(TrimmedMean)
    {'trim': <class 'int'>}
    """
    if kind.__init__ is object.__init__:  # type: ignore[misc]  # asked of the class, on purpose
        return {}
    types = typing.get_type_hints(kind.__init__)  # type: ignore[misc]  # as above
    return {name: types[name] for name in inspect.signature(kind).parameters}
