"""Who combines gradients and updates variables: every process alike, or servers.

A strategy hands both kinds the same thing, the hosted replicas' pairs of one apply call, and gets back updated
variables. This is where the wire cuts the gradient's path; nothing above knows where the cut is.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np

from distopt.aggregation import Aggregator
from distopt.arena import Span
from distopt.canonical_sum import add_nodes
from distopt.comm import combining
from distopt.comm.communicator import Communicator, Contribution, Hosting
from distopt.errors import PlacementError
from distopt.indexed_slices import IndexedSlices
from distopt.optimizers.local_owners import fits_flat_arrays
from distopt.types import Array


@dataclass
class Phases:
    """Seconds of this process spent in each phase since the last :meth:`take`."""

    gradient: float = 0.0
    combine: float = 0.0
    send: float = 0.0
    wait: float = 0.0
    apply: float = 0.0

    def take(self) -> dict[str, float]:
        """Return the seconds by phase and start again from zero."""
        taken = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in taken:
            setattr(self, name, 0.0)
        return taken


class Owners(Protocol):
    """What a strategy asks of whoever owns the spans."""

    placement: str
    re_enact_replicas: bool
    """Whether a hook over whole gradients runs at the owner, which re-enacts all replica contexts."""

    def apply(self, path: Any, pairs_of: Sequence[Any], hypers: dict[str, float]) -> None:
        """Aggregate, clip and apply; ``pairs_of`` holds one ``Pairs`` for each hosted replica, ``hypers`` those of the step."""
        ...

    def may_split(self, what: str) -> None:
        """Raise PlacementError where variables cannot hold one copy a replica."""
        ...


class EveryProcess:
    """Placement ``replica``: gradients are all-reduced, then every process makes the same update."""

    placement = "replica"
    re_enact_replicas = False

    def __init__(self, hosting: Hosting, rank: int, communicator: Communicator | None, phases: Phases) -> None:
        self._hosting = hosting
        self._rank = rank
        self._communicator = communicator
        self._phases = phases

    def apply(self, path: Any, pairs_of: Sequence[Any], hypers: dict[str, float]) -> None:
        """See :class:`Owners`."""
        optimizer = path.optimizer
        started = time.perf_counter()
        variables = same_variables(pairs_of)
        if not all(map(fits_flat_arrays, pairs_of)):
            pairs = self._combine_with_rows(path.aggregator, variables, pairs_of)
            combined = time.perf_counter()
            optimizer.finish_pairs(optimizer.clip(pairs), hypers)
            optimizer.advance()
        else:
            layout = optimizer.layout(variables)
            flat_of = [layout.pack([gradient for gradient, _ in pairs]) for pairs in pairs_of]
            total = self.combine(path.aggregator, flat_of)
            combined = time.perf_counter()
            optimizer.finish(layout, total, hypers)
        self._phases.combine += combined - started
        self._phases.apply += time.perf_counter() - combined

    def combine(self, aggregator: Aggregator, flat_of: Sequence[Sequence[Array]]) -> list[Array]:
        """Return the aggregate over all replicas of each flat array; ``flat_of`` has those of each hosted replica."""
        parts = contributions(self._hosting, self._rank, flat_of, summed=aggregator.sums)
        if self._communicator is None:
            sums = {part.node: part.arrays for part in parts}
            return combining.aggregate(sums, self._hosting, aggregator, like=flat_of[0])
        traffic = self._communicator.traffic
        waited, sent = traffic.wait_s, traffic.send_s
        total = self._communicator.combine(parts, self._hosting, aggregator, like=flat_of[0])
        waited, sent = traffic.wait_s - waited, traffic.send_s - sent
        self._phases.wait += waited
        self._phases.send += sent
        self._phases.combine -= waited + sent
        return total

    def may_split(self, what: str) -> None:
        """See :class:`Owners`; every process has its own variables, so nothing is refused."""

    def _combine_with_rows(
        self, aggregator: Aggregator, variables: Sequence[Any], pairs_of: Sequence[Any]
    ) -> list[tuple[Any, Any]]:
        """Return aggregated pairs where some gradients are row-sparse: rows in replica order, duplicates kept."""
        pairs = []
        for i, variable in enumerate(variables):
            column = [pairs[i][0] for pairs in pairs_of]
            sparse = [isinstance(gradient, IndexedSlices) for gradient in column]
            if all(sparse) and aggregator.sums:
                pairs.append((self._gather_rows(aggregator, column), variable))
                continue
            dense = [densified(gradient, variable) for gradient in column]
            (total,) = self.combine(aggregator, [[np.ascontiguousarray(array).reshape(-1)] for array in dense])
            pairs.append((total.reshape(dense[0].shape), variable))
        return pairs

    def _gather_rows(self, aggregator: Aggregator, column: Sequence[Any]) -> IndexedSlices:
        values = [np.ascontiguousarray(slices.values) for slices in column]
        indices = [np.asarray(slices.indices, np.int64) for slices in column]
        if self._communicator is not None:
            width = values[0].shape[1:]
            hosted = len(self._hosting.leaves[self._rank])
            own_values = b"".join(array.tobytes() for array in values[:hosted])
            own_indices = b"".join(array.tobytes() for array in indices[:hosted])
            gathered_values = b"".join(self._communicator.all_gather_bytes(own_values))
            gathered_indices = b"".join(self._communicator.all_gather_bytes(own_indices))
            values = [np.frombuffer(gathered_values, values[0].dtype).reshape(-1, *width)]
            indices = [np.frombuffer(gathered_indices, np.int64)]
        rows = np.concatenate(values)
        return IndexedSlices(
            aggregator.finish(rows, self._hosting.num_replicas), np.concatenate(indices), column[0].dense_shape
        )


class Servers:
    """Placement ``server``: contributions are pushed to the owners of their spans, updated variables come back."""

    placement = "server"

    def __init__(self, hosting: Hosting, rank: int, communicator: Any, phases: Phases) -> None:
        self._hosting = hosting
        self._rank = rank
        self._communicator = communicator
        self._phases = phases
        self.re_enact_replicas = communicator.num_servers == 1

    def apply(self, path: Any, pairs_of: Sequence[Any], hypers: dict[str, float]) -> None:
        """See :class:`Owners`.

        Raises: PlacementError for a hook over whole gradients where several servers own parts of them, and for
        row-sparse gradients.
        """
        if not path.runs_at_owners and not self.re_enact_replicas:
            raise PlacementError(whole_gradient_refusal(path.whole_gradient_hooks(), self._communicator.num_servers))
        optimizer = path.optimizer
        started = time.perf_counter()
        variables = same_variables(pairs_of)
        if any(isinstance(gradient, IndexedSlices) for pairs in pairs_of for gradient, _ in pairs):
            raise PlacementError(
                "row-sparse gradients cannot be pushed to a parameter server yet; use placement 'replica', or make the "
                "gradient dense"
            )
        for variable in variables:
            variable.check_writable()
        layout = optimizer.layout(variables)
        flat_of = [layout.pack([gradient for gradient, _ in pairs]) for pairs in pairs_of]
        summed = path.runs_at_owners and path.aggregator.sums
        parts = contributions(self._hosting, self._rank, flat_of, summed=summed)
        own_hypers = hypers if 0 in self._hosting.hosted[self._rank] else None
        into = list(zip(relative_spans(layout), (run.view() for run in layout.runs), strict=True))
        traffic = self._communicator.traffic
        waited, sent = traffic.wait_s, traffic.send_s
        packed = time.perf_counter()
        self._communicator.update(parts, self._hosting, own_hypers, into)
        self._phases.combine += packed - started
        self._phases.wait += traffic.wait_s - waited
        self._phases.send += traffic.send_s - sent
        optimizer.advance()

    def may_split(self, what: str) -> None:
        """Refuse: the servers hold one value for all replicas."""
        refuse_split(what)


def refuse_split(what: str) -> None:
    """Refuse to give each replica a value of its own where servers hold one for all.

    Raises: PlacementError.
    """
    raise PlacementError(
        f"{what} would give each replica a value of its own, but with placement 'server' the servers hold one for all; "
        "use placement 'replica', or aggregate the value"
    )


def whole_gradient_refusal(hooks: Sequence[str], num_servers: int) -> str:
    """Return why hooks over whole gradients cannot run on several servers, naming them."""
    return (
        f"{' and '.join(hooks)} needs whole gradients, but with placement 'server' each of {num_servers} servers has "
        "only parts of them; use 1 server, placement 'replica', or an element-wise distopt.aggregation.Aggregator"
    )


def densified(gradient: Any, variable: Any) -> Array:
    """Return a gradient as an array of its variable's shape, duplicates of row-sparse ones added left to right."""
    if not isinstance(gradient, IndexedSlices):
        return np.asarray(gradient)
    return IndexedSlices(gradient.values, gradient.indices, variable.shape).to_dense()


