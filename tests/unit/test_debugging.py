"""Assertions on tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from distopt import debugging
from distopt.tensor import Tensor
from distopt.variable import Variable

X = Tensor(np.float32([1.0, 2.0, 3.0]))


@pytest.mark.parametrize(
    "call",
    [
        lambda: debugging.assert_equal(X, [1.0, 2.0, 3.0]),
        lambda: debugging.assert_less(X, 4),
        lambda: debugging.assert_less_equal(X, 3),
        lambda: debugging.assert_greater(X, 0),
        lambda: debugging.assert_greater_equal(Variable(X), 1),
        lambda: debugging.assert_positive(X),
        lambda: debugging.assert_non_negative(0.0),
        lambda: debugging.assert_near(X, X + 1e-7),
        lambda: debugging.assert_near(X, X + 0.01, atol=0.1),
        lambda: debugging.assert_rank(X, 1),
        lambda: debugging.assert_type(X, np.float32),
    ],
)
def test_assertion_that_holds_returns_none(call: Callable[[], Any]) -> None:
    assert call() is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: debugging.assert_equal(X, [1.0, 5.0, 3.0], "lengths"), r"lengths: x == y .* at \[1\]: 2.0 and 5.0"),
        (lambda: debugging.assert_equal(X, [1.0, 2.0]), r"shapes \(3,\) and \(2,\)"),
        (lambda: debugging.assert_less(X, 3), r"x < y .* at \[2\]: 3.0 and 3 \(1 of 3"),
        (lambda: debugging.assert_less_equal(X, 2), "x <= y"),
        (lambda: debugging.assert_greater(X, 1), "x > y"),
        (lambda: debugging.assert_greater_equal(X, 2), "x >= y"),
        (lambda: debugging.assert_positive([0.0]), "x > y"),
        (lambda: debugging.assert_non_negative([-1.0]), "x >= y"),
        (lambda: debugging.assert_near(X, X + 0.01), "close to"),
        (lambda: debugging.assert_rank(X, 2), "rank 2 is wanted"),
        (lambda: debugging.check_numerics([1.0, np.nan], "loss"), r"loss: element \[1\] is nan \(1 of 2\)"),
        (lambda: debugging.assert_all_finite(Tensor(np.inf), "loss"), r"loss: element \[\] is inf"),
    ],
)
def test_assertion_that_fails_names_the_place_and_both_values(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_assert_type_of_another_dtype_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="float64 is wanted, not float32"):
        debugging.assert_type(X, np.float64)


def test_check_numerics_returns_the_tensor() -> None:
    assert debugging.check_numerics(X, "x") is X
