"""Aggregators that combine each element by itself, so that every owner can run them on its own span.

An aggregator is also what TensorFlow calls a ``gradient_aggregator``: a function from one replica's
``[(gradient, variable)]`` to the aggregated ones, which calls the replica context. A strategy that knows better
(a parameter server, a fused path) takes :meth:`Aggregator.combine` and runs it where the gradients are.
"""

from __future__ import annotations

import abc
from typing import Any

from distopt import replica_context
from distopt.aggregation.base import GradientAggregator
from distopt.canonical_sum import add_rows
from distopt.types import Array


class Aggregator(GradientAggregator):
    """Combine the contributions of all replicas, element by element.

    A subclass gives :meth:`combine`; ``sums`` says that its result is a function of the canonical sum alone
    (see :meth:`finish`), so that workers may add what they host before anything is sent.
    """

    @abc.abstractmethod
    def combine(self, contributions: Array) -> Array:
        """Return ``[n]`` from ``contributions`` of shape ``[replicas, n]``, in their dtype; inputs are not written."""

    def finish(self, total: Array, num_replicas: int) -> Array:
        """Return the result from the canonical sum ``total`` of shape ``[n]``; only called where ``sums`` is true."""
        raise NotImplementedError


class Sum(Aggregator):
    """The canonical sum over replicas; the default."""

    name = "sum"
    sums = True

    def combine(self, contributions: Array) -> Array:
        return add_rows(contributions)

    def finish(self, total: Array, num_replicas: int) -> Array:  # noqa: ARG002
        return total


class Mean(Aggregator):
    """The canonical sum divided by the number of replicas: every replica counts alike, however many samples it had.

    With ``compute_average_loss``, which already divides by the global batch, this divides twice.
    """

    name = "mean"
    sums = True
    of_means = True
    averages = True

    def combine(self, contributions: Array) -> Array:
        return self.finish(add_rows(contributions), len(contributions))

    def finish(self, total: Array, num_replicas: int) -> Array:
        mean: Array = total / total.dtype.type(num_replicas)
        return mean


class MeanBySamples(Sum):
    """The mean of the replicas' gradients, each weighted by how many samples it has: that of the whole batch.

        g = sum of n_r / N * g_r        N = sum of n_r

    Each replica takes the mean loss of its own samples and notes their number with :func:`note_samples` (a job does
    both); a replica without samples weighs nothing. A sum of losses divided by the global batch comes to the same up
    to rounding.

    Raises: ValueError where a replica has noted nothing, or no replica has samples.
    """

    name = "mean_by_samples"
    of_means = True
    by_samples = True


def note_samples(count: int) -> None:
    """Say how many samples the current replica's gradients are of, until it says otherwise.

    Raises: ValueError for a negative number; ReplicaContextError outside of a replica.
    """
    if count < 0:
        raise ValueError(f"a replica cannot have {count} samples")
    replica: Any = replica_context.current_replica("note_samples")
    replica.samples = int(count)
