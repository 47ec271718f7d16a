"""Owning everything, alone: what one replica without a strategy does after ``merge_call``.

The strategies of ``distopt.distribute`` call the same pieces, with a reduction before them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from distopt.aggregation import Aggregator
from distopt.clipping import values_of, with_values
from distopt.indexed_slices import IndexedSlices
from distopt.optimizers.pipeline import GradientPath, Pair, Pairs


class LocalOwners:
    """Stands in for ``strategy.extended`` where there is no strategy."""

    owners_re_enact_replicas = False

    def apply_at_owners(self, path: GradientPath, pairs: Pairs) -> None:
        """Run the rest of the gradients' path: aggregate, clip, update, count the step."""
        optimizer = path.optimizer
        hypers = optimizer.step_hypers()
        if not fits_flat_arrays(pairs):
            optimizer.finish_pairs(optimizer.clip(aggregate_alone(path.aggregator, pairs)), hypers)
            optimizer.advance()
            return
        layout = optimizer.layout([variable for _, variable in pairs])
        flat = layout.pack([gradient for gradient, _ in pairs], layout.scratch)
        if not path.aggregator.sums:
            flat = [path.aggregator.combine(array[np.newaxis]) for array in flat]
        else:
            flat = [path.aggregator.finish(array, 1) for array in flat]
        optimizer.finish(layout, flat, hypers)

    def update_copies(self, path: GradientPath, pairs: Pairs) -> None:
        """Update variables with gradients that are finished, count the step."""
        path.optimizer.finish_pairs(pairs, path.optimizer.step_hypers())
        path.optimizer.advance()


def fits_flat_arrays(pairs: Pairs) -> bool:
    """Return whether all gradients are dense and no variable is listed twice."""
    variables = {id(variable) for gradient, variable in pairs if not isinstance(gradient, IndexedSlices)}
    return len(variables) == len(pairs)


def aggregate_alone(aggregator: Aggregator, pairs: Any) -> list[Pair]:
    """Return what an element-wise aggregator makes of the only replica's pairs; of slices it sees the rows."""
    aggregated = []
    for gradient, variable in pairs:
        values = values_of(gradient)
        total = aggregator.finish(values, 1) if aggregator.sums else aggregator.combine(values[np.newaxis])
        aggregated.append((with_values(gradient, total.reshape(values.shape)), variable))
    return aggregated


LOCAL_OWNERS = LocalOwners()


def extended_of(strategy: Any) -> Any:
    """Return what carries out an apply call: the strategy's ``extended``, or the one for no strategy."""
    return LOCAL_OWNERS if strategy is None else strategy.extended
