"""Whoever owns spans updates them here; owning everything is the ordinary case.

The update of a span depends on nothing outside of it but norms: for clipping, or between the two passes of a rule.
Those are made of sums of squares, one a block (:mod:`distopt.norms`), and blocks are never cut: owners exchange their
sums, and each computes the same norms. So the bits do not depend on how the spans are divided.

Where sums are exchanged, an update has two halves: :meth:`SpanOwner.partials` checks and begins it, and
:meth:`SpanOwner.apply` ends it.

Gradients come as arrays, or as terms that are still to be added up. What happens to an element before the rule sees it
(:mod:`distopt.optimizers.terms`) then happens in the rule's own loop; with norms in a loop of its own, which stores the
gradient and adds up its squares.
"""

from __future__ import annotations

import bisect
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from distopt import clipping, norms
from distopt.arena import Span, contiguous
from distopt.optimizers.clips import Clips
from distopt.optimizers.engine import Call, Engine, get_engine, run_together
from distopt.optimizers.features import ACCUMULATOR, AVERAGE, ScalarSource, Step, Treatment, calls_of_mean
from distopt.optimizers.layout import Layout
from distopt.optimizers.piece import NO_COPIES, Copies, Part, Piece
from distopt.optimizers.rule import Kind
from distopt.optimizers.slots import SlotStore
from distopt.optimizers.terms import PLAIN, Gradient, Gradients, Terms, gradients_of
from distopt.tensor import Tensor
from distopt.types import Array
from distopt.variable import Variable, check_all_writable

_NOTHING: Array = np.empty(0)

READ_TWICE = 2
"""Terms up to which to add them up twice, for the norm and for the rule, moves less than to store their sum."""


class RuleUser(ScalarSource, Protocol):
    """What an owner needs of an optimizer."""

    slots: SlotStore
    clips: Clips

    def treatment(self, variable: Variable) -> Treatment:
        """Return how a variable is updated."""
        ...


class _Begun(NamedTuple):
    """The first half of an update: the numbers of the step, and the gradient of each piece, clipped by value."""

    step: Step
    gradients: Sequence[Gradient] | None
    """None if they were only accumulated."""


class _Group(NamedTuple):
    """Pieces that are updated together, and the spans that are up to date after that."""

    pieces: slice
    spans: range


