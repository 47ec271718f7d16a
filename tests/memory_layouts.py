"""The ways in which an array may lie in memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from distopt.types import Array


def _misaligned(array: Array) -> Array:
    raw = np.zeros(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    raw[...] = array
    return raw


LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "misaligned": _misaligned,
    "every other element": lambda array: np.repeat(array, 2, axis=-1)[..., ::2] if array.ndim else array,
    "backwards": lambda array: array[..., ::-1].copy()[..., ::-1] if array.ndim else array,
    "by columns": lambda array: np.array(array, order="F"),
}
"""By what they are called, functions that return an array of the same elements."""
