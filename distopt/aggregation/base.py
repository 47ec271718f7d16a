"""What all aggregators are: a name, what they take, and a function over one replica's pairs."""

from __future__ import annotations

import abc
import copy
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Self

from distopt import replica_context
from distopt.aggregation.compression import Compression
from distopt.aggregation.memory import Memory

if TYPE_CHECKING:
    from distopt.aggregation.power_sgd import PowerSGD


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

    by_samples: ClassVar[bool] = False
    """Whether contributions are weighted by the number of samples that each replica has noted."""
    compression: Compression | None = None
    """How each replica's contribution is compressed, if it is; see :meth:`compressed`."""
    memory: Memory | None = None
    """What is remembered from one step to the next, if anything is."""

    @property
    def contributes(self) -> bool:
        """Whether what a replica contributes is not its gradient as it is."""
        return self.by_samples or self.compression is not None

    @property
    def full_name(self) -> str:
        """What errors and receipts call it: ``"sum"``, ``"sum of top_k"``."""
        return self.name if self.compression is None else f"{self.name} of {self.compression.name}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    @property
    def settings(self) -> str:
        """What all processes must have alike: the class, its options, and how contributions are compressed."""
        return repr(self) if self.compression is None else f"{self!r}.compressed({self.compression!r})"

    def compressed(self, compression: Compression | PowerSGD) -> GradientAggregator:
        """Return an aggregator that combines contributions each of which its replica has compressed.

        See :mod:`distopt.aggregation.compression` for the rule; what is left over is remembered by replica.

        Raises: ValueError if this aggregator's contributions are compressed already; TypeError for another thing.

        >>> from distopt.aggregation import Sum, TopK
        >>> Sum().compressed(TopK(0.01)).full_name
        'sum of top_k'
        """
        if self.compression is not None:
            raise ValueError(f"the contributions to the {self.full_name} are compressed already")
        if not callable(getattr(compression, "applied_to", None)) or isinstance(compression, type):
            raise TypeError(f"contributions are compressed by a compression such as TopK(0.01), not by {compression!r}")
        compressed: GradientAggregator = compression.applied_to(self)
        return compressed

    def with_compression(self, compression: Compression) -> Self:
        """Return this aggregator with ``compression`` before it, and nothing left over yet."""
        twin = copy.copy(self)
        twin.compression = compression
        twin.memory = Memory()
        return twin

    def check_replicas(self, num_replicas: int) -> None:  # noqa: B027 - most take any number
        """Refuse a number of replicas that this aggregator cannot combine.

        Raises: ValueError.
        """

    def __call__(self, grads_and_vars: Iterable[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
        """Aggregate one replica's pairs over all replicas; called in a replica context."""
        return self.over_replicas(grads_and_vars, may_sum_rows=False)

    def over_replicas(self, grads_and_vars: Iterable[tuple[Any, Any]], *, may_sum_rows: bool) -> list[tuple[Any, Any]]:
        """Do what calling it does; ``may_sum_rows``: rows are summed before they are divided, as owners do it."""
        pairs = list(grads_and_vars)
        context = replica_context.current_replica(f"the aggregator {self.name!r}")
        gradients, variables = [gradient for gradient, _ in pairs], [variable for _, variable in pairs]
        combined = context.merge_call(_combine_across_replicas, (self, gradients, variables, may_sum_rows))
        return list(zip(combined, variables, strict=True))


def _combine_across_replicas(strategy: Any, aggregator: Any, gradients: Any, variables: Any, may_sum_rows: Any) -> Any:
    return strategy.extended.combine(aggregator, gradients, variables, may_sum_rows)


def checked_aggregator(aggregator: Any) -> Any:
    """Return what an optimizer was given as ``gradient_aggregator``.

    Raises: TypeError for what is neither an aggregator nor a function over one replica's pairs.
    """
    is_class = isinstance(aggregator, type) and issubclass(aggregator, GradientAggregator)
    if callable(aggregator) and not is_class:
        return aggregator
    given = f"the class {aggregator.__name__}" if is_class else repr(aggregator)
    raise TypeError(
        "gradient_aggregator must be an aggregator, as distopt.aggregation.Median() or Sum().compressed(TopK()), or "
        f"a function over one replica's pairs, but is {given}"
    )
