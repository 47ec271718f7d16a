"""Batches: one kernel call for small variables that are neighbours in the arena.

A kernel call costs about as much as the update of some thousand elements. So the gradients of small neighbours are
copied into one flat array, which stays in the cache, and one call updates them all, padding included; a large variable
is updated from its own gradient. No bit depends on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from distopt.arena import Run, aligned_zeros, runs
from distopt.optimizers.engine import Engine, Kernel
from distopt.optimizers.features import Features
from distopt.optimizers.rule import Rule
from distopt.optimizers.slots import SlotStore
from distopt.types import Array
from distopt.variable import Variable

SMALL_BYTES = 2**14
"""Bytes of a variable up to which copying its gradient is cheaper than a kernel call."""

BATCH_BYTES = 2**17
"""Bytes of the gradients of one batch at most, so that they are still in the cache when the kernel reads them."""


class RuleUser(Protocol):
    """What batches need of an optimizer."""

    slots: SlotStore
    features: Features

    @property
    def rule(self) -> Rule: ...

    def scalars(self, hypers: Mapping[str, float], dtype: np.dtype[Any]) -> tuple[Any, ...]: ...


class _Batch(NamedTuple):
    """What one kernel call updates; ``copies`` says which gradient goes where in ``gradients``.

    For a single variable ``gradients`` is None, and ``copies`` has its place in the list alone.
    """

    kernel: Kernel
    written: tuple[Array, ...]
    gradients: Array | None
    copies: tuple[tuple[Array, int], ...]
    slot_dtype: np.dtype[Any]


class Batches:
    """The updates of ``variables``, which are all different, with dense gradients in the same order.

    One at a time: the arrays for copied gradients are kept.
    """

    def __init__(self, optimizer: RuleUser, engine: Engine, variables: Sequence[Variable]) -> None:
        self.engine = engine
        self.variables = tuple(variables)
        self._optimizer = optimizer
        position = {id(variable): i for i, variable in enumerate(variables)}
        self._batches = [
            self._bind(run, [(variable, position[id(variable)]) for variable in members])
            for run in runs(variables)
            for members in _cut(run)
        ]

    def can_update(self, gradients: Sequence[Array | None]) -> bool:
        """Return whether every gradient is dense and every variable has one value, which may be written to now.

        Raises: TapeError if a live tape has read one of the variables.
        """
        for variable, gradient in zip(self.variables, gradients, strict=True):
            if gradient is None or variable.is_split:
                return False
            if variable.readers:
                variable.check_writable()
        return True

    def update(self, gradients: Sequence[Any], hypers: Mapping[str, float]) -> None:
        """Run the rule on all variables; ``gradients`` are arrays of their variables' shapes and dtypes."""
        dtype = scalars = None
        for kernel, written, flat, copies, slot_dtype in self._batches:
            if slot_dtype is not dtype:
                dtype = slot_dtype
                scalars = self._optimizer.scalars(hypers, slot_dtype)
            assert scalars is not None
            if flat is None:
                gradient = gradients[copies[0][1]]
                if gradient.base is not None and not gradient.flags.aligned:
                    gradient = np.require(gradient, requirements=["A"])
                kernel(*written, gradient.reshape(-1), *scalars)  # a copy in C order, if it is not in that order
                continue
            for target, position in copies:
                target[...] = gradients[position]
            kernel(*written, flat, *scalars)

    def _bind(self, run: Run, members: Sequence[tuple[Variable, int]]) -> _Batch:
        segment, rule = run.segment, self._optimizer.rule
        dtype = segment.dtype
        places = []
        for variable, _ in members:
            assert variable.placement is not None, "runs() has looked"
            places.append((variable.placement[1], variable.storage))
        start, stop = places[0][0], places[-1][0] + places[-1][1].size
        buffers = self._optimizer.slots.buffers(segment)
        written = tuple(array[start:stop] for array in (segment.buffer, *(buffers[name] for name in rule.slots)))
        slot_dtype = self._optimizer.features.dtype_of_slots(rule, dtype)
        kernel = self.engine.kernel(rule, dtype, slot_dtype)
        if len(members) == 1:
            return _Batch(kernel, written, None, ((written[0], members[0][1]),), slot_dtype)
        flat = aligned_zeros(stop - start, dtype)
        copies = tuple(
            (flat[offset - start : offset - start + storage.size].reshape(storage.shape), position)
            for (offset, storage), (_, position) in zip(places, members, strict=True)
        )
        return _Batch(kernel, written, flat, copies, slot_dtype)


def _cut(run: Run) -> list[list[Variable]]:
    """Return the variables of ``run`` as batches: large ones alone."""
    batches: list[list[Variable]] = []
    room = 0
    for variable in run.variables:
        size = variable.storage.nbytes
        if not batches or size > SMALL_BYTES or size > room:
            batches.append([variable])
            room = BATCH_BYTES - size if size <= SMALL_BYTES else 0
        else:
            batches[-1].append(variable)
            room -= size
    return batches
