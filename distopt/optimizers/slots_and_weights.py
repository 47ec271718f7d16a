"""What an optimizer remembers, as Keras names it: slots by variable and name, and all of it as a list of weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from distopt import initializers
from distopt.optimizers.core import OptimizerCore
from distopt.optimizers.weights import get_weights, set_weights
from distopt.types import Array
from distopt.variable import Variable, VariableAggregation, VariableSynchronization


class CallableList(list[Variable]):
    """A list that returns itself when it is called. Source: tf_keras ``CallableList``."""

    def __call__(self) -> list[Variable]:
        """Return the list."""
        return self


class SlotsAndWeights(OptimizerCore):
    """An optimizer whose ``iterations``, slots and other weights can be asked for and replaced."""

    def add_slot(self, var: Variable, slot_name: str, initializer: Any = "zeros", shape: Any = None) -> Variable:
        """Return the slot ``slot_name`` of ``var``; if there is none, it is created and joins :attr:`weights`.

        ``initializer`` is a name, a function ``f(shape, dtype)``, or the value itself.

        Raises: ValueError for an unknown initializer, and for a value or ``shape`` that is not the variable's.
        """
        if shape is not None and tuple(shape) != tuple(var.shape):
            raise ValueError(f"slot {slot_name!r} has the shape of {var.name!r}, {list(var.shape)}, not {list(shape)}")
        return self.slots.add(var, slot_name, initializer)

    def get_slot(self, var: Variable, slot_name: str) -> Variable:
        """Return a slot variable.

        Raises: KeyError if there is none.
        """
        return self.slots.get(var, slot_name)

    def get_slot_names(self) -> list[str]:
        """Return the names of the slots, in the order in which they were first created."""
        return list(self.slots.names)

    def add_weight(
        self,
        name: str,
        shape: Sequence[int],
        dtype: Any = None,
        initializer: Any = "zeros",
        trainable: bool | None = None,
        synchronization: VariableSynchronization = VariableSynchronization.AUTO,
        aggregation: VariableAggregation = VariableAggregation.NONE,
    ) -> Variable:
        """Return a new variable that belongs to the optimizer's state, but not to :attr:`weights`.

        ``dtype`` is float32 unless given; ``initializer`` is a name, a function ``f(shape, dtype)``, or the value.
        ``trainable=None`` means True, unless ``synchronization`` is ON_READ. A weight of the same name is replaced.

        Raises: ValueError for an unknown initializer, and for ``trainable=True`` with ON_READ.
        """
        dtype = np.dtype(np.float32 if dtype is None else dtype)
        if isinstance(initializer, str) or callable(initializer):
            value = initializers.get(initializer)(tuple(shape), dtype)
        else:
            value = np.broadcast_to(np.asarray(initializer), tuple(shape))
        weight = Variable(
            np.asarray(value).astype(dtype),
            trainable=trainable,
            name=f"{self._name}/{name}",
            dtype=dtype,
            synchronization=synchronization,
            aggregation=aggregation,
        )
        self._own_weights[name] = weight
        return weight

    @property
    def weights(self) -> list[Variable]:
        """``iterations``, slots and what a class keeps beside them, in the order of creation; empty before it."""
        return list(self._weights)

    @property
    def variables(self) -> CallableList:
        """``weights``: as an attribute, as Keras has them since TensorFlow 2.11, or called, as before."""
        return CallableList(self.weights)

    def get_weights(self) -> list[Array]:
        """Return copies of ``weights``."""
        return get_weights(self.weights)

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Assign to ``weights``.

        Raises: ValueError if their number or a shape differs.
        """
        set_weights(self._name, self.weights, weights)
