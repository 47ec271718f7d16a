"""Layout: how the gradients of some variables lie in flat arrays, and where owners may cut them."""

from __future__ import annotations

import bisect
import functools
import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from distopt.arena import BLOCK, Run, Segment, Span, aligned_zeros, runs
from distopt.packing import Packing, Place
from distopt.tensor import Tensor
from distopt.types import Array
from distopt.variable import Variable, are_split


class Block(NamedTuple):
    """One norm block: ``start <= i < stop`` of a segment, without padding; ``variable`` is a position in the layout."""

    variable: int
    segment_index: int
    start: int
    stop: int


class Part(NamedTuple):
    """Where a gradient goes: the ``start`` of variable ``variable`` in the flat array of run ``run``."""

    variable: int
    run: int
    start: int
    stop: int
    shape: tuple[int, ...]


class Layout:
    """The flat form of the gradients of ``variables``: one array for each run, padding zero.

    ``variables`` keep the order in which they were given (global norms add up in that order); ``runs``, ``parts`` and
    ``blocks`` are in the order of segment and offset. Every variable must have a place in the arena.

    Raises: ValueError for a variable without a place, or listed twice.
    """

    def __init__(self, variables: Sequence[Variable], whole: Iterable[Variable] = ()) -> None:
        self.variables = tuple(variables)
        self._whole = frozenset(map(id, whole))
        self.runs: tuple[Run, ...] = runs(self.variables)
        position = {id(variable): i for i, variable in enumerate(self.variables)}
        parts: list[Part] = []
        blocks: list[Block] = []
        for index, run in enumerate(self.runs):
            for variable in run.variables:
                offset = variable.placement[1]
                size = variable.storage.size
                i = position[id(variable)]
                start = offset - run.start
                parts.append(Part(i, index, start, start + size, variable.storage.shape))
                blocks += [
                    Block(i, run.segment.index, begin, min(begin + BLOCK, offset + size))
                    for begin in range(offset, offset + size, BLOCK)
                ]
        self.parts = tuple(parts)
        self.blocks = tuple(blocks)
        self.kept: Any = None
        """What a placement keeps for its apply calls with these variables."""

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The segments that the variables lie in, in order."""
        return tuple({id(run.segment): run.segment for run in self.runs}.values())

    @functools.cached_property
    def num_bytes(self) -> int:
        """Of the gradients of all variables, without padding."""
        return sum(variable.storage.nbytes for variable in self.variables)

    @functools.cached_property
    def num_flat_bytes(self) -> int:
        """Of one flat array for each run, padding included."""
        return sum(run.size * run.segment.dtype.itemsize for run in self.runs)

    @property
    def spans(self) -> tuple[Span, ...]:
        """The runs as spans: what an owner of everything owns."""
        return tuple(run.span for run in self.runs)

    def has_split(self) -> bool:
        """Return whether a variable is split into copies."""
        return are_split(self.variables)

    def empty(self) -> list[Array]:
        """Return new flat arrays of zeros, one for each run."""
        return [aligned_zeros(run.size, run.segment.dtype) for run in self.runs]

    def pack(self, gradients: Sequence[Any], out: list[Array] | None = None) -> list[Array]:
        """Return the flat arrays that hold ``gradients``, which are dense and in the order of ``variables``.

        ``out``, if given, is what an earlier call returned: it is filled and returned instead of new arrays.

        Raises: ValueError for a gradient whose shape or dtype is not its variable's.
        """
        if len(gradients) != len(self.variables):
            raise ValueError(f"{len(self.variables)} variables need as many gradients, not {len(gradients)}")
        arrays = [given.numpy() if isinstance(given, Tensor) else np.asarray(given) for given in gradients]
        for array, variable in zip(arrays, self.variables, strict=True):
            if array.shape != variable.storage.shape or array.dtype != variable.storage.dtype:
                raise ValueError(
                    f"the gradient of variable {variable.name!r} is {array.dtype}{list(array.shape)}, "
                    f"the variable is {variable.storage.dtype}{list(variable.storage.shape)}"
                )
        return self.fill(arrays, self.empty() if out is None else out)

    def fill(self, arrays: Sequence[Array], flat: list[Array]) -> list[Array]:
        """Do what :meth:`pack` does with arrays of which the shapes and dtypes have been checked."""
        for packing, target in zip(self.packings, flat, strict=True):
            packing.write(arrays, target)
        return flat

    @functools.cached_property
    def packings(self) -> tuple[Packing, ...]:
        """How gradients, in the order of ``variables``, go into the flat array of each run."""
        places_of: list[list[Place]] = [[] for _ in self.runs]
        for variable, run, start, stop, shape in self.parts:
            places_of[run].append(Place(variable, start, stop, shape))
        return tuple(Packing(places, run.segment.dtype) for places, run in zip(places_of, self.runs, strict=True))

    def unpack(self, flat: Sequence[Array]) -> list[Array]:
        """Return the gradients as views of ``flat``, in the order of ``variables``."""
        found: list[Array | None] = [None] * len(self.variables)
        for variable, run, start, stop, shape in self.parts:
            found[variable] = flat[run][start:stop].reshape(shape)
        return [array for array in found if array is not None]

    def take(self, flat: Sequence[Array], spans: Sequence[Span]) -> list[Array]:
        """Return the views of ``flat`` that ``spans`` cover, one for each.

        Raises: ValueError for a span that lies in no run.
        """
        taken = []
        for span in spans:
            index = self.run_of(span)
            begin = self.runs[index].start
            taken.append(flat[index][span.start - begin : span.stop - begin])
        return taken

    def run_of(self, span: Span) -> int:
        """Return the position of the run that holds ``span``.

        Raises: ValueError if none does.
        """
        for index, run in enumerate(self.runs):
            if run.segment.index == span.segment_index and run.start <= span.start <= span.stop <= run.stop:
                return index
        raise ValueError(f"{Span(*span)} lies in no run of this layout; its runs are {', '.join(map(str, self.spans))}")

    def segment_of(self, span: Span) -> Segment:
        """Return the segment that holds ``span``.

        Raises: ValueError if no run does.
        """
        return self.runs[self.run_of(span)].segment

    def blocks_in(self, spans: Iterable[Span]) -> tuple[int, ...]:
        """Return the positions in ``blocks`` of those that begin in one of ``spans``, span after span."""
        return tuple(
            index
            for span in spans
            for index in range(
                bisect.bisect_left(self.blocks, (span.segment_index, span.start), key=_begin_of),
                bisect.bisect_left(self.blocks, (span.segment_index, span.stop), key=_begin_of),
            )
        )

    def cut_points(self, *, anywhere: bool = False) -> tuple[tuple[int, ...], ...]:
        """Return for each run where it may be cut, from its start to its stop, both included, in segment elements.

        A variable may be cut at its first element and at every ``BLOCK`` after it; one whose constraint or rule needs
        the whole variable, only at its first element. ``anywhere``: for those who do not update, the latter as others.
        """
        points: list[tuple[int, ...]] = []
        for run in self.runs:
            starts: list[int] = []
            for variable in run.variables:
                offset, size = variable.placement[1], variable.storage.size
                uncut = not anywhere and (variable.constraint is not None or id(variable) in self._whole)
                starts += [offset] if uncut else range(offset, offset + max(size, 1), BLOCK)
            points.append((*starts, run.stop))
        return tuple(points)

    def divide(self, owners: int, *, anywhere: bool = False) -> tuple[tuple[Span, ...], ...]:
        """Return the spans of each of ``owners`` owners: in order, about equally many bytes each, legally cut.

        Owners beyond the number of pieces get none. ``anywhere``: as :meth:`cut_points` takes it.
        """
        points = self.cut_points(anywhere=anywhere)
        total = self.num_flat_bytes
        owned: list[list[Span]] = [[] for _ in range(owners)]
        before = 0
        for run, cuts in zip(self.runs, points, strict=True):
            itemsize = run.segment.dtype.itemsize
            ends = np.array(cuts, np.int64)
            # The middle of a piece decides: in the i-th of equal parts of all bytes, it belongs to owner i.
            middles = before + ((ends[:-1] + ends[1:]) / 2 - run.start) * itemsize
            owner_of = np.minimum((middles * owners / total).astype(np.int64), owners - 1)
            firsts = [0, *(np.flatnonzero(np.diff(owner_of)) + 1).tolist(), len(owner_of)]
            for first, end in itertools.pairwise(firsts):
                owned[owner_of[first]].append(Span(run.segment.index, cuts[first], cuts[end]))
            before += run.size * itemsize
        return tuple(tuple(spans) for spans in owned)

    def num_bytes_of(self, span: Span) -> int:
        """Return the bytes of a span, padding included."""
        return (span.stop - span.start) * self.segment_of(span).dtype.itemsize

    def chunks(self, spans: Sequence[Span], num_bytes: int, *, anywhere: bool = False) -> tuple[Span, ...]:
        """Return ``spans`` legally cut into chunks of about ``num_bytes`` each, in order.

        ``anywhere``: as :meth:`cut_points` takes it.
        """
        points = self.cut_points(anywhere=anywhere)
        found: list[Span] = []
        for span in spans:
            run = self.run_of(span)
            size = max(1, num_bytes // self.runs[run].segment.dtype.itemsize)
            start, cuts = span.start, points[run]
            while start < span.stop:
                at = bisect.bisect_left(cuts, start + size)
                cut = min(cuts[at], span.stop) if at < len(cuts) else span.stop
                found.append(span._replace(start=start, stop=cut))
                start = cut
        return tuple(found)

    def check_spans(self, spans: Sequence[Span]) -> None:
        """Check that every span lies in a run and begins and ends at a legal cut.

        Raises: ValueError if one does not.
        """
        points = self.cut_points()
        for span in spans:
            cuts = points[self.run_of(span)]
            for end in (span.start, span.stop):
                at = bisect.bisect_left(cuts, end)
                if at == len(cuts) or cuts[at] != end:
                    raise ValueError(f"{Span(*span)} cuts a variable where it may not be cut, at {end}")


def _begin_of(block: Block) -> tuple[int, int]:
    return block.segment_index, block.start
