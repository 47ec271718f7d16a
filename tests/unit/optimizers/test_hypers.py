from __future__ import annotations

from decimal import Context, Decimal
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from distopt.optimizers.hypers import HyperTable, bias_correction, decayed, power, through_float32
from distopt.schedules import ExponentialDecay
from distopt.variable import Variable


@pytest.mark.parametrize("base", [0.9, 0.999, 0.9999, 0.10000000149011612, 0.0, 1.0, 1.25, 5e-324, 2.0**-511])
@pytest.mark.parametrize("exponent", [0, 1, 2, 3, 10, 63, 64, 65, 129, 323, 324, 1000])
def test_power_is_the_exact_power_rounded_once(base: float, exponent: int) -> None:
    assert power(base, exponent) == float(Fraction(base) ** exponent)


def test_power_of_a_long_run_underflows_to_zero() -> None:
    assert power(0.5, 2_000_000) == 0.0


@pytest.mark.parametrize("base", [0.9, 0.8999999761581421, 0.9990000128746033, 0.99999])
def test_power_of_a_long_run_is_that_of_decimal_arithmetic(base: float) -> None:
    precise = Context(prec=60, traps=[])
    for exponent in (6_000, 6_999, 7_050, 7_064, 123_457, 700_001, 7_000_000):  # subnormal ones among them
        assert power(base, exponent) == float(precise.power(Decimal(base), exponent))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_bias_corrections_of_neighbouring_steps_are_those_of_each(dtype: Any) -> None:
    b1, b2 = dtype(0.9), dtype(0.999)
    one = dtype(1)
    for step in [*range(1, 40), 10_000, 3]:
        with np.errstate(all="ignore"):  # 0.999 is 1 in a bfloat16
            expected = np.sqrt(one - dtype(power(float(b2), step))) / (one - dtype(power(float(b1), step)))
        found = bias_correction(b1, b2, step)
        assert type(found) is dtype
        assert found == expected


def test_bias_correction_is_computed_in_the_dtype_of_the_betas() -> None:
    b1, b2 = np.float32(0.9), np.float32(0.999)
    correction = bias_correction(b1, b2, 2)
    assert correction.dtype == np.float32
    one = np.float32(1)
    expected = np.sqrt(one - np.float32(float(b2) ** 2)) / (one - np.float32(float(b1) ** 2))
    assert correction == expected


def test_a_number_reaches_float64_through_float32() -> None:
    table = HyperTable("opt")
    table.set("rate", 0.1)
    assert table.evaluate("rate", 0) == through_float32(0.1) == 0.10000000149011612


def test_a_callable_is_called_at_every_evaluation_and_a_float64_array_stays_exact() -> None:
    table = HyperTable("opt")
    values = iter([0.1, np.float64(0.1)])
    table.set("rate", lambda: next(values))
    assert table.evaluate("rate", 0) == 0.10000000149011612
    assert table.evaluate("rate", 1) == 0.1


def test_a_schedule_sees_the_steps_before_this_one() -> None:
    table = HyperTable("opt")
    table.set("rate", ExponentialDecay(1.0, 1, 0.5))
    assert [table.evaluate("rate", step) for step in (0, 1, 2)] == [1.0, 0.5, 0.25]


def test_reading_a_number_makes_a_variable_that_a_later_number_is_assigned_to() -> None:
    table = HyperTable("opt")
    table.set("rate", 0.5)
    variable = table.get("rate")
    assert isinstance(variable, Variable)
    assert (variable.dtype, variable.trainable) == (np.float32, False)
    table.set("rate", 0.25)
    assert table.get("rate") is variable
    assert float(variable.numpy()) == 0.25


def test_a_variable_takes_a_schedule_but_no_callable() -> None:
    table = HyperTable("opt")
    table.set("rate", 0.5)
    table.get("rate")
    with pytest.raises(TypeError, match="rate is a variable"):
        table.set("rate", lambda: 0.5)
    schedule = ExponentialDecay(1.0, 1, 0.5)
    table.set("rate", schedule)
    assert table.get("rate") is schedule


def test_a_variable_of_the_users_is_used_and_assigned_to() -> None:
    own = Variable(0.5, trainable=False)
    table = HyperTable("opt")
    table.set("rate", own)
    table.set("rate", 0.25)
    assert float(own.numpy()) == 0.25
    own.assign(0.125)
    assert table.evaluate("rate", 0) == 0.125


def test_decay_is_rounded_through_float32() -> None:
    assert decayed(1.0, 0.1, 1) == 1.0 / (1.0 + 0.10000000149011612)
