"""What a server does with a completed round: update the spans that it owns, or re-enact the replicas.

Both are handed contributions and never see where they came from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from distopt import threads
from distopt.aggregation import Aggregator, Sum
from distopt.arena import Span
from distopt.canonical_sum import Node, SumTree
from distopt.comm.communicator import Hosting
from distopt.distribute.coded_pushes import CodedSpans, pushes_codes
from distopt.distribute.every_process import EveryProcess
from distopt.distribute.mirrored import MirroredStrategy
from distopt.distribute.owners import absolute_spans, refuse_split
from distopt.distribute.served_rows import Contributed, RowUpdate, ServedRows
from distopt.distribute.values import PerReplica
from distopt.optimizers.pipeline import GradientPath, check_gradients
from distopt.types import Array


class OwnerState(NamedTuple):
    """What an owner keeps: ``arrays`` by ``names``, and anything else in ``extra``."""

    names: tuple[str, ...]
    arrays: Sequence[Array]
    extra: bytes = b""


class ServedSpans:
    """Stages 6 to 10 of the gradient's path on ``spans``, whose segments are numbered within ``layout``."""

    def __init__(self, optimizer: Any, layout: Any, spans: Sequence[Span], hosting: Hosting | None = None) -> None:
        chosen = optimizer.gradient_aggregator
        threads.share_processors_by_default()
        # A hook over whole gradients never gets here with spans: it runs on the replicas, or is re-enacted.
        self.aggregator: Aggregator = chosen if isinstance(chosen, Aggregator) else Sum()
        self._optimizer = optimizer
        self._spans = absolute_spans(layout, spans)
        self._segments = {segment.index: segment for segment in layout.segments}
        self._owner = optimizer.span_owner(layout, self._spans)
        self._rows = ServedRows(optimizer, layout, self._spans, self.aggregator)
        compression = self.aggregator.compression
        self._codes: CodedSpans | None = None
        if compression is not None and hosting is not None and pushes_codes(chosen, hosting, layout.variables):
            self._codes = CodedSpans(compression, layout.variables, self._rows.parts)

    @property
    def code_bytes(self) -> int | None:
        """The length of the code that is pushed of each replica; None where sums of numbers are pushed."""
        return None if self._codes is None else self._codes.num_bytes

    def decode(self, code: Array) -> tuple[Array, ...]:
        """Return the flat spans of one replica's contribution."""
        assert self._codes is not None, "no codes are pushed here"
        return tuple(self._rows.flat_spans(self._spans, self._codes.decode(code)))

    def partials(self, flat_spans: Sequence[Array], hypers: Mapping[str, float]) -> Array | None:
        """Begin an update, and return the sums of squares of these spans' blocks that it needs.

        None if it needs none, or there are no spans; spans of empty variables alone have no blocks, but are waited for.
        """
        self._optimizer.follow(hypers)
        partials: Array = self._owner.partials(flat_spans, hypers)
        return partials if self._spans and self._owner.exchanges else None

    def apply(self, step: int, flat_spans: Sequence[Array], hypers: Mapping[str, float], all_partials: Array) -> None:  # noqa: ARG002
        """Clip and update; ``all_partials`` has the sums of all servers, in the order of the blocks."""
        if self._spans:  # one that owns nothing has not been told the sums of squares either
            self._owner.apply(flat_spans, hypers, all_partials)
        self._optimizer.advance(hypers)

    def check_rows(self, node: Node, contributed: Contributed) -> None:
        """Refuse rows that do not fit the variables.

        Raises: RemoteProtocolError.
        """
        self._rows.take_apart(node, contributed)

    def begin_rows(
        self, tree: SumTree, contributed: Mapping[Node, Contributed], hypers: Mapping[str, float]
    ) -> RowUpdate:
        """Return an update of which some contributions hold rows."""
        self._optimizer.follow(hypers)
        return RowUpdate(self._rows, tree, contributed, hypers)

    def variables(self) -> list[Array]:
        """Return the live flat arrays of the spans."""
        return [self._segments[span.segment_index].buffer[span.start : span.stop] for span in self._spans]

    def state(self) -> OwnerState:
        """Return variables and slots of the spans, as :func:`load_named_arrays` takes them."""
        return owner_state(self._optimizer, self._segments, self._spans)


