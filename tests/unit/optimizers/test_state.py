from __future__ import annotations

import numpy as np
import pytest

from distopt.optimizers import SGD, Adam
from distopt.variable import Variable


def variables() -> list[Variable]:
    return [Variable(np.arange(n, dtype=np.float32), name=f"v{n}") for n in (2, 5)]


def test_a_restored_optimizer_goes_on_with_the_same_bits() -> None:
    first, optimizer = variables(), Adam(0.1)
    for step in range(3):
        optimizer.apply_gradients([(np.full(v.shape, step + 1.0, np.float32), v) for v in first])
    optimizer.learning_rate = 0.05
    state = optimizer.state()
    assert state.iterations == 3
    assert [list(slots) for slots in state.slots] == [["m", "v"]] * 2

    second, restored = variables(), Adam(0.1)
    restored.build(second)
    for old, new in zip(first, second, strict=True):
        new.assign(old.numpy())
    restored.load_state(state)
    for owner, owned in ((optimizer, first), (restored, second)):
        owner.apply_gradients([(np.ones(v.shape, np.float32), v) for v in owned])
    for old, new in zip(first, second, strict=True):
        assert old.numpy().tobytes() == new.numpy().tobytes()


def test_state_is_a_copy() -> None:
    (variable, _), optimizer = variables(), SGD(0.1, momentum=0.5)
    optimizer.apply_gradients([(np.ones(2, np.float32), variable)])
    state = optimizer.state()
    optimizer.apply_gradients([(np.ones(2, np.float32), variable)])
    np.testing.assert_array_equal(state.slots[0]["momentum"][0], np.full(2, -np.float32(0.1)))


def test_slots_of_split_variables_are_saved_and_restored_by_copy() -> None:
    (variable, _), optimizer = variables(), SGD(1.0, momentum=0.5)
    optimizer.build([variable])
    variable.split([0, 1])
    optimizer.split_slots([variable])
    for replica in (0, 1):
        optimizer.finish_pairs([(np.full(2, replica + 1.0, np.float32), variable)], optimizer.step_hypers(), replica)
    state = optimizer.state()
    assert [copy[0] for copy in state.slots[0]["momentum"]] == [-1, -2]
    optimizer.finish_pairs([(np.ones(2, np.float32), variable)], optimizer.step_hypers(), 0)
    optimizer.load_state(state)
    assert optimizer.slots.copy_of(variable, 0)["momentum"][0] == -1
    assert optimizer.slots.copy_of(variable, 1)["momentum"][0] == -2


def test_a_state_that_does_not_fit_changes_nothing() -> None:
    two, optimizer = variables(), Adam()
    optimizer.apply_gradients([(np.ones(v.shape, np.float32), v) for v in two])
    other = SGD(0.1, momentum=0.9)
    other.build(two)
    with pytest.raises(ValueError, match="has the slots"):
        other.load_state(optimizer.state())
    other.load_state(other.state())
    fewer = Adam()
    fewer.build(two[:1])
    with pytest.raises(ValueError, match="2 variables"):
        fewer.load_state(optimizer.state())
    assert int(fewer.iterations.numpy()) == 0
