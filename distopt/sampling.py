"""Which samples belong to a step, and which of those to a replica: pure functions of integers.

The data of a step are a function of (seed, epoch, step), whatever ran before and on whatever processes; so a job can be
resumed at any step, and no process has to tell another what it has read.

::

    epoch e:   permutation of (seed, e)      [ 7 2 9 | 0 4 1 | 8 3 5 | 6 ]
    step s:    rows s*B .. s*B + B of it               0 4 1                  the last batch may be short
    replica r: rows r*c .. r*c + c of those,           0 4 | 1                c = ceil(b / R), b the true size
"""

from __future__ import annotations

from typing import Any

import numpy as np

from distopt import nest
from distopt.random import Domain, permutation, stream
from distopt.types import Array


def epoch_permutation(seed: int, epoch: int, num_samples: int) -> Array:
    """Return the order in which epoch ``epoch`` visits ``num_samples`` samples: int64, shape ``[num_samples]``.

    It depends on the three numbers alone, and is the same in every version of NumPy.
    """
    return permutation(stream(Domain.EPOCH, seed, epoch), num_samples)


def num_steps(num_samples: int, batch_size: int, drop_remainder: bool = False) -> int:
    """Return how many batches an epoch has; a short last one counts unless ``drop_remainder``.

    Raises: ValueError if ``batch_size`` is not positive.

    >>> num_steps(10, 4), num_steps(10, 4, drop_remainder=True)
    (3, 2)
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    return num_samples // batch_size if drop_remainder else -(-num_samples // batch_size)


def batch_bounds(num_samples: int, batch_size: int, step: int) -> tuple[int, int]:
    """Return ``(start, stop)`` of batch ``step`` of an epoch; the last one may be short.

    Raises: IndexError if the epoch has no such step; ValueError if ``batch_size`` is not positive.

    >>> batch_bounds(10, 4, 2)
    (8, 10)
    """
    if not 0 <= step < num_steps(num_samples, batch_size):
        raise IndexError(f"{num_samples} samples in batches of {batch_size} have no step {step}")
    start = step * batch_size
    return start, min(start + batch_size, num_samples)


def replica_chunk(batch_length: int, num_replicas: int, replica: int) -> slice:
    """Return the rows of a batch that belong to ``replica``: chunks of ``ceil(batch_length / num_replicas)``.

    Trailing replicas may get fewer rows or none, even of a full batch.

    Raises: IndexError if there is no such replica.
    Source: TensorFlow's rebatching under ``AutoShardPolicy.DATA``.

    >>> [replica_chunk(9, 4, r) for r in range(4)]
    [slice(0, 3, None), slice(3, 6, None), slice(6, 9, None), slice(9, 9, None)]
    """
    if not 0 <= replica < num_replicas:
        raise IndexError(f"there are {num_replicas} replicas, and no replica {replica}")
    chunk = -(-batch_length // num_replicas)
    return slice(min(replica * chunk, batch_length), min((replica + 1) * chunk, batch_length))


def batch_sizes_for_worker(
    global_batch_size: int, num_workers: int, num_replicas_per_worker: int, worker_index: int
) -> list[int]:
    """Return the sizes by which one worker cuts its stream of rows, so that every step of all workers takes one batch.

    Sizes differ by at most one; each worker's list starts at its own offset, since step s takes entries
    ``s * num_replicas_per_worker + ...`` of each.

    Source: TensorFlow's rebatching under ``AutoShardPolicy.OFF`` and ``FILE``.

    >>> batch_sizes_for_worker(7, 2, 1, 0), batch_sizes_for_worker(7, 2, 1, 1)
    ([4, 3], [3, 4])
    """
    chunks = num_workers * num_replicas_per_worker
    small, larger = divmod(global_batch_size, chunks)
    sizes = [small + 1] * larger + [small] * (chunks - larger)
    offset = worker_index * num_replicas_per_worker
    return sizes[offset:] + sizes[:offset]


def step_indices(seed: int, epoch: int, step: int, num_samples: int, batch_size: int) -> Array:
    """Return the samples of the global batch of one step, in order: int64, shape ``[b]``.

    A loop over an epoch does better to call ``epoch_permutation`` once and to slice it by ``batch_bounds``.

    Raises: IndexError if the epoch has no such step.
    """
    start, stop = batch_bounds(num_samples, batch_size, step)
    return epoch_permutation(seed, epoch, num_samples)[start:stop]


def rebatch_for_replicas(batch: Any, num_replicas: int) -> list[Any]:
    """Return the part of a global batch that each replica gets, as views, by ``replica_chunk``.

    ``batch`` is a nested structure of arrays alike in their first dimension, or of things with such a shape
    that can be sliced. A replica without rows gets zero-row arrays of the same rank.

    Raises: ValueError if an array has no first dimension (the dataset was not batched), or if they differ.
    """
    length = batch_length(batch)
    chunks = [replica_chunk(length, num_replicas, replica) for replica in range(num_replicas)]
    return [nest.map_structure(lambda leaf, rows=chunk: leaf[rows], batch) for chunk in chunks]


def batch_length(batch: Any) -> int:
    """Return the number of rows of a nested structure of arrays.

    Raises: ValueError if an array has no first dimension, if they differ, or if there is none.
    """
    length: int | None = None
    for leaf in nest.flatten(batch):
        if not leaf.shape:
            raise ValueError("a batch holds a scalar: batch the dataset, with the global batch size, first")
        if length is None:
            length = leaf.shape[0]
        elif length != leaf.shape[0]:
            shapes = [leaf.shape for leaf in nest.flatten(batch)]
            raise ValueError(f"the arrays of a batch differ in their number of rows: {shapes}")
    if length is None:
        raise ValueError("a batch holds no array")
    return length


def stratified_split(labels: Array, fraction: float, seed: int) -> tuple[Array, Array]:
    """Return ``(rest, part)``: sorted positions, with each class's share of ``part`` as near ``fraction`` as can be.

    ``part`` holds ``round(fraction * n)`` samples. Class c, of n_c samples, gives ``floor(fraction * n_c)`` of them,
    and one more where what is lost to rounding down is among the largest (the smaller label first where it is equal).
    Which samples of a class are chosen is a permutation of (seed, class).

    Shapes: ``labels`` ``[n]``, of any type that can be sorted; both results are int64.
    Raises: ValueError if ``fraction`` is not within ``[0, 1]``, or ``labels`` have another rank.

    >>> rest, part = stratified_split(np.array([0, 0, 0, 0, 1, 1]), 0.5, seed=0)
    >>> len(rest), len(part)
    (3, 3)
    """
    if not 0.0 <= fraction <= 1.0:
        raise ValueError(f"fraction must be within [0, 1], not {fraction}")
    if labels.ndim != 1:
        raise ValueError(f"labels must have shape [n], not {labels.shape}")
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    shares = [fraction * len(positions) for positions in members]
    counts = [int(share) for share in shares]
    by_loss = sorted(range(len(members)), key=lambda c: counts[c] - shares[c])
    for c in by_loss[: round(fraction * len(labels)) - sum(counts)]:
        counts[c] += 1
    chosen = np.zeros(len(labels), bool)
    for c, positions in enumerate(members):
        order = permutation(stream(Domain.SPLIT, seed, c), len(positions))
        chosen[positions[order[: counts[c]]]] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)
