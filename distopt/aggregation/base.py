"""What all aggregators are: a name, what they take, and a function over one replica's pairs."""

from __future__ import annotations

import abc
from collections.abc import Iterable
from typing import Any, ClassVar

from distopt import replica_context


class GradientAggregator(abc.ABC):
    """How the gradients of the replicas become one.

    Two kinds derive from it: :class:`~distopt.aggregation.Aggregator` combines each element by itself, wherever its
    owner is; :class:`~distopt.aggregation.WholeAggregator` needs the whole gradients of all replicas in one place.
    """

    name: ClassVar[str]
    sums: ClassVar[bool] = False
    """Whether the result is a function of the canonical sum alone."""
    of_means: ClassVar[bool] = False
    """Whether it is meant for gradients of each replica's own mean loss, as estimates of one and the same thing.

    The others add up shares: gradients of losses that were divided by the global batch.
    """
    averages: ClassVar[bool] = False
    """Whether the result of equal contributions is that contribution, so that it can average variables, too."""

    def check_replicas(self, num_replicas: int) -> None:  # noqa: B027 - most take any number
        """Refuse a number of replicas that this aggregator cannot combine.

        Raises: ValueError.
        """

    def __call__(self, grads_and_vars: Iterable[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
        """Aggregate one replica's pairs over all replicas; called in a replica context."""
        pairs = list(grads_and_vars)
        context = replica_context.current_replica(f"the aggregator {self.name!r}")
        gradients = context.merge_call(_combine_across_replicas, (self, [gradient for gradient, _ in pairs]))
        return [(gradient, variable) for gradient, (_, variable) in zip(gradients, pairs, strict=True)]


def _combine_across_replicas(strategy: Any, aggregator: Any, gradients: Any) -> Any:
    return strategy.extended.combine(aggregator, gradients)
