"""Optimizers whose update is written as ``build`` and ``update_step``, the way of Keras since TensorFlow 2.11.

A class that defines ``update_step(gradient, variable, learning_rate)`` is given the update methods of the legacy
generation that call it (:mod:`.update_methods`), and its ``build`` runs once. What holds for those holds for it.

Source: Keras 3 ``BaseOptimizer``, its section for implementors.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

from distopt.indexed_slices import IndexedSlices
from distopt.variable import Variable


class UpdateSteps:
    """What an ``update_step`` may call."""

    _variables: list[Variable]
    add_slot: Callable[..., Variable]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "update_step" in vars(cls):
            _adapt(cls)

    def add_variable_from_reference(
        self, reference_variable: Variable, name: str | None = None, initializer: Any = "zeros"
    ) -> Variable:
        """Return the slot ``name`` of a variable, in its shape and dtype; made at the first call."""
        return self.add_slot(reference_variable, name or "variable", initializer)

    def assign(self, variable: Variable, value: Any) -> None:
        """Set ``variable``."""
        variable.assign(value)

    def assign_add(self, variable: Variable, value: Any) -> None:
        """Add to ``variable``."""
        variable.assign_add(value)

    def assign_sub(self, variable: Variable, value: Any) -> None:
        """Subtract from ``variable``."""
        variable.assign_sub(value)

    def _get_variable_index(self, reference_variable: Variable) -> int:
        """Return the place of a variable among those that the optimizer was built for.

        Raises: ValueError for another one.
        """
        for position, variable in enumerate(self._variables):
            if variable is reference_variable:
                return position
        raise ValueError(f"{reference_variable.name} is not a variable that the optimizer was built for")


def _adapt(optimizer_class: Any) -> None:
    optimizer_class._create_slots = _nothing
    optimizer_class._resource_apply_dense = _apply_dense
    optimizer_class._resource_apply_sparse_duplicate_indices = _apply_rows
    if "build" in vars(optimizer_class):
        optimizer_class.build = _once(optimizer_class.build)


def _nothing(self: Any, var_list: Any) -> None:
    """Slots are made by ``build``."""


def _apply_dense(self: Any, grad: Any, var: Variable, **_: Any) -> None:
    self.update_step(grad, var, self._decayed_lr(var.dtype))


def _apply_rows(self: Any, grad: Any, var: Variable, indices: Any, **_: Any) -> None:
    self.update_step(IndexedSlices(grad, indices, var.shape), var, self._decayed_lr(var.dtype))


def _once(build: Callable[[Any, list[Variable]], None]) -> Callable[[Any, Iterable[Variable]], None]:
    @functools.wraps(build)
    def build_once(self: Any, variables: Iterable[Variable]) -> None:
        """Run ``build`` for the variables of the first call.

        Raises: ValueError for other variables later: what ``build`` made is in the order of the first.
        """
        wanted = list(variables)
        built = {id(variable) for variable in self._variables}
        new = [variable.name for variable in wanted if id(variable) not in built]
        if new and built:
            raise ValueError(f"{', '.join(new)}: not among the variables that the optimizer was built for")
        if new:
            build(self, wanted)

    return build_once
