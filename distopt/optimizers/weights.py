"""Reading and replacing the list of an optimizer's weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from distopt.graph import GraphVariable
from distopt.types import Array
from distopt.variable import Variable


def get_weights(variables: Sequence[Variable]) -> list[Array]:
    """Return a copy of the value of each variable; of a graph's, that in the default session."""
    return [_value_of(variable) for variable in variables]


def _value_of(variable: Variable) -> Array:
    return np.asarray(variable.eval()) if isinstance(variable, GraphVariable) else variable.numpy()


def with_iterations(variables: Sequence[Variable], weights: Sequence[Any]) -> list[Any]:
    """Return ``weights`` with the count of steps, 0, put first if just that is missing: lists of old Keras lack it."""
    return [np.array(0), *weights] if len(weights) == len(variables) - 1 else list(weights)


def set_weights(owner: str, variables: Sequence[Variable], weights: Sequence[Any]) -> None:
    """Assign each of ``weights`` to its variable, on every copy.

    Raises: ValueError, before anything changes, if their number or a shape differs.
    """
    arrays = [np.asarray(weight) for weight in weights]
    if len(arrays) != len(variables):
        raise ValueError(f"{owner} has {len(variables)} weights, not {len(arrays)}; has it made its first step?")
    for variable, array in zip(variables, arrays, strict=True):
        if array.shape != variable.shape:
            raise ValueError(f"weight {variable.name!r} has shape {list(variable.shape)}, not {list(array.shape)}")
    for variable, array in zip(variables, arrays, strict=True):
        variable.write_all("assign", array.astype(variable.dtype))
