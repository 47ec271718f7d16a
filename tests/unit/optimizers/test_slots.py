"""Slots: where their first values lie."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

import distopt as tf
from distopt.arena import place
from distopt.optimizers.slots import SlotStore

VALUES: tuple[Any, ...] = (
    "zeros",
    "ones",
    0.5,
    -0.0,
    np.nan,
    np.arange(3.0),
    lambda shape, dtype: np.full(shape, 7, dtype),
)


def as_array(value: Any) -> np.ndarray:
    named = {"zeros": 0.0, "ones": 1.0}
    value = named.get(value, value) if isinstance(value, str) else value
    return np.broadcast_to(value(3, np.float32) if callable(value) else value, 3).astype(np.float32)


@pytest.mark.parametrize("first", VALUES)
def test_slots_of_one_buffer_begin_with_values_of_their_own(first: Any) -> None:
    variables = [tf.Variable(np.ones(3, np.float32)) for _ in range(1 + 2 * len(VALUES))]
    place(variables)
    store, given = SlotStore("test"), (first, *VALUES, *VALUES)
    for variable, value in zip(variables, given, strict=True):
        store.add(variable, "slot", value)
    for kept in (store, copy.deepcopy(store)):
        for variable, value in zip(variables, given, strict=True):
            assert kept.of(variable)["slot"].tobytes() == as_array(value).tobytes(), value
            kept.of(variable)["slot"][...] = 3.0
        (buffer,) = kept.buffers(variables[0].placement[0]).values()
        assert all(np.shares_memory(buffer, kept.of(variable)["slot"]) for variable in variables)
