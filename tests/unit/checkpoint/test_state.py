"""The state hash: what enters, and what must not."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from distopt.checkpoint import DataPosition, TrainingState, VariableState, state_hash
from distopt.types import Array


def _state(**changes: Any) -> TrainingState:
    kernel = np.arange(6, dtype=np.float32).reshape(2, 3)
    variables = (
        VariableState(position=0, name="kernel:0", value=(kernel,), slots={"m": (kernel + 1,), "v": (kernel + 2,)}),
        VariableState(position=1, name="bias:0", value=(np.ones(3, np.float32),), slots={}),
    )
    state = TrainingState(
        iterations=7, variables=variables, position=DataPosition(epoch=1, step=2), job_digest="d", extras={}
    )
    return dataclasses.replace(state, **changes)


def _with_value(*copies: Array) -> TrainingState:
    return _state(variables=(VariableState(position=0, name="w", value=copies),))


def test_state_hash_is_the_documented_bytes() -> None:
    value, slot = np.array([[1.0, 2.0]], np.float32), np.array(3, np.int64)
    state = _state(
        iterations=140,
        variables=(VariableState(position=0, name="w", value=(value,), slots={"m": (slot,)}),),
        extras={"seed": np.array([5], np.uint16)},
    )
    expected = (
        b"iterations 140\n"
        b"variable 0 float32 [1,2] copies 1\n" + bytes.fromhex("0000803f00000040")
        + b"slot 0.0 int64 [] copies 1\n" + (3).to_bytes(8, "little")
        + b"extra seed uint16 [1] copies 1\n" + b"\x05\x00"
    )  # fmt: skip
    assert state_hash(state) == hashlib.sha256(expected).hexdigest()


@pytest.mark.parametrize(
    "changed",
    [
        _state(iterations=8),
        _state(variables=_state().variables[:1]),
        _state(extras={"a": np.zeros(1)}),
        _with_value(np.zeros(4, np.float32)),
        _with_value(np.zeros(4, np.float64)),
        _with_value(np.zeros((2, 2), np.float32)),
        _with_value(np.array([0, 0, 0, -0.0], np.float32)),
        _with_value(np.zeros(4, np.float32), np.ones(4, np.float32)),
        _with_value(np.ones(4, np.float32), np.zeros(4, np.float32)),
    ],
)
def test_state_hash_of_states_that_differ_in_a_bit_differs(changed: TrainingState) -> None:
    others = [_state(), _with_value(np.full(4, 9, np.float32))]
    assert state_hash(changed) not in {state_hash(other) for other in others}


def test_state_hash_of_all_distinct_arrays_is_distinct() -> None:
    values = [
        np.zeros(4, np.float32),
        np.zeros(4, np.int32),
        np.zeros((2, 2), np.float32),
        np.array([0, 0, 0, -0.0], np.float32),
    ]
    assert len({state_hash(_with_value(value)) for value in values}) == len(values)


def test_state_hash_ignores_names_position_in_data_and_job() -> None:
    renamed = tuple(dataclasses.replace(v, name="other") for v in _state().variables)
    other = _state(variables=renamed, position=DataPosition(epoch=9, step=9), job_digest="other")
    assert state_hash(other) == state_hash(_state())


def test_state_hash_of_equal_copies_is_that_of_one() -> None:
    nan = np.array([np.nan, -0.0, 1.0], np.float32)
    assert state_hash(_with_value(nan, nan.copy(), nan.copy())) == state_hash(_with_value(nan))


@pytest.mark.parametrize(("dtype", "bits"), [(np.float32, np.uint32), (ml_dtypes.bfloat16, np.uint16)])
def test_state_hash_takes_any_nan_for_the_same_and_keeps_what_is_a_number(dtype: Any, bits: Any) -> None:
    values = np.array([1.0, np.nan, -0.0], dtype)
    other = values.copy()
    other.view(bits)[1] |= bits(1) << bits(8 * values.itemsize - 1) | bits(5)
    number = values.copy()
    number[2] = 0.0

    assert other.tobytes() != values.tobytes()
    assert state_hash(_with_value(other)) == state_hash(_with_value(values))
    assert state_hash(_with_value(values, other)) == state_hash(_with_value(values))
    assert state_hash(_with_value(number)) != state_hash(_with_value(values))


def test_state_hash_ignores_memory_order_and_byte_order() -> None:
    value = np.arange(6, dtype=np.float32).reshape(2, 3)
    for other in (np.asfortranarray(value), value.astype(">f4"), np.repeat(value, 2, axis=1)[:, ::2]):
        assert state_hash(_with_value(other)) == state_hash(_with_value(value))


def test_state_hash_ignores_the_order_of_variables_and_extras_but_not_of_slots() -> None:
    a, b = np.zeros(1), np.ones(1)
    assert state_hash(_state(variables=_state().variables[::-1])) == state_hash(_state())
    assert state_hash(_state(extras={"a": a, "b": b})) == state_hash(_state(extras={"b": b, "a": a}))

    def slots(order: dict[str, Array]) -> TrainingState:
        copies = {name: (array,) for name, array in order.items()}
        return _state(variables=(VariableState(position=0, name="w", value=(a,), slots=copies),))

    assert state_hash(slots({"m": a, "v": b})) != state_hash(slots({"m": b, "v": a}))


def test_state_hash_of_bfloat16_is_of_its_two_bytes() -> None:
    value = np.array([1.0], ml_dtypes.bfloat16)
    expected = hashlib.sha256(b"iterations 7\nvariable 0 bfloat16 [1] copies 1\n\x80\x3f").hexdigest()
    assert state_hash(_with_value(value)) == expected
