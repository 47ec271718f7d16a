from __future__ import annotations

import numpy as np
import pytest

from distopt.indexed_slices import IndexedSlices
from distopt.optimizers import get_engine, rules
from distopt.optimizers.rule import Rows, Rule, SparseUse
from distopt.optimizers.sparse import update_rows


def slices() -> IndexedSlices:
    return IndexedSlices(np.float32([[1, 1], [2, 2], [4, 4]]), [2, 0, 2], (3, 2))


@pytest.mark.parametrize("engine", ["numpy", "compiled"])
def test_plain_sgd_adds_occurrences_one_by_one_in_order(engine: str) -> None:
    # In float32, 2**24 absorbs 1 when ones come one by one; summed first they would count.
    variable = np.float32([2.0**24, 0])
    gradient = IndexedSlices(np.float32([-1, -1]), [0, 0], (2,))
    update_rows(get_engine(engine), rules.SGD, variable, [], gradient, [np.float32(1)])
    assert variable.tolist() == [2.0**24, 0]


@pytest.mark.parametrize("engine", ["numpy", "compiled"])
def test_momentum_touches_the_rows_of_the_summed_gradient_alone(engine: str) -> None:
    variable, momentum = np.zeros((3, 2), np.float32), np.ones((3, 2), np.float32)
    scalars = [np.float32(1), np.float32(0.5)]
    update_rows(get_engine(engine), rules.MOMENTUM_KERAS, variable, [momentum], slices(), scalars)
    assert momentum.tolist() == [[-1.5, -1.5], [1, 1], [-4.5, -4.5]]
    assert variable.tolist() == [[-1.5, -1.5], [0, 0], [-4.5, -4.5]]


@pytest.mark.parametrize("engine", ["numpy", "compiled"])
def test_adam_moves_every_row(engine: str) -> None:
    variable = np.zeros((3, 2), np.float32)
    m, v = np.ones((3, 2), np.float32), np.ones((3, 2), np.float32)
    scalars = [np.float32(x) for x in (0.5, 0.5, 0.5, 0.5, 0.5, 1e-7)]
    update_rows(get_engine(engine), rules.ADAM, variable, [m, v], slices(), scalars)
    assert m.tolist() == [[1.5, 1.5], [0.5, 0.5], [3, 3]]
    assert v.tolist() == [[2.5, 2.5], [0.5, 0.5], [13, 13]]
    assert (variable < 0).all()


def decayed_sum(variable: float, total: float, gradient: float, rate: float) -> tuple[float, float]:
    total = rate * total + gradient
    return variable - total, total


def test_a_rule_may_decay_all_slot_rows_and_move_the_touched_ones() -> None:
    rule = Rule("decayed_sum", decayed_sum, ("total",), ("rate",), SparseUse(Rows.TOUCHED, Rows.ALL))
    variable, total = np.zeros((3, 2), np.float32), np.ones((3, 2), np.float32)
    update_rows(get_engine("numpy"), rule, variable, [total], slices(), [np.float32(0.5)])
    assert total.tolist() == [[2.5, 2.5], [0.5, 0.5], [5.5, 5.5]]
    assert variable.tolist() == [[-2.5, -2.5], [0, 0], [-5.5, -5.5]]


def test_contradictory_declarations_are_refused() -> None:
    with pytest.raises(ValueError, match="occurrences"):
        SparseUse(Rows.OCCURRENCES, Rows.TOUCHED)
    with pytest.raises(ValueError, match="every row"):
        SparseUse(Rows.ALL, Rows.TOUCHED)


def test_no_rows_change_nothing() -> None:
    variable = np.ones((3, 2), np.float32)
    empty = IndexedSlices(np.zeros((0, 2), np.float32), [], (3, 2))
    update_rows(get_engine("numpy"), rules.SGD, variable, [], empty, [np.float32(1)])
    update_rows(
        get_engine("compiled"),
        rules.MOMENTUM_KERAS,
        variable,
        [np.zeros((3, 2), np.float32)],
        empty,
        [np.float32(1), np.float32(1)],
    )
    assert (variable == 1).all()
