"""Optimizers whose update is written as ``build`` and ``update_step``, the way of Keras since TensorFlow 2.11.

A class that defines ``update_step(gradient, variable, learning_rate)`` is given the update methods of the legacy
generation that call it (:mod:`.update_methods`), and its ``build`` runs once. What holds for those holds for it.
Before Keras 3 it was ``update_step(gradient, variable)``, which asks for ``self.learning_rate``: in such a class that
is the rate of the step, also where it follows a schedule.

Source: Keras 3 ``BaseOptimizer``, its section for implementors; tf_keras ``Optimizer``, of TensorFlow 2.11 to 2.15.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from distopt.indexed_slices import IndexedSlices
from distopt.optimizers.hyper_attributes import HyperAttribute
from distopt.schedules import LearningRateSchedule
from distopt.tensor import Tensor
from distopt.variable import Variable


class UpdateSteps:
    """What an ``update_step`` may call."""

    _variables: list[Variable]
    add_slot: Callable[..., Variable]
    _set_hyper: Callable[[str, Any], None]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "update_step" in vars(cls):
            _adapt(cls)

    def add_variable_from_reference(
        self,
        reference_variable: Variable | None = None,
        name: str | None = None,
        initializer: Any = "zeros",
        *,
        model_variable: Variable | None = None,
        variable_name: str | None = None,
        initial_value: Any = None,
    ) -> Variable:
        """Return the slot ``name`` of a variable, in its shape and dtype; made at the first call.

        ``model_variable``, ``variable_name`` and ``initial_value`` are what the arguments were called before Keras 3.

        Raises: TypeError without a variable.
        """
        variable = model_variable if reference_variable is None else reference_variable
        if variable is None:
            raise TypeError("add_variable_from_reference needs the variable that the new one is like")
        value = initializer if initial_value is None else initial_value
        return self.add_slot(variable, name or variable_name or "variable", value)

    def _build_learning_rate(self, learning_rate: Any) -> Any:
        """Set the learning rate, and return what was given."""
        self._set_hyper("learning_rate", learning_rate)
        return learning_rate

    @property
    def _index_dict(self) -> dict[int, int]:
        """The place of each variable among those that the optimizer was built for, by :meth:`_var_key`."""
        return {id(variable): position for position, variable in enumerate(self._variables)}

    def _var_key(self, variable: Variable) -> int:
        return id(variable)

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


class _CurrentRate(HyperAttribute):
    """The learning rate of the step that is being made."""

    def __get__(self, optimizer: Any, owner: type) -> Any:
        rate = super().__get__(optimizer, owner)
        is_schedule = isinstance(rate, LearningRateSchedule)
        return Tensor(np.float32(rate(optimizer.iterations))) if is_schedule else rate


def _adapt(optimizer_class: Any) -> None:
    optimizer_class._create_slots = _nothing
    if len(inspect.signature(optimizer_class.update_step).parameters) < len(("self", "gradient", "variable", "rate")):
        optimizer_class.learning_rate = _CurrentRate("learning_rate", "learning_rate")
        optimizer_class._update_step = _update_step_of_two
    else:
        optimizer_class._update_step = _update_step_of_three
    optimizer_class._resource_apply_dense = _apply_dense
    optimizer_class._resource_apply_sparse_duplicate_indices = _apply_rows
    if "build" in vars(optimizer_class):
        optimizer_class.build = _once(optimizer_class.build)


def _nothing(self: Any, var_list: Any) -> None:
    """Slots are made by ``build``."""


def _update_step_of_two(self: Any, gradient: Any, variable: Variable) -> None:
    self.update_step(gradient, variable)


def _update_step_of_three(self: Any, gradient: Any, variable: Variable) -> None:
    self.update_step(gradient, variable, self._decayed_lr(variable.dtype))


def _apply_dense(self: Any, grad: Any, var: Variable, **_: Any) -> None:
    self._update_step(grad, var)


def _apply_rows(self: Any, grad: Any, var: Variable, indices: Any, **_: Any) -> None:
    self._update_step(IndexedSlices(grad, indices, var.shape), var)


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