class ServedReplicas:
    """The whole path from stage 4, for hooks over whole gradients: R replica contexts re-enacted in this process."""

    def __init__(self, optimizer: Any, layout: Any, num_replicas: int) -> None:
        self._optimizer = optimizer
        self._layout = layout
        self._segments = {segment.index: segment for segment in layout.segments}
        self._rows = ServedRows(optimizer, layout, layout.spans, Sum())
        self._strategy = MirroredStrategy(num_replicas)
        extended = self._strategy.extended
        extended.owners = _OneValueForAll(extended.hosting, 0, None, extended.phases, extended.inspector)

    def apply_replicas(
        self,
        step: int,  # noqa: ARG002 - the optimizer counts by itself
        gradients: Mapping[int, Contributed],
        hypers: Mapping[str, float],
    ) -> None:
        """Run hooks, clips and rule as if the replicas were here, with their own gradients.

        Raises: PlacementError if a hook gives the replicas different gradients; what the hook raises.
        """
        variables = self._layout.variables
        pairs = PerReplica(
            [check_gradients(zip(self._gradients(r, gradients[r]), variables, strict=True)) for r in sorted(gradients)]
        )
        extended = self._strategy.extended
        extended.given_hypers = dict(hypers)
        try:
            self._strategy.run(self._optimizer.apply_gradients, (pairs,))
        finally:
            extended.given_hypers = None

    def check_rows(self, node: Node, contributed: Contributed) -> None:
        """As :meth:`ServedSpans.check_rows`."""
        self._rows.take_apart(node, contributed)

    def _gradients(self, replica: int, contributed: Contributed) -> list[Any]:
        """Return one replica's gradients, as arrays and IndexedSlices."""
        if not contributed.with_rows:
            return self._layout.unpack(contributed.buffers)  # type: ignore[no-any-return]  # a layout is Any here
        taken = self._rows.take_apart(Node(replica, replica + 1), contributed)
        return self._rows.gradients(taken.of_parts)

    def variables(self) -> list[Array]:
        """Return the live flat arrays of all runs."""
        return [run.view() for run in self._layout.runs]

    def state(self) -> OwnerState:
        """Return all variables and slots, and what the aggregator remembers of the replicas."""
        names, arrays, extra = owner_state(self._optimizer, self._segments, self._layout.spans)
        remembered = self._optimizer.aggregator_state()
        return OwnerState((*names, *remembered), [*arrays, *remembered.values()], extra)


class _OneValueForAll(EveryProcess):
    """Owners of a server that re-enacts replicas: there is one value for all of them."""

    placement = "server"

    def may_split(self, what: str) -> None:
        refuse_split(what, self.placement)


def served(
    optimizer: Any, layout: Any, spans: Sequence[Span], num_replicas: int, hosting: Hosting | None = None
) -> ServedSpans | ServedReplicas:
    """Return what a server runs for ``optimizer``: span by span where it can, else whole.

    ``hosting`` decides whether compressed contributions come as codes; without it they do not.
    """
    if GradientPath(optimizer, aggregate=True).runs_at_owners:
        return ServedSpans(optimizer, layout, spans, hosting)
    return ServedReplicas(optimizer, layout, num_replicas)


def owner_state(optimizer: Any, segments: Mapping[int, Any], spans: Sequence[Span]) -> OwnerState:
    """Return :func:`named_arrays` as an owner gives them to whoever asks."""
    found = named_arrays(optimizer, segments, spans)
    return OwnerState(tuple(found), tuple(found.values()))


def relative_division(layout: Any, num_servers: int) -> tuple[tuple[Span, ...], ...]:
    """Return what each server owns, about equally much, with segments numbered within ``layout``."""
    number = {segment.index: i for i, segment in enumerate(layout.segments)}
    return tuple(
        tuple(span._replace(segment_index=number[span.segment_index]) for span in spans)
        for spans in layout.divide(num_servers)
    )


def named_arrays(optimizer: Any, segments: Mapping[int, Any], spans: Sequence[Span]) -> dict[str, Array]:
    """Return flat views of the variables and slots in ``spans``: ``"0.variable"``, ``"0.momentum"``, ... by span.

    Slots with shapes of their own follow by variable: ``"0.3.r"`` belongs to the variable at place 3 of its segment.
    """
    found: dict[str, Array] = {}
    for i, span in enumerate(spans):
        segment = segments[span.segment_index]
        found[f"{i}.variable"] = segment.buffer[span.start : span.stop]
        for name, buffer in optimizer.slots.buffers(segment).items():
            found[f"{i}.{name}"] = buffer[span.start : span.stop]
        for place, (variable, offset) in enumerate(zip(segment.variables, segment.offsets, strict=True)):
            if span.start <= offset < span.stop:
                for name, array in optimizer.slots.apart(variable).items():
                    found[f"{i}.{place}.{name}"] = array.reshape(-1)
    return found


def load_named_arrays(optimizer: Any, layout: Any, spans: Sequence[Span], arrays: Mapping[str, Array]) -> None:
    """Write what a server's :func:`named_arrays` gave into the same places of this process's optimizer.

    Raises: ValueError if names, lengths or dtypes differ.
    """
    segments = {segment.index: segment for segment in layout.segments}
    mine = named_arrays(optimizer, segments, absolute_spans(layout, spans))
    if list(mine) != list(arrays):
        raise ValueError(f"a server holds {list(arrays)} where this process holds {list(mine)}")
    for name, target in mine.items():
        if target.shape != arrays[name].shape or target.dtype != arrays[name].dtype:
            raise ValueError(f"{name} is {arrays[name].dtype}{list(arrays[name].shape)} on the server")
        target[...] = arrays[name]
