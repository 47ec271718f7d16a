"""Names that ``tf.data.experimental`` has."""

from __future__ import annotations

from distopt.data.dataset import AUTOTUNE, INFINITE_CARDINALITY
from distopt.data.options import DistributeOptions
from distopt.distribute.inputs import AutoShardPolicy

__all__ = ["AUTOTUNE", "INFINITE_CARDINALITY", "AutoShardPolicy", "DistributeOptions"]
