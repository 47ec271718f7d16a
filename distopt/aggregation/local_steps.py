"""Local steps: replicas go on by themselves, and average their variables every now and then."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from distopt.aggregation.base import GradientAggregator
from distopt.aggregation.options import whole_number


class LocalSteps(GradientAggregator):
    """Apply each replica's own gradients to its own copies; combine the copies by ``average`` every ``every`` steps.

        w_r  = update(w_r, g_r)             in every step, on every replica; slots stay with their replica
        w_r  = average of w_1, ..., w_R     after steps every, 2 every, ...

    Clips and transformers see each replica's gradient. Nothing crosses the boundary of a process in the steps between.
    Each replica needs memory for its variables and slots, so placements that hold one value for all refuse this.
    Between two averages a checkpoint holds a copy for each replica; a job ends so, too, if its steps are no multiple of
    ``every``.

    Units: each replica makes full steps, so give it the mean loss of its own samples (a job does).
    Raises: ValueError for ``every`` below 1, and for an aggregator that does not average, or compresses.
    Source: Stich 2019, "Local SGD Converges Fast and Communicates Little", algorithm 1.

    >>> from distopt.aggregation import Mean
    >>> LocalSteps(Mean(), every=4).full_name
    'mean after 4 local steps'
    """

    of_means = True

    def __init__(self, average: GradientAggregator, every: int) -> None:
        if not isinstance(average, GradientAggregator):
            raise TypeError(f"local steps need an aggregator such as Mean(), not {average!r}")
        if average.memory is not None:
            raise ValueError(
                f"local steps average variables, and {average.full_name} compresses gradients; use one of the two"
            )
        if not average.averages:
            raise ValueError(
                f"local steps average the replicas' variables, and {average.name} is no average of them; use mean, "
                "median, trimmed_mean, krum, multi_krum or geometric_median"
            )
        self.name = average.name  # type: ignore[misc]  # it takes the other's place
        self.average = average
        self.every = whole_number("every", every, least=1)

    def __repr__(self) -> str:
        return f"LocalSteps({self.average!r}, every={self.every})"

    @property
    def full_name(self) -> str:
        """See :attr:`GradientAggregator.full_name`."""
        return f"{self.name} after {self.every} local steps"

    def check_replicas(self, num_replicas: int) -> None:
        """See :meth:`GradientAggregator.check_replicas`."""
        self.average.check_replicas(num_replicas)

    def compressed(self, compression: Any) -> GradientAggregator:
        """Refuse: what is averaged are variables.

        Raises: ValueError.
        """
        raise ValueError(
            f"local steps average variables, and {compression.name} compresses gradients; use one of the two"
        )

    def __call__(self, grads_and_vars: Iterable[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
        """Return the replica's own pairs."""
        return list(grads_and_vars)