class SpanOwner:
    """Updates ``spans`` of ``layout``; the slots of its variables must exist.

    ``blocks`` are the positions in ``layout.blocks`` that lie in the spans: what :meth:`partials` holds, in that order.

    Raises: ValueError for a span outside of the layout, or one that cuts a variable where it may not be cut.
    """

    def __init__(self, optimizer: RuleUser, layout: Layout, spans: Sequence[Span]) -> None:
        layout.check_spans(spans)
        self._optimizer = optimizer
        self._layout = layout
        self._spans = tuple(spans)
        self.blocks = layout.blocks_in(self._spans)
        self._block_range = _ranges([block.variable for block in layout.blocks])
        self._parts_of = [self._parts(span) for span in self._spans]
        self._variables = [layout.variables[part.variable] for parts in self._parts_of for part in parts]
        self._readers = [variable.readers for variable in self._variables]
        constrained = [[layout.variables[p.variable] for p in parts] for parts in self._parts_of]
        self._constrained = [[variable for variable in own if variable.constraint is not None] for own in constrained]
        """By span."""
        treatments = [optimizer.treatment(variable) for variable in layout.variables]
        self._exchanges_for_rules = any(treatment.rule.kind is Kind.AFTER_NORMS for treatment in treatments)
        self._begun: _Begun | None = None
        self._latest_terms: tuple[Terms, list[Gradient]] | None = None
        """Terms that were checked, and what was made of them: they are the same ones in most steps."""
        self._bind(get_engine())

    @property
    def exchanges(self) -> bool:
        """Whether owners exchange sums of squares."""
        return self._optimizer.clips.needs_norms or self._exchanges_for_rules

    @property
    def updates_by_span(self) -> bool:
        """Whether :meth:`apply_each` writes nothing outside of the span that is next, and nothing is written before."""
        return not self._exchanges_for_rules and self._optimizer.features.accumulation_steps == 1

    @property
    def num_sums(self) -> int:
        """How many sums of squares are exchanged for each block."""
        return 2 if self._exchanges_for_rules else 1

    def partials(self, gradients: Gradients, hypers: Mapping[str, float]) -> Array:
        """Return the sums of squares of ``blocks`` that the update needs, as float64; empty if it needs none.

        Concatenated over owners in the order of ``layout.blocks``, they are the ``all_partials`` of :meth:`apply`,
        which must follow with the same arguments, whose values have not changed meanwhile: accumulating and the first
        pass of a rule after norms are done here.
        ``gradients`` are the aggregated gradients of the spans, one flat array each, or :class:`Terms` of which they
        are the sum; they are not written to.

        Raises: ValueError or TapeError, before anything changes, as :meth:`apply`; ValueError for clips that need norms
        of their own beside those of a rule or of another clip.
        """
        clips = self._optimizer.clips
        if not self.exchanges:
            return _NOTHING
        if clips.chained:
            raise ValueError("clipnorm and global_clipnorm together need whole gradients; clip them before")
        if clips.needs_norms and self._exchanges_for_rules:
            raise ValueError("a clip by norm and a rule after norms need whole gradients; clip them before")
        step, found = self._begin(gradients, hypers)
        if found is None:
            self._begun = _Begun(step, None)
            return np.zeros(len(self.blocks) * self.num_sums)
        sums, kept = [], []
        for gradient, piece in zip(found, self._pieces, strict=True):
            if piece.treatment.rule.kind is Kind.AFTER_NORMS:
                sums += [part.reshape(-1) for part in piece.find_direction(piece.array_of(gradient), step)]
                kept.append(gradient)
            elif self._exchanges_for_rules:
                sums += [np.zeros(2 * norms.number_of_blocks(part.stop - part.start)) for part in piece.parts]
                kept.append(gradient)
            elif clips.norm is None and gradient.source.num_terms <= READ_TWICE:
                sums.append(piece.block_sums(gradient))
                kept.append(gradient)
            else:
                stored, of_blocks = piece.store(gradient)
                sums.append(of_blocks)
                kept.append(stored)
        self._begun = _Begun(step, kept)
        return np.concatenate(sums).astype(np.float64) if sums else _NOTHING

    def apply(
        self,
        gradients: Gradients,
        hypers: Mapping[str, float],
        all_partials: Array,
        add_totals: Callable[[Sequence[Any]], Any] = clipping.add_totals,
    ) -> None:
        """Accumulate, clip, run rules, average, apply constraints. Does not count: ``advance`` of the optimizer does.

        ``all_partials`` are the :meth:`partials` of all owners. ``gradients`` are not written to. ``add_totals``
        returns the sum of squares of all gradients of the apply call from those of the layout's variables.

        Raises: ValueError, before anything changes, if an array has not the length or dtype of its span; TapeError if a
        live tape has read one of the variables.
        """
        for _ in self._apply(gradients, hypers, all_partials, add_totals):
            pass

    def apply_each(
        self,
        gradients: Gradients,
        hypers: Mapping[str, float],
        all_partials: Array,
        add_totals: Callable[[Sequence[Any]], Any] = clipping.add_totals,
        copies_of: Callable[[int], Copies] | None = None,
    ) -> Iterator[int]:
        """Do what :meth:`apply` does, span after span; yield the position of each as soon as it has its new values.

        Nothing is yielded where gradients are only accumulated. ``copies_of`` returns what is to be copied while the
        span at a position is updated: in the same loop, where there is one for both.
        """
        return self._apply(gradients, hypers, all_partials, add_totals, by_span=True, copies_of=copies_of)

    def _apply(
        self,
        gradients: Gradients,
        hypers: Mapping[str, float],
        all_partials: Array,
        add_totals: Callable[[Sequence[Any]], Any],
        *,
        by_span: bool = False,
        copies_of: Callable[[int], Copies] | None = None,
    ) -> Iterator[int]:
        begun, self._begun = self._begun, None
        step, found = self._begin(gradients, hypers) if begun is None else begun
        if found is None:
            return
        if self._optimizer.clips.needs_norms:
            found = self._clipped_by_norms(found, all_partials, add_totals)
        for group in self._span_by_span if by_span else self._all_at_once:
            pairs = list(zip(self._pieces[group.pieces], found[group.pieces], strict=True))
            copies = NO_COPIES if copies_of is None else copies_of(group.spans.start)
            if self._is_one_pass:
                run_together(_calls(pairs, step, copies))
            else:
                copies.make()
                for piece, gradient in pairs:
                    if piece.treatment.rule.kind is Kind.AFTER_NORMS:
                        piece.move(self._sums_of(piece, all_partials), step)
                    else:
                        piece.update(gradient, step)
                    piece.take_average(step)
            for index in group.spans:
                for variable in self._constrained[index]:
                    apply_constraint(variable, variable.storage)
                yield index

    def _begin(self, gradients: Gradients, hypers: Mapping[str, float]) -> _Begun:
        """Check the gradients, divide them among the pieces, clip by value; accumulate, if that is asked for."""
        engine = get_engine()
        if engine is not self._engine:
            self._bind(engine)
        given = self._checked(gradients)
        check_all_writable(self._variables, self._readers)
        found = given if self._cuts is None else [given[i].part(start, stop) for i, start, stop in self._cuts]
        step = Step(self._optimizer, hypers)
        if self._optimizer.features.accumulation_steps > 1:
            last_of = calls_of_mean(hypers)
            for index, (gradient, piece) in enumerate(zip(found, self._pieces, strict=True)):
                found[index] = Gradient(PLAIN, (piece.accumulate(piece.array_of(gradient), last_of),))
            if last_of is None:
                return _Begun(step, None)
        limit = self._optimizer.clips.value
        return _Begun(step, found if limit is None else [gradient.clipped(limit) for gradient in found])

    def _checked(self, gradients: Gradients) -> list[Gradient]:
        """Return the gradient of each span.

        Raises: ValueError for an array that has not the length or dtype of its span.
        """
        if not isinstance(gradients, Terms):
            return [
                Gradient(PLAIN, (_checked(array, *like),)) for array, like in zip(gradients, self._likes, strict=True)
            ]
        latest = self._latest_terms
        if latest is not None and latest[0] is gradients:
            return list(latest[1])
        found = gradients_of(gradients)
        for gradient, like in zip(found, self._likes, strict=True):
            for term in gradient.terms:
                _check_term(term, *like)
        self._latest_terms = gradients, found
        return list(found)

    def _bind(self, engine: Engine) -> None:
        self._engine = engine
        optimizer, layout = self._optimizer, self._layout
        self._pieces: list[Piece] = []
        self._likes: list[tuple[int, np.dtype[Any]]] = []
        cuts = []
        is_cut = False
        for index, (span, parts) in enumerate(zip(self._spans, self._parts_of, strict=True)):
            segment = layout.segment_of(span)
            self._likes.append((span.stop - span.start, segment.dtype))
            buffers = {"": segment.buffer, **optimizer.slots.buffers(segment)}
            arrays = {name: array[span.start : span.stop] for name, array in buffers.items()}
            for start, stop, treatment, own in self._ranges_of(span, parts):
                cuts.append((index, start, stop))
                is_cut = is_cut or (start, stop) != (0, span.stop - span.start)
                self._pieces.append(self._piece(engine, treatment, own, {n: a[start:stop] for n, a in arrays.items()}))
        self._all_at_once = [_Group(slice(0, len(cuts)), range(len(self._spans)))]
        spans_of = [index for index, _, _ in cuts]
        ends = [bisect.bisect_right(spans_of, index) for index in range(-1, len(self._spans))]
        self._span_by_span = [_Group(slice(*pair), range(i, i + 1)) for i, pair in enumerate(itertools.pairwise(ends))]
        self._cuts = cuts if is_cut or len(cuts) < len(self._spans) else None
        self._is_one_pass = all(piece.is_one_pass for piece in self._pieces)
        self._dtypes = {piece.dtype for piece in self._pieces}

    def _piece(
        self, engine: Engine, treatment: Treatment, parts: tuple[Part, ...], arrays: Mapping[str, Array]
    ) -> Piece:
        rule = treatment.rule
        shaped: tuple[Array, ...] = ()
        if rule.kind is Kind.WHOLE_VARIABLE:
            variable = self._layout.variables[parts[0].variable]
            slots = self._optimizer.slots.of(variable)
            shaped = (variable.storage, *(slots[name] for name in rule.slots))
        flat = (arrays[""],) if shaped else (arrays[""], *(arrays[name] for name in rule.slots))
        return Piece(engine, treatment, flat, parts, shaped, arrays.get(ACCUMULATOR), arrays.get(AVERAGE))

    def _ranges_of(self, span: Span, parts: Sequence[Part]) -> list[tuple[int, int, Treatment, tuple[Part, ...]]]:
        """Return the longest ranges of a span, relative to it, whose variables are treated alike, and their parts.

        They hold the padding after their variables, but for whole-variable rules: those ranges are exactly a variable.
        """
        ranges: list[tuple[int, int, Treatment, tuple[Part, ...]]] = []
        stops = [*(part.start for part in parts), span.stop - span.start][1:]  # none for padding of an empty variable
        for part, after in zip(parts, stops, strict=True):
            treatment = self._optimizer.treatment(self._layout.variables[part.variable])
            if ranges and ranges[-1][2] == treatment and treatment.rule.kind is not Kind.WHOLE_VARIABLE:
                start, _, _, own = ranges.pop()
            else:
                start, own = part.start, ()
            stop = part.stop if treatment.rule.kind is Kind.WHOLE_VARIABLE else after
            ranges.append((start, stop, treatment, (*own, Part(part.variable, part.start - start, part.stop - start))))
        return ranges

    def _sums_of(self, piece: Piece, all_partials: Array) -> list[Array]:
        """Return for each part of a piece the sums ``[blocks, 2]`` of all blocks of its variable."""
        columns = self._checked_partials(all_partials).reshape(-1, 2)
        dtype = norms.accumulation_dtype(piece.dtype)
        return [columns[slice(*self._block_range[part.variable])].astype(dtype) for part in piece.parts]

    def _checked_partials(self, all_partials: Array) -> Array:
        expected = len(self._layout.blocks) * self.num_sums
        if len(all_partials) != expected:
            raise ValueError(f"the update needs {expected} sums of squares of blocks, not {len(all_partials)}")
        return all_partials

    def _parts(self, span: Span) -> tuple[Part, ...]:
        parts = []
        run = self._layout.run_of(span)
        begin = self._layout.runs[run].start
        for part in self._layout.parts:
            start, stop = max(part.start + begin, span.start), min(part.stop + begin, span.stop)
            if part.run == run and start < stop:
                parts.append(Part(part.variable, start - span.start, stop - span.start))
        return tuple(parts)

    def _clipped_by_norms(
        self, gradients: Sequence[Gradient], all_partials: Array, add_totals: Callable[[Sequence[Any]], Any]
    ) -> list[Gradient]:
        clips = self._optimizer.clips
        totals = self.totals(all_partials)
        if clips.norm is not None:
            with np.errstate(all="ignore"):
                return [self._by_norm(g, p, totals, clips.norm) for g, p in zip(gradients, self._pieces, strict=True)]
        assert clips.global_norm is not None
        total = add_totals(totals)
        scale = {dtype: clipping.global_scale(total, clips.global_norm, dtype) for dtype in self._dtypes}
        return [gradient.scaled(scale[gradient.dtype]) for gradient in gradients]

    def _by_norm(self, gradient: Gradient, piece: Piece, totals: Sequence[Any], clip_norm: float) -> Gradient:
        array, clipped = piece.array_of(gradient), piece.stored
        for part in piece.parts:
            limit, divisor = clipping.norm_limit(totals[part.variable], clip_norm, piece.dtype)
            target = clipped[part.start : part.stop]
            np.multiply(array[part.start : part.stop], limit, out=target)
            np.divide(target, divisor, out=target)
        return Gradient(PLAIN, (clipped,))

    def totals(self, all_partials: Array) -> list[Any]:
        """Return the sum of squares of each variable of the layout, in its accumulation dtype."""
        self._checked_partials(all_partials)
        totals: list[Any] = [None] * len(self._layout.variables)
        for dtype, positions, starts, stops in self._sums_of_variables:
            found = self._engine.range_sums(all_partials.astype(dtype), starts, stops)
            for position, total in zip(positions, found, strict=True):
                totals[position] = total
        return totals

    @functools.cached_property
    def _sums_of_variables(self) -> list[tuple[np.dtype[Any], list[int], Array, Array]]:
        """Return by dtype the positions of variables, and where the sums of squares of each begin and end."""
        by_dtype: dict[np.dtype[Any], list[int]] = {}
        for position, variable in enumerate(self._layout.variables):
            by_dtype.setdefault(norms.accumulation_dtype(variable.storage.dtype), []).append(position)
        found = []
        for dtype, positions in by_dtype.items():
            ranges = np.array([self._block_range.get(position, (0, 0)) for position in positions], np.int64)
            found.append((dtype, positions, ranges[:, 0].copy(), ranges[:, 1].copy()))
        return found


