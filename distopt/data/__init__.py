"""Input pipelines: what each step reads, and in which order.

The rules that tie samples to steps and replicas are pure functions in :mod:`distopt.sampling`, offered here too.
"""

from distopt.data.dataset import AUTOTUNE, INFINITE_CARDINALITY, Dataset
from distopt.sampling import (
    batch_bounds,
    batch_length,
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
    "batch_bounds",
    "batch_length",
    "epoch_permutation",
    "num_steps",
    "rebatch_for_replicas",
    "replica_chunk",
    "step_indices",
    "stratified_split",
]
