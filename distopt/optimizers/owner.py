"""Whoever owns spans updates them here; owning everything is the ordinary case.

The update of a span depends on nothing outside of it but the norms for clipping. Those are made of one sum of squares a
block (:mod:`distopt.norms`), and blocks are never cut: owners exchange their sums, and each computes the same norms. So
the bits do not depend on how the spans are divided.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from distopt import clipping, norms
from distopt.arena import Span
from distopt.optimizers.engine import Engine, Kernel, get_engine
from distopt.optimizers.layout import Layout
from distopt.optimizers.rule import Rule
from distopt.optimizers.slots import SlotStore
from distopt.tensor import Tensor
from distopt.types import Array
from distopt.variable import Variable

_NOTHING: Array = np.empty(0)


@dataclass
class Clips:
    """The clip limits of an optimizer; ``None``: not clipped that way."""

    value: float | None = None
    norm: float | None = None
    global_norm: float | None = None

    @property
    def active(self) -> bool:
        return self.value is not None or self.needs_norms

    @property
    def needs_norms(self) -> bool:
        return self.norm is not None or self.global_norm is not None

    @property
    def chained(self) -> bool:
        """Whether the global norm is that of gradients that were clipped by their norms: two exchanges, not one."""
        return self.norm is not None and self.global_norm is not None


class RuleUser(Protocol):
    """What an owner needs of an optimizer."""

    slots: SlotStore
    clips: Clips

    @property
    def rule(self) -> Rule: ...

    def scalars(self, hypers: Mapping[str, float], dtype: np.dtype[Any]) -> tuple[Any, ...]:
        """Return the scalars of the rule, in its order, in ``dtype``."""
        ...


@dataclass
class _Part:
    """The elements ``start <= i < stop`` of a span that belong to one variable."""

    variable: int
    start: int
    stop: int


@dataclass
class _Piece:
    """One span, bound to the arrays and the kernel that update it."""

    kernel: Kernel
    arrays: tuple[Array, ...]
    dtype: np.dtype[Any]
    parts: tuple[_Part, ...]
    _scratch: Array | None = None

    @property
    def scratch(self) -> Array:
        """An array of the span's length and dtype, zero in the padding, for clipped gradients."""
        if self._scratch is None:
            self._scratch = np.zeros_like(self.arrays[0])
        return self._scratch


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
        self.blocks: tuple[int, ...] = tuple(
            index
            for span in self._spans
            for index, block in enumerate(layout.blocks)
            if block.segment_index == span.segment_index and span.start <= block.start < span.stop
        )
        self._block_range = _ranges([block.variable for block in layout.blocks])
        parts_of = [self._parts(span) for span in self._spans]
        self._variables = [layout.variables[part.variable] for parts in parts_of for part in parts]
        self._constrained = [variable for variable in self._variables if variable.constraint is not None]
        self._parts_of = parts_of
        self._bind(get_engine())

    def partials(self, flat_spans: Sequence[Array]) -> Array:
        """Return the sums of squares of ``blocks`` that clipping needs, as float64; empty if it needs none.

        Concatenated over owners in the order of ``layout.blocks``, they are the ``all_partials`` of :meth:`apply`.
        ``flat_spans`` are the aggregated gradients of the spans, one flat array each; they are not written to.
        """
        clips = self._optimizer.clips
        if not clips.needs_norms:
            return _NOTHING
        if clips.chained:
            raise ValueError("clipnorm and global_clipnorm together need whole gradients; clip them before")
        values = self._clipped_by_value(flat_spans)
        sums = [
            self._engine.block_sums(array[part.start : part.stop])
            for array, piece in zip(values, self._pieces, strict=True)
            for part in piece.parts
        ]
        return np.concatenate(sums).astype(np.float64) if sums else _NOTHING

    def apply(self, flat_spans: Sequence[Array], hypers: Mapping[str, float], all_partials: Array) -> None:
        """Clip, run the rule, apply constraints. Does not count a step: ``advance`` of the optimizer does.

        ``all_partials`` has one sum of squares for each of ``layout.blocks``. ``flat_spans`` are not written to.

        Raises: ValueError, before anything changes, if an array has not the length or dtype of its span; TapeError if a
        live tape has read one of the variables.
        """
        engine = get_engine()
        if engine is not self._engine:
            self._bind(engine)
        gradients = [_checked(array, piece) for array, piece in zip(flat_spans, self._pieces, strict=True)]
        for variable in self._variables:
            variable.check_writable()
        if self._optimizer.clips.active:
            gradients = self._clipped(gradients, all_partials)
        self.update(gradients, hypers)

    def update(self, gradients: Sequence[Array], hypers: Mapping[str, float]) -> None:
        """Run the rule and the constraints on gradients that are checked and clipped."""
        dtype = scalars = None
        for piece, gradient in zip(self._pieces, gradients, strict=True):
            if piece.dtype is not dtype:
                dtype = piece.dtype
                scalars = self._optimizer.scalars(hypers, dtype)
            assert scalars is not None
            piece.kernel(*piece.arrays, gradient, *scalars)
        for variable in self._constrained:
            apply_constraint(variable, variable.storage)

    def _bind(self, engine: Engine) -> None:
        self._engine = engine
        rule, layout = self._optimizer.rule, self._layout
        self._pieces: list[_Piece] = []
        for span, parts in zip(self._spans, self._parts_of, strict=True):
            segment = layout.runs[layout.run_of(span)].segment
            buffers = self._optimizer.slots.buffers(segment)
            arrays = (segment.buffer, *(buffers[name] for name in rule.slots))
            views = tuple(array[span.start : span.stop] for array in arrays)
            self._pieces.append(_Piece(engine.kernel(rule, segment.dtype), views, segment.dtype, parts))

    def _parts(self, span: Span) -> tuple[_Part, ...]:
        parts = []
        begin = self._layout.runs[self._layout.run_of(span)].start
        run = self._layout.run_of(span)
        for part in self._layout.parts:
            start, stop = max(part.start + begin, span.start), min(part.stop + begin, span.stop)
            if part.run == run and start < stop:
                parts.append(_Part(part.variable, start - span.start, stop - span.start))
        return tuple(parts)

    def _clipped_by_value(self, flat_spans: Sequence[Array]) -> Sequence[Array]:
        limit = self._optimizer.clips.value
        if limit is None:
            return flat_spans
        clipped = []
        for array, piece in zip(flat_spans, self._pieces, strict=True):
            low, high = piece.dtype.type(-limit), piece.dtype.type(limit)
            target = np.maximum(array, low, out=piece.scratch)
            clipped.append(np.minimum(target, high, out=target))
        return clipped

    def _clipped(self, flat_spans: Sequence[Array], all_partials: Array) -> list[Array]:
        clips = self._optimizer.clips
        values = list(self._clipped_by_value(flat_spans))
        if not clips.needs_norms:
            return values
        totals = self._totals(all_partials)
        with np.errstate(all="ignore"):
            if clips.norm is not None:
                return [self._by_norm(a, p, totals, clips.norm) for a, p in zip(values, self._pieces, strict=True)]
            assert clips.global_norm is not None
            total = clipping.add_totals(totals)
            scale = {p.dtype: clipping.global_scale(total, clips.global_norm, p.dtype) for p in self._pieces}
            return [
                np.multiply(array, scale[piece.dtype], out=piece.scratch)
                for array, piece in zip(values, self._pieces, strict=True)
            ]

    def _by_norm(self, array: Array, piece: _Piece, totals: Sequence[Any], clip_norm: float) -> Array:
        clipped = piece.scratch
        for part in piece.parts:
            limit, divisor = clipping.norm_limit(totals[part.variable], clip_norm, piece.dtype)
            target = clipped[part.start : part.stop]
            np.multiply(array[part.start : part.stop], limit, out=target)
            np.divide(target, divisor, out=target)
        return clipped

    def _totals(self, all_partials: Array) -> list[Any]:
        """Return the sum of squares of each variable of the layout, in its accumulation dtype."""
        if len(all_partials) != len(self._layout.blocks):
            raise ValueError(f"clipping needs the sums of {len(self._layout.blocks)} blocks, not {len(all_partials)}")
        totals = []
        for index, variable in enumerate(self._layout.variables):
            start, stop = self._block_range.get(index, (0, 0))
            dtype = norms.accumulation_dtype(variable.storage.dtype)
            totals.append(norms.add_sums(all_partials[start:stop].astype(dtype)))
        return totals


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


def _checked(array: Array, piece: _Piece) -> Array:
    like = piece.arrays[0]
    if array.dtype != like.dtype or array.shape != like.shape:
        raise ValueError(
            f"a gradient is {array.dtype}{list(array.shape)} where its span is {like.dtype}{list(like.shape)}"
        )
    flags = array.flags
    return array if flags.c_contiguous and flags.aligned else np.require(array, requirements=["C", "A"])


def _ranges(labels: Sequence[int]) -> dict[int, tuple[int, int]]:
    """Return for each label, whose occurrences are neighbours, the range of its positions."""
    found: dict[int, tuple[int, int]] = {}
    for position, label in enumerate(labels):
        found[label] = (found.get(label, (position, position))[0], position + 1)
    return found
