from __future__ import annotations

import numpy as np
import pytest

from distopt import schedules


def test_exponential_decay_staircase_holds_between_steps() -> None:
    schedule = schedules.ExponentialDecay(0.1, 10, 0.96, staircase=True)
    np.testing.assert_allclose([schedule(s) for s in (9, 10, 19, 20)], [0.1, 0.096, 0.096, 0.09216], rtol=1e-6)


def test_a_boundary_belongs_to_the_piece_before_it() -> None:
    schedule = schedules.PiecewiseConstantDecay([100, 200], [1.0, 0.5, 0.1])
    np.testing.assert_allclose([schedule(s) for s in (0, 100, 101, 200, 201)], [1, 1, 0.5, 0.5, 0.1], rtol=1e-6)


def test_piecewise_constant_decay_refuses_wrong_lengths() -> None:
    with pytest.raises(ValueError, match="2 boundaries need 3 values"):
        schedules.PiecewiseConstantDecay([1, 2], [1.0, 2.0])


def test_a_zero_decay_steps_is_accepted_and_gives_nan_at_step_zero() -> None:
    assert np.isnan(schedules.ExponentialDecay(0.1, 0, 0.5)(0))


def test_the_base_class_has_no_rate_and_no_config() -> None:
    with pytest.raises(NotImplementedError):
        schedules.LearningRateSchedule()(0)
    with pytest.raises(NotImplementedError):
        schedules.LearningRateSchedule().get_config()


def test_a_float64_initial_rate_makes_the_arithmetic_float64() -> None:
    schedule = schedules.ExponentialDecay(np.array(0.1), 10, 0.5)
    assert schedule(10) == 0.1 * 0.5


def test_a_custom_schedule_survives_only_with_its_class() -> None:
    class Halving(schedules.LearningRateSchedule):
        def __init__(self, start: float) -> None:
            self.start = start

        def __call__(self, step: int) -> float:
            return self.start / 2**step

        def get_config(self) -> dict[str, float]:
            return {"start": self.start}

    config = schedules.serialize(Halving(1.0))
    with pytest.raises(TypeError, match="Halving"):
        schedules.deserialize(config)
    assert schedules.deserialize(config, {"Halving": Halving})(2) == 0.25


def test_the_serialised_form_names_the_keras_module() -> None:
    config = schedules.serialize(schedules.ExponentialDecay(0.1, 10, 0.5))
    assert config == {
        "module": "keras.optimizers.schedules",
        "class_name": "ExponentialDecay",
        "config": {
            "initial_learning_rate": 0.1,
            "decay_steps": 10,
            "decay_rate": 0.5,
            "staircase": False,
            "name": None,
        },
        "registered_name": None,
    }


def test_boundaries_that_do_not_ascend_are_refused_where_two_values_apply() -> None:
    schedule = schedules.PiecewiseConstantDecay([20, 10], [1.0, 0.5, 0.25])
    assert float(schedule(5)) == 1.0
    with pytest.raises(ValueError, match=r"step 15 is in the reach of the values \[1.0, 0.25\]"):
        schedule(15)
