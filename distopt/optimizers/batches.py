"""Batches: one kernel call for small variables that are neighbours in the arena.

A kernel call costs about as much as the update of some thousand elements. So the gradients of small neighbours are
copied into one flat array, which stays in the cache, and one call updates them all, padding included; a large variable
is updated from its own gradient. Clips by value and by the global norm are made in the loops that update. No bit
depends on any of this.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any, NamedTuple, Protocol

import numpy as np

from distopt import clipping, norms, threads
from distopt.arena import Run, aligned_zeros, contiguous, flattened, runs
from distopt.optimizers.clips import NO_CLIPS, Clips
from distopt.optimizers.engine import SHARED_BYTES, Blocks, Call, Engine, Kernel, run_together, unshared
from distopt.optimizers.features import AVERAGE, ScalarSource, Step, Treatment
from distopt.optimizers.piece import Piece
from distopt.optimizers.slots import SlotStore
from distopt.optimizers.terms import PLAIN, Gradient
from distopt.packing import BATCH_BYTES, MANY, SMALL_BYTES, Packing, Place
from distopt.types import Array
from distopt.variable import Variable, are_split, check_all_writable

_readers = attrgetter("readers")


class RuleUser(ScalarSource, Protocol):
    """What batches need of an optimizer."""

    slots: SlotStore

    def treatment(self, variable: Variable) -> Treatment:
        """Return how a variable is updated."""
        ...


class _Batch(NamedTuple):
    """What one kernel call updates; ``copies`` says which gradient goes where in ``gradients``.

    For a single variable ``gradients`` is None. Many are copied as ``packing`` does it.
    """

    kernel: Kernel
    written: tuple[Array, ...]
    gradients: Array | None
    copies: tuple[tuple[Array, int], ...]
    packing: Packing | None
    piece: Piece
    members: tuple[tuple[int, int, int], ...]
    """For each variable its position in the list, and where its elements start and stop."""

    def flat_gradient(self, gradients: Sequence[Any]) -> Array:
        """Return the gradient of all variables, copied into ``gradients`` if there are several."""
        flat = self.gradients
        if flat is None:
            return flattened(gradients[self.members[0][0]])
        if self.packing is not None:
            self.packing.write(gradients, flat)
            return flat
        for target, position in self.copies:
            target[...] = gradients[position]
        return flat


class _Squares:
    """Where the sums of squares of the variables of one batch go in a list of those of all."""

    def __init__(self, batch: _Batch) -> None:
        self.blocks = Blocks([(start, stop) for _, start, stop in batch.members])
        self._positions = np.array([position for position, _, _ in batch.members], np.intp)
        numbers = [norms.number_of_blocks(stop - start) for _, start, stop in batch.members]
        self._stops = np.cumsum(numbers, dtype=np.int64)
        self._starts = self._stops - np.array(numbers, np.int64)

    def put(self, engine: Engine, sums: Array, totals: Array) -> None:
        """Add up ``sums``, those of the blocks, by variable."""
        totals[self._positions] = engine.range_sums(contiguous(sums), self._starts, self._stops)


class _Group(NamedTuple):
    """The batches whose kernels take the same scalars; in ``one_pass``, where nothing precedes or follows the rule."""

    treatment: Treatment
    slot_dtype: np.dtype[Any]
    one_pass: bool
    batches: list[_Batch]


class Batches:
    """The updates of ``variables``, which are all different, with dense gradients in the same order.

    They have element-wise rules and no constraints. One at a time: the arrays for copied gradients are kept.
    """

    def __init__(self, optimizer: RuleUser, engine: Engine, variables: Sequence[Variable]) -> None:
        self.engine = engine
        self.variables = tuple(variables)
        self._optimizer = optimizer
        position = {id(variable): i for i, variable in enumerate(variables)}
        self._are_large = sum(variable.storage.nbytes for variable in variables) >= SHARED_BYTES // 4
        groups: dict[tuple[Treatment, np.dtype[Any]], _Group] = {}
        for run in runs(variables):
            for treatment, members in _cut(run, [optimizer.treatment(variable) for variable in run.variables]):
                batch = self._bind(run, treatment, [(variable, position[id(variable)]) for variable in members])
                slot_dtype = optimizer.features.dtype_of_slots(treatment.rule, run.segment.dtype)
                group = _Group(treatment, slot_dtype, batch.piece.is_one_pass, [])
                groups.setdefault((treatment, slot_dtype), group).batches.append(batch)
        self._groups = tuple(groups.values())

    def can_update(self) -> bool:
        """Return whether every variable has one value, which may be written to now.

        Raises: TapeError if a live tape has read one of the variables.
        """
        variables = self.variables
        if are_split(variables):
            return False
        check_all_writable(variables, map(_readers, variables))
        return True

    def update(self, gradients: Sequence[Any], hypers: Mapping[str, float], clips: Clips = NO_CLIPS) -> None:
        """Clip as ``clips`` say, but by norm, and update; ``gradients`` have their variables' shapes and dtypes."""
        step: Step | None = None
        clip: Callable[[Gradient], Gradient] | None = None
        copied: Iterator[Array] | None = None
        if clips.global_norm is not None:
            clip, copied = self._clip_by_global_norm(gradients, clips)
        elif (value := clips.value) is not None:
            clip = functools.partial(_clipped, value)
        calls: list[Call] | None = [] if self._are_large and threads.num_threads() > 1 else None
        for (rule, weight_decay), slot_dtype, one_pass, batches in self._groups:
            scalars = self._optimizer.scalars_of(rule, hypers, slot_dtype)
            if weight_decay is not None:
                step = step or Step(self._optimizer, hypers)
                scalars = (*scalars, *step.decay(weight_decay, slot_dtype))
            for batch in batches:
                kernel, written, piece = batch.kernel, batch.written, batch.piece
                gradient = batch.flat_gradient(gradients) if copied is None else next(copied)
                if not one_pass or clip is not None:
                    step = step or Step(self._optimizer, hypers)
                    found = Gradient(PLAIN, (gradient,))
                    piece.update(found if clip is None else clip(found), step)
                    piece.take_average(step)
                elif calls is None:
                    kernel(*written, gradient, *scalars)
                else:
                    calls.append((kernel, (*written, gradient, *scalars)))
        if calls:
            run_together(calls)

    def _clip_by_global_norm(
        self, gradients: Sequence[Any], clips: Clips
    ) -> tuple[Callable[[Gradient], Gradient], Iterator[Array]]:
        """Return what clips the gradient of a batch, and these gradients, in order, which were read for the norm."""
        assert clips.global_norm is not None, "asked by the caller"
        dtypes = {batch.piece.dtype for batch in self._batches}
        totals = np.empty(len(gradients), np.result_type(*map(norms.accumulation_dtype, dtypes)))
        copied = []
        for batch, squares in zip(self._batches, self._squares, strict=True):
            flat = batch.flat_gradient(gradients)
            gradient = _clipped(clips.value, Gradient(PLAIN, (flat,)))
            if gradient.source == PLAIN and batch.gradients is None:
                sums = self.engine.block_sums(flat)
            else:
                sums = self.engine.gather(gradient, None, squares.blocks)
            squares.put(self.engine, sums, totals)
            copied.append(flat)
        total = norms.add_sums(totals)
        factors = {dtype: clipping.global_scale(total, clips.global_norm, dtype) for dtype in dtypes}
        return lambda gradient: _clipped(clips.value, gradient).scaled(factors[gradient.dtype]), iter(copied)

    @functools.cached_property
    def _batches(self) -> list[_Batch]:
        return [batch for group in self._groups for batch in group.batches]

    @functools.cached_property
    def _squares(self) -> list[_Squares]:
        return list(map(_Squares, self._batches))

    def _bind(self, run: Run, treatment: Treatment, members: Sequence[tuple[Variable, int]]) -> _Batch:
        segment = run.segment
        places = []
        for variable, _ in members:
            assert variable.placement is not None, "runs() has looked"
            places.append((variable.placement[1], variable.storage))
        start, stop = places[0][0], places[-1][0] + places[-1][1].size
        arrays = {name: array[start:stop] for name, array in self._optimizer.slots.buffers(segment).items()}
        written = (segment.buffer[start:stop], *(arrays[name] for name in treatment.rule.slots))
        piece = Piece(self.engine, treatment, written, (), average=arrays.get(AVERAGE))
        kernel = piece.kernel if self._are_large else unshared(piece.kernel)
        if len(members) == 1:
            return _Batch(kernel, written, None, (), None, piece, ((members[0][1], 0, stop - start),))
        flat = aligned_zeros(stop - start, segment.dtype)
        targets = [
            Place(position, offset - start, offset - start + storage.size, storage.shape)
            for (offset, storage), (_, position) in zip(places, members, strict=True)
        ]
        where = tuple((at.position, at.start, at.stop) for at in targets)
        if len(members) >= MANY:
            return _Batch(kernel, written, flat, (), Packing(targets, segment.dtype), piece, where)
        copies = tuple((flat[at.start : at.stop].reshape(at.shape), at.position) for at in targets)
        return _Batch(kernel, written, flat, copies, None, piece, where)


def _clipped(value: float | None, gradient: Gradient) -> Gradient:
    return gradient if value is None else gradient.clipped(value)


def _cut(run: Run, treatments: Sequence[Treatment]) -> list[tuple[Treatment, list[Variable]]]:
    """Return the variables of ``run`` as batches of variables that are treated alike: large ones alone."""
    batches: list[tuple[Treatment, list[Variable]]] = []
    room = 0
    for variable, treatment in zip(run.variables, treatments, strict=True):
        size = variable.storage.nbytes
        if not batches or size > SMALL_BYTES or size > room or batches[-1][0] != treatment:
            batches.append((treatment, [variable]))
            room = BATCH_BYTES - size if size <= SMALL_BYTES else 0
        else:
            batches[-1][1].append(variable)
            room -= size
    return batches
