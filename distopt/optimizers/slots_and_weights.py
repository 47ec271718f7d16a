"""What an optimizer remembers, as Keras names it: slots by variable and name, and all of it as a list of weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distopt.optimizers.core import OptimizerCore
from distopt.optimizers.weights import get_weights, set_weights
from distopt.types import Array
from distopt.variable import Variable


class SlotsAndWeights(OptimizerCore):
    """An optimizer whose ``iterations`` and slots can be asked for and replaced."""

    def add_slot(self, var: Variable, slot_name: str, initializer: Any = "zeros") -> Variable:
        """Return the slot ``slot_name`` of ``var``, created with ``initializer`` if there is none."""
        return self.slots.add(var, slot_name, initializer)

    def get_slot(self, var: Variable, slot_name: str) -> Variable:
        """Return a slot variable.

        Raises: KeyError if there is none.
        """
        return self.slots.get(var, slot_name)

    def get_slot_names(self) -> list[str]:
        """Return the names of the slots, in the order in which they were first created."""
        return list(self.slots.names)

    @property
    def weights(self) -> list[Variable]:
        """``iterations`` and the slots, in the order of creation; empty before the first step."""
        return [] if self._iterations is None else [self._iterations, *self.slots]

    def variables(self) -> list[Variable]:
        """Return ``weights``."""
        return self.weights

    def get_weights(self) -> list[Array]:
        """Return copies of ``weights``."""
        return get_weights(self.weights)

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Assign to ``weights``.

        Raises: ValueError if their number or a shape differs.
        """
        set_weights(self._name, self.weights, weights)
