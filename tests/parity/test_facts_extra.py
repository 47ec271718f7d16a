"""Facts about what Keras 3 added, and about scaled losses."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from distopt.keras import optimizers
from distopt.optimizers import RuleOptimizer, rule_of
from distopt.variable import Variable
from tests.parity.facts import fact


def adagrad_keras3_step(variable: Any, accumulator: Any, gradient: Any, learning_rate: Any, epsilon: Any) -> Any:
    accumulator = accumulator + gradient * gradient
    return variable - learning_rate * gradient / np.sqrt(accumulator + epsilon), accumulator


class Keras3Adagrad(RuleOptimizer):
    """Adagrad with epsilon inside the root, as a user who needs it writes it."""

    rule = rule_of(adagrad_keras3_step)
    defaults: ClassVar = {"learning_rate": 0.001, "epsilon": 1e-7}
    initial_slots: ClassVar = {"accumulator": 0.1}


def variable_of(value: Any) -> Variable:
    return Variable(np.asarray(value, np.float32))


def apply(optimizer: Any, variable: Variable, gradient: float) -> None:
    optimizer.apply_gradients([(np.float32(gradient), variable)])


def close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(np.asarray(found, np.float64), np.asarray(expected, np.float64), rtol=1e-5, atol=1e-6)


def test_adagrad_with_epsilon_inside_the_root_is_a_rule_of_ones_own() -> None:
    variable = variable_of([0.0])
    Keras3Adagrad(1.0, 1.0).apply_gradients([(np.ones(1, np.float32), variable)])
    close(variable.numpy(), fact("F034")["result"])


def test_legacy_loss_scale_halves_on_non_finite_gradients_and_counts_the_step() -> None:
    variable = variable_of(1.0)
    optimizer = optimizers.LossScaleOptimizer(optimizers.SGD(1.0), initial_scale=8, dynamic_growth_steps=2)
    found = []
    for gradient in (1.0, 1.0, np.inf, 1.0, np.nan):
        apply(optimizer, variable, gradient)
        counter = optimizer.dynamic_counter
        assert counter is not None
        found.append([variable.numpy(), optimizer.loss_scale.numpy(), counter.numpy(), optimizer.iterations.numpy()])
    close(found, fact("F123")["result"])


def test_keras_3_loss_scale_unscales_and_does_not_count_a_step_that_is_left_out() -> None:
    variable = variable_of(1.0)
    optimizer = optimizers.LossScaleOptimizerV3(optimizers.SGD(1.0), initial_scale=8.0, dynamic_growth_steps=2)
    found = []
    for gradient in (8.0, 8.0, np.inf, 8.0):
        apply(optimizer, variable, gradient)
        scale, counter = optimizer.dynamic_scale.numpy(), optimizer.step_counter.numpy()
        found.append([variable.numpy(), scale, counter, optimizer.iterations.numpy()])
    close(found, fact("F124")["result"])


def test_the_average_overwrites_its_variable_at_the_frequency_asked_for() -> None:
    variable = variable_of(3.0)
    optimizer = optimizers.SGD(1.0, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=3)
    found = []
    for _ in range(3):
        apply(optimizer, variable, 1.0)
        found.append([variable.numpy(), optimizer.get_slot(variable, "average").numpy()])
    close(found, fact("F125")["result"])


def test_accumulated_gradients_make_one_step_with_their_mean() -> None:
    variable = variable_of(1.0)
    optimizer = optimizers.SGD(1.0, gradient_accumulation_steps=3)
    found = []
    for gradient in (1.0, 2.0, 6.0):
        apply(optimizer, variable, gradient)
        accumulator = optimizer.get_slot(variable, "gradient_accumulator").numpy()
        found.append([variable.numpy(), accumulator, optimizer.iterations.numpy()])
    close(found, fact("F126")["result"])


def test_weight_decay_comes_first_and_is_apart_from_the_gradient() -> None:
    found = []
    for gradient in (0.0, 1.0):
        variable = variable_of(1.0)
        apply(optimizers.SGD(0.1, weight_decay=0.5), variable, gradient)
        found.append(variable.numpy())
    close(found, fact("F127")["result"])
