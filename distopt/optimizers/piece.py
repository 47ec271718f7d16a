"""One range of variables, bound to the arrays and kernels that update it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from distopt import norms
from distopt.optimizers.engine import Blocks, Call, Engine, Kernel
from distopt.optimizers.features import Step, Treatment
from distopt.optimizers.rule import Kind
from distopt.optimizers.rules import ACCUMULATE, ACCUMULATED_MEAN, MOVING_AVERAGE, WEIGHT_DECAY
from distopt.optimizers.terms import PLAIN, Gradient, Source
from distopt.types import Array


class Copies(NamedTuple):
    """Flat arrays, and as many of the same lengths and dtypes, to which they are to be copied."""

    sources: Sequence[Array] = ()
    targets: Sequence[Array] = ()

    def make(self) -> None:
        """Copy them."""
        for source, target in zip(self.sources, self.targets, strict=True):
            np.copyto(target, source)


NO_COPIES = Copies()


class Part(NamedTuple):
    """The elements ``start <= i < stop`` of a piece that belong to one variable of a layout."""

    variable: int
    start: int
    stop: int


@dataclass
class Piece:
    """A range whose variables are all treated alike, and the arrays that lie under it.

    ``arrays`` are the flat variable and slots; ``shaped`` the same in their own shapes, for a whole-variable rule,
    whose pieces are single variables. ``accumulator`` and ``average`` are the flat slots of the features, if they are
    on. ``parts`` say which elements are whose; what lies between them is padding, zero in every array.
    """

    engine: Engine
    treatment: Treatment
    arrays: tuple[Array, ...]
    parts: tuple[Part, ...]
    shaped: tuple[Array, ...] = ()
    accumulator: Array | None = None
    average: Array | None = None
    kernel: Kernel = field(init=False)
    """What updates the range from a plain source."""
    _direction: Array | None = None
    _stored: Array | None = None

    def __post_init__(self) -> None:
        self.dtype: np.dtype[Any] = self.arrays[0].dtype
        self.slot_dtype: np.dtype[Any] = self.arrays[1].dtype if len(self.arrays) > 1 else self.dtype
        self._source = PLAIN
        self._kernel = self.kernel = self._load(PLAIN)
        self._copies, self._copied_with = NO_COPIES, PLAIN
        self._copying: Kernel | None = None
        """What updates the range and makes ``_copies``, if anything does."""

    def _load(self, source: Source) -> Kernel:
        rule = self.treatment.rule
        if rule.kind is Kind.WHOLE_VARIABLE:
            return self._run_whole
        return self.engine.kernel(self.treatment.fused or rule, self.dtype, self.slot_dtype, source)

    def kernel_from(self, source: Source) -> Kernel:
        """Return what updates the range from ``source``; for an element-wise rule."""
        if source is not self._source and source != self._source:
            self._source, self._kernel = source, self._load(source)
        return self._kernel

    @functools.cached_property
    def _blocks(self) -> Blocks:
        return Blocks([(start, stop) for _, start, stop in self.parts])

    @property
    def direction(self) -> Array:
        """An array of the range's length and dtype, zero in the padding: for a rule's direction."""
        if self._direction is None:
            self._direction = np.zeros_like(self.arrays[0])
        return self._direction

    @property
    def stored(self) -> Array:
        """An array of the range's length and dtype, zero in the padding: for a gradient that is needed twice."""
        if self._stored is None:
            self._stored = np.zeros_like(self.arrays[0])
        return self._stored

    def block_sums(self, gradient: Gradient) -> Array:
        """Return the sums of squares of the blocks of all parts, without making the gradient an array."""
        return self.engine.gather(gradient, None, self._blocks)

    def store(self, gradient: Gradient) -> tuple[Gradient, Array]:
        """Make the gradient an array, if it is none yet; return it, and its :meth:`block_sums`."""
        if gradient.source == PLAIN:
            return gradient, self.block_sums(gradient)
        sums = self.engine.gather(gradient, self.stored, self._blocks)
        return Gradient(PLAIN, (self.stored,)), sums

    def array_of(self, gradient: Gradient) -> Array:
        """Return the gradient as an array."""
        if gradient.source != PLAIN:
            gradient, _ = self.store(gradient)
        return gradient.terms[0]

    def accumulate(self, gradient: Array, last_of: int | None) -> Array:
        """Return :func:`accumulate` of ``gradient``."""
        assert self.accumulator is not None
        return accumulate(self.engine, self.accumulator, gradient, last_of)

    def decay(self, step: Step) -> None:
        """Decay the weights, if that is asked for, in a pass of its own."""
        if self.treatment.weight_decay is not None:
            variable = self.arrays[0]
            scalars = step.decay(self.treatment.weight_decay, self.dtype)
            self.engine.kernel(WEIGHT_DECAY, self.dtype)(variable, variable, *scalars)

    @property
    def is_one_pass(self) -> bool:
        """Whether one call of a kernel carries out the treatment: nothing precedes or follows the rule."""
        return self.average is None and (self.treatment.is_plain or self.treatment.fused is not None)

    def call(self, gradient: Gradient, step: Step) -> Call:
        """Return the call of a kernel that carries out the rule, and the weight decay if it is in the same pass."""
        return self.kernel_from(gradient.source), (*self.arrays, *self._inputs(gradient, step))

    def copying_call(self, gradient: Gradient, step: Step, copies: Copies) -> Call | None:
        """Return such a call that makes ``copies`` as well; None if these are not like the arrays here."""
        if copies is not self._copies or gradient.source != self._copied_with:
            self._copies, self._copied_with = copies, gradient.source
            self._copying = self._copying_kernel(copies, gradient.source)
        if self._copying is None:
            return None
        return self._copying, (*self.arrays, *copies.sources, *copies.targets, *self._inputs(gradient, step))

    def _copying_kernel(self, copies: Copies, source: Source) -> Kernel | None:
        rule = self.treatment.rule
        is_alike = [(a.size, a.dtype) for a in copies.sources] == [(a.size, a.dtype) for a in self.arrays]
        if not is_alike or rule.kind is Kind.WHOLE_VARIABLE:
            return None
        return self.engine.kernel(self.treatment.fused or rule, self.dtype, self.slot_dtype, source, copies=True)

    def _inputs(self, gradient: Gradient, step: Step) -> tuple[Any, ...]:
        """Return what a kernel takes beside arrays that it writes to."""
        rule, weight_decay = self.treatment
        scalars = step.scalars(rule, self.slot_dtype)
        if weight_decay is not None and rule.decayed is not None:
            scalars = (*scalars, *step.decay(weight_decay, self.slot_dtype))
        return (*gradient.terms, *gradient.scalars, *scalars)

    def update(self, gradient: Gradient, step: Step) -> None:
        """Carry out the treatment with a flat gradient; the rule needs no norms."""
        rule, weight_decay = self.treatment
        if weight_decay is not None and rule.decayed is None:
            self.decay(step)
        if rule.kind is Kind.WHOLE_VARIABLE:
            gradient = Gradient(PLAIN, (self.array_of(gradient),))
        kernel, arguments = self.call(gradient, step)
        kernel(*arguments)

    def find_direction(self, gradient: Array, step: Step) -> list[Array]:
        """Make the first pass of a rule after norms: decay the weights, update the slots, keep the direction.

        Returns the sums of squares that the second pass needs, for each part one array ``[blocks, 2]``: those of the
        variable and those of the direction.
        """
        self.decay(step)
        variable, *slots = self.arrays
        direction = self.direction
        np.copyto(direction, variable)
        self.kernel(direction, *slots, gradient, *step.scalars(self.treatment.rule, self.dtype))
        sums = []
        for _, start, stop in self.parts:
            both = (variable[start:stop], direction[start:stop])
            sums.append(np.stack([self.engine.block_sums(np.ascontiguousarray(values)) for values in both], axis=1))
        return sums

    def move(self, sums_of: Sequence[Array], step: Step) -> None:
        """Make the second pass; ``sums_of`` has the sums ``[blocks, 2]`` of all blocks of each part's variable."""
        second = self.treatment.rule.after_norms
        assert second is not None
        kernel = self.engine.kernel(second.move, self.dtype)
        scalars = step.scalars(second.move, self.dtype)
        one = self.dtype.type(1)
        with np.errstate(all="ignore"):
            for (_, start, stop), sums in zip(self.parts, sums_of, strict=True):
                lengths = [
                    np.sqrt(norms.add_sums(np.ascontiguousarray(column))).astype(self.dtype) for column in sums.T
                ]
                factor = self.dtype.type(second.factor(*lengths, one))
                kernel(self.arrays[0][start:stop], self.direction[start:stop], factor, *scalars)

    def move_alone(self, gradient: Array, step: Step) -> None:
        """Make both passes of a rule after norms on a range that holds whole variables."""
        self.move(self.find_direction(gradient, step), step)

    def take_average(self, step: Step) -> None:
        """Move the averages towards the variables, and at certain steps the variables onto their averages."""
        if self.average is not None:
            take_average(self.engine, self.average, self.arrays[0], step)

    def _run_whole(self, *arguments: Any) -> None:
        gradient, *scalars = arguments[len(self.arrays) :]
        variable, *slots = self.shaped
        with np.errstate(all="ignore"):
            results = self.treatment.rule.step(variable, *slots, gradient.reshape(variable.shape), *scalars)
            for array, result in zip(self.shaped, results if slots else (results,), strict=True):
                array[...] = result


def accumulate(engine: Engine, accumulator: Array, gradient: Array, last_of: int | None) -> Array:
    """Add a flat gradient to the accumulator; as the last of so many, make it their mean.

    Return it in the gradient's dtype: an accumulator of wider elements is rounded once.
    """
    dtype = accumulator.dtype
    wide = gradient.astype(dtype, copy=False)
    if last_of is None:
        engine.kernel(ACCUMULATE, dtype)(accumulator, wide)
    else:
        engine.kernel(ACCUMULATED_MEAN, dtype)(accumulator, wide, dtype.type(last_of))
    return accumulator.astype(gradient.dtype, copy=False)


def take_average(engine: Engine, average: Array, variable: Array, step: Step) -> None:
    """Move a flat average towards its variable; in a step that overwrites, then the variable onto it."""
    dtype = average.dtype
    engine.kernel(MOVING_AVERAGE, dtype)(average, variable.astype(dtype, copy=False), *step.averaging(dtype))
    if step.overwrites:
        variable[...] = average  # rounded, where the average is of wider elements
