"""Who combines gradients and updates variables: what the kinds of owners share, and what a strategy asks of them.

A strategy hands all kinds the same thing, the hosted replicas' pairs of one apply call, and gets back updated
variables. This is where the wire cuts the gradient's path; nothing above knows where the cut is. The kinds:
:mod:`~distopt.distribute.every_process`, :mod:`~distopt.distribute.sharded`, :mod:`~distopt.distribute.servers`.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from distopt.agreement import Described, disagreement
from distopt.arena import Span
from distopt.canonical_sum import add_nodes
from distopt.comm.communicator import Communicator, Contribution, Hosting
from distopt.distribute.checks import Checks
from distopt.errors import PlacementError, UnaggregatedGradientsError, UnequalDtypesError, UnequalShapesError
from distopt.indexed_slices import IndexedSlices
from distopt.types import Array


@dataclass
class Phases:
    """Seconds of this process spent in each phase since the last :meth:`take`."""

    gradient: float = 0.0
    combine: float = 0.0
    send: float = 0.0
    wait: float = 0.0
    apply: float = 0.0

    def take(self) -> tuple[float, ...]:
        """Return the seconds of each of ``PHASES`` and start again from zero."""
        taken = (self.gradient, self.combine, self.send, self.wait, self.apply)
        self.gradient = self.combine = self.send = self.wait = self.apply = 0.0
        return taken


PHASES = tuple(field.name for field in dataclasses.fields(Phases))


class Owners(Protocol):
    """What a strategy asks of whoever owns the spans."""

    placement: str
    re_enact_replicas: bool
    """Whether a hook over whole gradients runs at the owner, which re-enacts all replica contexts."""

    def apply(self, path: Any, pairs_of: Sequence[Any], hypers: dict[str, float]) -> None:
        """Aggregate, clip and apply.

        ``pairs_of`` holds one ``Pairs`` for each hosted replica, ``hypers`` are those of the step.
        """
        ...

    def survives_loss(self, optimizer: Any) -> bool:
        """Return whether the processes that are left after a loss have all that the update of ``optimizer`` needs."""
        ...

    def settle(self, communicator: Communicator) -> bool | None:
        """End the update that was under way when a process was lost; a collective of ``communicator``, the survivors.

        Return whether the apply call that this process was in has been carried out; None where nobody can tell in what
        state variables and slots are.
        """
        ...

    def check(self, path: Any) -> None:
        """Raise PlacementError for an apply call that cannot be carried out here."""
        ...

    def may_split(self, what: str) -> None:
        """Raise PlacementError where variables cannot hold one copy a replica."""
        ...

    def gradient_arrays(self, optimizer: Any, variables: Sequence[Any]) -> list[Array] | None:
        """Return where gradients that are written there are not copied any more; None where there is no such place."""
        ...

    def gradient_rows(self, variable: Any, num_rows: int) -> Array | None:
        """Return where so many rows of a row-sparse gradient are not copied any more; None where there is no place."""
        ...


def refuse_split(what: str, placement: str) -> None:
    """Refuse to give each replica a value of its own where owners hold one for all.

    Raises: PlacementError.
    """
    raise PlacementError(
        f"{what} would give each replica a value of its own, but with placement {placement!r} "
        f"{_held('one', placement)}; use placement 'replica', or aggregate the value"
    )


def refuse_hooks(path: Any, placement: str, num_servers: int = 0, names: Sequence[str] = ()) -> None:
    """Refuse aggregators and hooks that owners of one value for all replicas, or of parts, cannot carry out.

    ``names``: what errors call the hooks over whole gradients; else they find names themselves.

    Raises: PlacementError.
    """
    if path.runs_at_owners:
        return
    if path.local_steps:
        refuse_split(path.local_steps.full_name, placement)
    aggregator, hooks = path.aggregator, " and ".join(path.whole_gradient_hooks())
    if placement == "server" and getattr(aggregator, "by_samples", False):
        raise PlacementError(
            f"{aggregator.full_name} weighs by the samples that workers note, but {hooks} would run on the server, "
            "which is not told them; use placement 'replica', or sum with a loss divided by the global batch"
        )
    if placement == "server" and num_servers == 1:
        return  # it holds everything, and re-enacts the replicas
    if placement == "server":
        owners, instead = f"each of {num_servers} servers has only parts", "1 server, placement 'replica'"
    else:
        owners, instead = "each process has only a part", "placement 'replica'"
    raise PlacementError(
        f"{' and '.join(names) or hooks} needs whole gradients, but with placement {placement!r} {owners} of them; use "
        f"{instead}, or an element-wise distopt.aggregation.Aggregator"
    )


def check_path(path: Any, checks: Checks, placement: str, num_servers: int = 0) -> None:
    """Refuse an apply call that owners of one value for all replicas, or of parts, cannot carry out.

    Raises: PlacementError.
    """
    if not path.aggregate:
        raise UnaggregatedGradientsError(
            "experimental_aggregate_gradients=False would update each replica's own copy, but with placement "
            f"{placement!r} {_held('one value', placement)}; use placement 'replica'"
        )
    refuse_hooks(path, placement, num_servers)
    if checks.non_finite == "skip":
        where = "both are made by the servers" if placement == "server" else "each process has only a part of it"
        raise PlacementError(
            f"non_finite='skip' needs the aggregate before the update, but with placement {placement!r} {where}; use "
            "non_finite='raise', or placement 'replica'"
        )


def _held(what: str, placement: str) -> str:
    return f"the servers hold {what} for all" if placement == "server" else f"the processes of a host share {what}"


class Scratch:
    """Flat arrays that are filled anew by every apply call with the same layout."""

    def __init__(self) -> None:
        self._of_layout: weakref.WeakKeyDictionary[Any, list[list[Array]]] = weakref.WeakKeyDictionary()

    def pack(self, layout: Any, pairs_of: Sequence[Any]) -> list[list[Array]]:
        """Return the flat gradients of each hosted replica; they hold until the next call."""
        flat_of = self._of_layout.get(layout)
        if flat_of is None:
            flat_of = self._of_layout[layout] = [layout.empty() for _ in pairs_of]
        for pairs, flat in zip(pairs_of, flat_of, strict=True):
            layout.fill(pairs.arrays, flat)
        return flat_of


def densified(gradient: Any) -> Array:
    """Return a gradient as an array, duplicates of row-sparse ones added left to right."""
    return gradient.to_dense() if isinstance(gradient, IndexedSlices) else np.asarray(gradient)


def zeros_like(gradient: Any) -> Array:
    """Return zeros of the shape and dtype that :func:`densified` would give."""
    return np.zeros(gradient.shape, gradient.dtype)


def any_rows(columns: Sequence[Sequence[Any]]) -> bool:
    return any(isinstance(gradient, IndexedSlices) for column in columns for gradient in column)


def num_bytes_of(gradient: Any) -> int:
    """Return the bytes that a gradient contributes to a reduction."""
    if isinstance(gradient, IndexedSlices):
        return gradient.values.numpy().nbytes + gradient.indices.nbytes
    return np.asarray(gradient).nbytes


def num_bytes_of_all(gradients: Iterable[Iterable[Any]]) -> int:
    """Return :func:`num_bytes_of` all gradients of all replicas, which may be in rows or in columns."""
    return sum(num_bytes_of(gradient) for some in gradients for gradient in some)


def shape_of(value: Any) -> tuple[int | None, ...]:
    """Return the shape of an array, or of what IndexedSlices are rows of: None for a number of rows that is not known.

    >>> shape_of(IndexedSlices(np.ones((2, 3)), [4, 4])), shape_of(IndexedSlices(np.ones((2, 3)), [4, 4], (9, 3)))
    ((None, 3), (9, 3))
    """
    if not isinstance(value, IndexedSlices):
        return tuple(value.shape)
    return (None if value.dense_shape is None else value.dense_shape[0], *value.values.shape[1:])


def addable(value: Any) -> Any:
    """Return ``value`` as an array, or as the IndexedSlices that it is.

    Raises: TypeError for None, and anything else that is no number; for booleans, whose sum NumPy takes for an or.

    >>> addable([1.0, 2.0])
    array([1., 2.])
    """
    found = value if isinstance(value, IndexedSlices) else np.asarray(value)
    if found.dtype.kind == "b":
        raise TypeError("booleans cannot be added over replicas; convert them to integers")
    if found.dtype.kind in "OUSMm":
        raise TypeError(f"{value} cannot be added over replicas; give zeros where a replica has nothing")
    return found


def check_alike(values: Sequence[Any]) -> None:
    """Refuse arrays and IndexedSlices that cannot be reduced with each other.

    Raises: UnequalShapesError or UnequalDtypesError that lists what the hosted replicas hold.
    """
    first = values[0]
    if any(shape_of(value) != shape_of(first) for value in values[1:]):
        held = ", ".join(str(list(shape_of(value))) for value in values)
        raise UnequalShapesError(f"the replicas reduce values of different shapes with each other: {held}")
    if any(value.dtype != first.dtype for value in values[1:]):
        held = ", ".join(str(value.dtype) for value in values)
        raise UnequalDtypesError(f"the replicas reduce values of different dtypes with each other: {held}")


def same_variables(pairs_of: Sequence[Any]) -> tuple[Any, ...]:
    """Return the variables that every hosted replica has gradients for.

    Raises: the MistakeError that says how the replicas' lists differ; see :mod:`distopt.agreement`.
    """
    first = pairs_of[0]
    for index, pairs in enumerate(pairs_of[1:], start=1):
        if pairs.key != first.key:
            raise disagreement(
                "the first replica of this process", described(first), f"the one at position {index}", described(pairs)
            )
    variables: tuple[Any, ...] = first.variables
    return variables


def described(pairs: Iterable[tuple[Any, Any]]) -> list[Described]:
    """Return what :func:`~distopt.agreement.disagreement` compares, variables being themselves."""
    return [Described(id(v), v.name, tuple(v.shape), str(v.dtype)) for _, v in pairs]


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


def absolute_spans(layout: Any, spans: Sequence[Span]) -> tuple[Span, ...]:
    """Return spans numbered within ``layout`` as spans of this process's segments."""
    segments = layout.segments
    return tuple(Span(segments[s.segment_index].index, s.start, s.stop) for s in (Span(*span) for span in spans))
