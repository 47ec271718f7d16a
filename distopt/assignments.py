"""What the assigning methods of a variable do to the stored array: one function each, by the method's name.

A method ``assign*`` takes a value of the variable's shape; a method ``scatter_*`` takes IndexedSlices and touches the
rows that they name, duplicates one after another from left to right.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from distopt.indexed_slices import IndexedSlices
from distopt.tensor import Operand
from distopt.types import Array, Shape


def _by_row(ufunc: Any) -> Callable[[Array, Any], Any]:
    return lambda stored, slices: ufunc.at(stored, slices.indices, slices.values.numpy())


def _scatter_update(stored: Array, slices: Any) -> None:
    stored[slices.indices] = slices.values.numpy()


_ASSIGNMENTS: dict[str, Callable[[Array, Any], Any]] = {
    "assign": lambda stored, value: np.copyto(stored, value),
    "assign_add": lambda stored, value: np.add(stored, value, out=stored),
    "assign_sub": lambda stored, value: np.subtract(stored, value, out=stored),
}
_SCATTERS: dict[str, Callable[[Array, Any], Any]] = {
    "scatter_add": _by_row(np.add),
    "scatter_sub": _by_row(np.subtract),
    "scatter_mul": _by_row(np.multiply),
    "scatter_div": _by_row(np.divide),
    "scatter_min": _by_row(np.minimum),
    "scatter_max": _by_row(np.maximum),
    "scatter_update": _scatter_update,
}
OPERATIONS: dict[str, Callable[[Array, Any], Any]] = {**_ASSIGNMENTS, **_SCATTERS}
"""By the name of the method: a function that changes ``stored`` in place, given what :func:`operand` returned."""


def is_scatter(operation: str) -> bool:
    """Return whether the method ``operation`` takes IndexedSlices."""
    return operation in _SCATTERS


def operand(operation: str, value: Any, name: str, shape: Shape, dtype: np.dtype[Any]) -> Any:
    """Return ``value`` as ``OPERATIONS[operation]`` takes it, for a variable of that name, shape and dtype.

    Raises: ValueError for another shape, a row that does not exist, or a tensor of another dtype; TypeError for a dtype
    that cannot be cast, or anything but IndexedSlices where rows are written.
    """
    return _rows(value, name, shape, dtype) if is_scatter(operation) else _whole(value, name, shape, dtype)


def _whole(value: Any, name: str, shape: Shape, dtype: np.dtype[Any]) -> Array:
    array: Array = value.numpy() if isinstance(value, Operand) else np.asarray(value)
    if array.shape != shape:
        raise ValueError(f"{name} has shape {shape}; a value of shape {array.shape} cannot be assigned")
    if array.dtype != dtype:
        if isinstance(value, Operand):
            raise ValueError(f"{name} has dtype {dtype}; cast the {array.dtype} tensor first")
        array = array.astype(dtype, casting="same_kind")
    return array


def _rows(value: Any, name: str, shape: Shape, dtype: np.dtype[Any]) -> IndexedSlices:
    if not isinstance(value, IndexedSlices):
        raise TypeError(f"rows of {name} are written from IndexedSlices, not from a {type(value).__name__}")
    if not shape or value.values.shape[1:] != shape[1:]:
        raise ValueError(f"{name} has shape {shape}; rows of shape {value.values.shape[1:]} do not fit")
    if value.dtype != dtype:
        raise ValueError(f"{name} has dtype {dtype}; cast the rows of {value.dtype} first")
    wrong = value.indices[(value.indices < 0) | (value.indices >= shape[0])]
    if len(wrong):
        raise ValueError(f"{name} has rows 0..{shape[0] - 1}, and no row {wrong[0]}")
    return value