def apply_constraint(variable: Variable, storage: Array) -> None:
    """Replace the value in ``storage``, of ``variable`` or one of its copies, by what the constraint makes of it.

    Raises: ValueError if the constraint returns another shape.
    """
    constraint = variable.constraint
    if constraint is None:
        return
    value = np.asarray(constraint(Tensor(storage.copy())))
    if value.shape != storage.shape:
        raise ValueError(
            f"the constraint of variable {variable.name!r} returned shape {list(value.shape)} "
            f"for a variable of shape {list(storage.shape)}"
        )
    storage[...] = value


def _calls(pairs: Sequence[tuple[Piece, Gradient]], step: Step, copies: Copies) -> list[Call]:
    """Return the calls that update pieces; make the copies, or have a call make them."""
    if copies is not NO_COPIES:
        if len(pairs) == 1:
            ((piece, gradient),) = pairs
            both = piece.copying_call(gradient, step, copies)
            if both is not None:
                return [both]
        copies.make()
    return [piece.call(gradient, step) for piece, gradient in pairs]


def _checked(array: Array, size: int, dtype: np.dtype[Any]) -> Array:
    if array.dtype != dtype or array.shape != (size,):
        raise ValueError(f"a gradient is {array.dtype}{list(array.shape)} where its span is {dtype}[{size}]")
    return contiguous(array)


def _check_term(array: Array, size: int, dtype: np.dtype[Any]) -> None:
    flags = array.flags
    if array.dtype != dtype or array.shape != (size,) or not (flags.c_contiguous and flags.aligned):
        raise ValueError(
            f"a term of a gradient is {array.dtype}{list(array.shape)} where its span is {dtype}[{size}], contiguous"
        )


def _ranges(labels: Sequence[int]) -> dict[int, tuple[int, int]]:
    """Return for each label, whose occurrences are neighbours, the range of its positions."""
    found: dict[int, tuple[int, int]] = {}
    for position, label in enumerate(labels):
        found[label] = (found.get(label, (position, position))[0], position + 1)
    return found
