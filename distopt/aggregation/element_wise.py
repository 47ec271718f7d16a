"""Aggregators that combine each element by itself, so that every owner can run them on its own span.

An aggregator is also what TensorFlow calls a ``gradient_aggregator``: a function from one replica's
``[(gradient, variable)]`` to the aggregated ones, which calls the replica context. A strategy that knows better
(a parameter server, a fused path) takes :meth:`Aggregator.combine` and runs it where the gradients are.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable
from typing import Any, ClassVar

from distopt import replica_context
from distopt.canonical_sum import add_rows
from distopt.types import Array


class Aggregator(abc.ABC):
    """Combine the contributions of all replicas, element by element.

    A subclass gives :meth:`combine`; ``sums`` says that its result is a function of the canonical sum alone
    (see :meth:`finish`), so that workers may add what they host before anything is sent.
    """

    name: ClassVar[str]
    sums: ClassVar[bool] = False

    @abc.abstractmethod
    def combine(self, contributions: Array) -> Array:
        """Return ``[n]`` from ``contributions`` of shape ``[replicas, n]``, in their dtype; inputs are not written."""

    def finish(self, total: Array, num_replicas: int) -> Array:
        """Return the result from the canonical sum ``total`` of shape ``[n]``; only called where ``sums`` is true."""
        raise NotImplementedError

    def __call__(self, grads_and_vars: Iterable[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
        """Aggregate one replica's pairs over all replicas; called in a replica context."""
        pairs = list(grads_and_vars)
        context = replica_context.current_replica(f"the aggregator {self.name!r}")
        gradients = context.merge_call(_combine_across_replicas, (self, [gradient for gradient, _ in pairs]))
        return [(gradient, variable) for gradient, (_, variable) in zip(gradients, pairs, strict=True)]


def _combine_across_replicas(strategy: Any, aggregator: Any, gradients: Any) -> Any:
    return strategy.extended.combine(aggregator, gradients)


class Sum(Aggregator):
    """The canonical sum over replicas; the default."""

    name = "sum"
    sums = True

    def combine(self, contributions: Array) -> Array:
        return add_rows(contributions)

    def finish(self, total: Array, num_replicas: int) -> Array:  # noqa: ARG002
        return total


class Mean(Aggregator):
    """The canonical sum divided by the number of replicas.

    With ``compute_average_loss``, which already divides by the global batch, this divides twice.
    """

    name = "mean"
    sums = True

    def combine(self, contributions: Array) -> Array:
        return self.finish(add_rows(contributions), len(contributions))

    def finish(self, total: Array, num_replicas: int) -> Array:
        mean: Array = total / total.dtype.type(num_replicas)
        return mean