def same_variables(pairs_of: Sequence[Any]) -> tuple[Any, ...]:
    """Return the variables that every hosted replica has gradients for.

    Raises: ValueError if the replicas' lists differ.
    """
    first = tuple(variable for _, variable in pairs_of[0])
    for index, pairs in enumerate(pairs_of[1:], start=1):
        others = tuple(variable for _, variable in pairs)
        if len(others) != len(first) or any(a is not b for a, b in zip(first, others, strict=True)):
            raise ValueError(
                "the replicas apply gradients to different variables: the first one to "
                f"{[v.name for v in first]}, the one at position {index} to {[v.name for v in others]}"
            )
    return first


def contributions(
    hosting: Hosting, rank: int, flat_of: Sequence[Sequence[Array]], *, summed: bool
) -> list[Contribution]:
    """Return what ``rank`` contributes: its subtree sums, or one entry a replica where ``summed`` is false.

    ``flat_of`` has the flat arrays of each hosted replica, or of one stand-in where none is hosted.
    """
    leaves = hosting.leaves[rank]
    if not leaves:
        return []
    if not summed:
        return [Contribution(leaf, tuple(flat)) for leaf, flat in zip(leaves, flat_of, strict=True)]
    columns = [dict(zip(leaves, column, strict=True)) for column in zip(*flat_of, strict=True)]
    return [
        Contribution(node, tuple(add_nodes(hosting.tree, column, node) for column in columns))
        for node in hosting.covers[rank]
    ]


def relative_spans(layout: Any) -> list[Span]:
    """Return the layout's runs as spans whose segments are numbered within the layout, as processes tell each other."""
    number = {segment.index: i for i, segment in enumerate(layout.segments)}
    return [span._replace(segment_index=number[span.segment_index]) for span in layout.spans]
