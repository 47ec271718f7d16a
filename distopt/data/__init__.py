"""Input pipelines: what each step reads, and in which order.

The rules that tie samples to steps and replicas are pure functions in :mod:`distopt.sampling`, offered here too.
"""

from distopt.data import experimental
from distopt.data.dataset import AUTOTUNE, INFINITE_CARDINALITY, Dataset
from distopt.data.options import Options
from distopt.sampling import (
    batch_bounds,
    batch_length,
    batch_sizes_for_worker,
    epoch_permutation,
    num_steps,
    rebatch_for_replicas,
    replica_chunk,
    step_indices,
    stratified_split,
)

__all__ = [
    "AUTOTUNE",
    "INFINITE_CARDINALITY",
    "Dataset",
    "Options",
    "batch_bounds",
    "batch_length",
    "batch_sizes_for_worker",
    "epoch_permutation",
    "experimental",
    "num_steps",
    "rebatch_for_replicas",
    "replica_chunk",
    "step_indices",
    "stratified_split",
]
