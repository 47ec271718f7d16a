"""What an optimizer remembers, as TensorFlow 1 names it: slots of variables, and variables that belong to none."""

# ruff: noqa: ARG002  (TensorFlow's arguments, in its order, some of which have no meaning here)
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from distopt import deferral
from distopt.graph import GraphVariable
from distopt.optimizers.update_methods import UpdateMethods
from distopt.tensor import Tensor
from distopt.variable import Variable


class SlotsAndVariables(UpdateMethods):
    """An optimizer whose slots and other variables can be asked for, and created by a subclass."""

    _own_scope = ""
    """What the names of variables that belong to no other begin with."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._slot_counts: dict[int, int] = {}

    def get_slot(self, var: Any, name: str) -> Variable | None:
        """Return the slot ``name`` of ``var``; None if there is none."""
        if not isinstance(var, Variable):
            return None
        return self.slots.variables_of(var).get(name)

    def get_slot_names(self) -> list[str]:
        """Return the names of the slots, sorted; empty before the first gradients were applied."""
        return sorted(self.slots.names)

    def variables(self) -> list[Variable]:
        """Return the slots and other variables, sorted by name; in a graph those of the default graph."""
        graph = deferral.building()
        slots = [slot for variable in self.slots.variables for slot in self.slots.variables_of(variable).values()]
        members = [*self._own_weights.values(), *slots]
        here = [v for v in members if graph is None or getattr(v, "graph", None) is graph]
        return sorted(here, key=lambda variable: variable.name)

    def _create_slots(self, var_list: Sequence[Variable]) -> None:
        """Create the slots of variables that are seen for the first time; by default those of the rule."""
        if not self._has_rule:
            return
        for variable in var_list:
            for name in self._slot_order():
                self._get_or_make_slot(variable, self.initial_slot(name), name, self._name)

    def _slot_order(self) -> Sequence[str]:
        """Return the names of the rule's slots in the order in which they are created."""
        return self.rule.slots

    def _zeros_slot(self, var: Variable, slot_name: str, op_name: str) -> Variable:
        """Return the slot ``slot_name`` of ``var``, created with zeros if there is none."""
        return self._get_or_make_slot(var, "zeros", slot_name, op_name)

    def _get_or_make_slot(self, var: Variable, val: Any, slot_name: str, op_name: str) -> Variable:
        """Return the slot ``slot_name`` of ``var``, created with the value ``val`` if there is none.

        Its name is ``<variable>/<op_name>``, with ``_1``, ``_2``, ... for further ones.
        """
        present = self.get_slot(var, slot_name)
        if present is not None:
            return present
        slot = self.slots.add(var, slot_name, val.numpy() if isinstance(val, Tensor) else val)
        base = f"{var.name.partition(':')[0]}/{op_name}"
        if isinstance(slot, GraphVariable):
            slot.name = f"{slot.graph.unique_name(base)}:0"
            return slot
        count = self._slot_counts.get(id(var), 0)
        self._slot_counts[id(var)] = count + 1
        slot.name = f"{base}_{count}:0" if count else f"{base}:0"
        return slot

    def _get_or_make_slot_with_initializer(
        self, var: Variable, initializer: Any, shape: Any, dtype: Any, slot_name: str, op_name: str
    ) -> Variable:
        """Return the slot ``slot_name`` of ``var``, created with ``initializer(shape, dtype)`` if there is none.

        Raises: ValueError for a shape or dtype that is not the variable's: slots lie beside their variables.
        """
        if tuple(shape) != tuple(var.shape) or np.dtype(dtype) != var.dtype:
            raise ValueError(
                f"a slot has the shape and dtype of its variable, {var.dtype}{list(var.shape)}, not "
                f"{np.dtype(dtype)}{list(shape)}; use _create_non_slot_variable for others"
            )
        return self._get_or_make_slot(var, initializer, slot_name, op_name)

    def _create_non_slot_variable(self, initial_value: Any, name: str, colocate_with: Any) -> Variable:
        """Return the variable ``name`` that belongs to no other, created with ``initial_value`` if there is none."""
        present = self._own_weights.get(name)
        if present is None:
            present = Variable(initial_value, name=f"{self._own_scope}{name}", trainable=False)
            self._own_weights[name] = present
        return present

    def _get_non_slot_variable(self, name: str, graph: Any = None) -> Variable | None:
        """Return the variable ``name`` that belongs to no other; None if there is none."""
        return self._own_weights.get(name)

    def _non_slot_variables(self) -> list[Variable]:
        return list(self._own_weights.values())
