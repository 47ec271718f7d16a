"""What the loop of a server asks of those who make its updates; :mod:`distopt.distribute.served` has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias, runtime_checkable

from distopt.aggregation import Aggregator
from distopt.canonical_sum import Node, SumTree
from distopt.distribute.served import OwnerState
from distopt.distribute.served_rows import Contributed, RowUpdate
from distopt.types import Array


@runtime_checkable
class SpanOwner(Protocol):
    """Updates the spans of one server from the aggregate of all replicas."""

    aggregator: Aggregator

    @property
    def code_bytes(self) -> int | None:
        """The length of the code that is pushed of each replica; None where flat spans are pushed."""
        ...

    def decode(self, code: Array) -> tuple[Array, ...]:
        """Return the flat spans of one replica's contribution."""
        ...

    def partials(self, flat_spans: Sequence[Array], hypers: Mapping[str, float]) -> Array | None:
        """Begin an update; return the sums of squares that it needs, by block; None if no server waits for any."""
        ...

    def apply(self, step: int, flat_spans: Sequence[Array], hypers: Mapping[str, float], all_partials: Array) -> None:
        """Make one update. ``all_partials``: those of all servers, in the order of the blocks.

        ``flat_spans`` may be written to.
        """
        ...

    def check_rows(self, node: Node, contributed: Contributed) -> None:
        """Refuse rows that do not fit the variables: raise RemoteProtocolError."""
        ...

    def begin_rows(
        self, tree: SumTree, contributed: Mapping[Node, Contributed], hypers: Mapping[str, float]
    ) -> RowUpdate:
        """Return an update of which some contributions hold rows; it has not changed anything yet."""
        ...

    def variables(self) -> Sequence[Array]:
        """Return the flat arrays of the spans, which ``apply`` writes to in place."""
        ...

    def state(self) -> OwnerState:
        """Return everything that a checkpoint needs; read before the next ``apply``."""
        ...


@runtime_checkable
class ReplicaOwner(Protocol):
    """Updates all variables, on the only server, from each replica's own gradients: for hooks over whole gradients."""

    def check_rows(self, node: Node, contributed: Contributed) -> None:
        """As in :class:`SpanOwner`."""
        ...

    def apply_replicas(self, step: int, gradients: Mapping[int, Contributed], hypers: Mapping[str, float]) -> None:
        """Re-enact the replicas and make one update. ``gradients``: by replica, flat and read-only."""
        ...

    def variables(self) -> Sequence[Array]:
        """As in :class:`SpanOwner`."""
        ...

    def state(self) -> OwnerState:
        """As in :class:`SpanOwner`."""
        ...


Owner: TypeAlias = SpanOwner | ReplicaOwner
