"""Recorded facts about the legacy optimizers: what single steps give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

import distopt as tf
from tests.parity.facts import fact

optimizers = tf.keras.optimizers


def variable(*values: float, dtype: Any = np.float32) -> tf.Variable:
    return tf.Variable(np.array(values, dtype))


def steps(optimizer: Any, gradients: Sequence[Sequence[float]], start: tf.Variable) -> list[list[float]]:
    """Return the value of ``start`` after each step."""
    values = []
    for gradient in gradients:
        optimizer.apply_gradients([(tf.Tensor(np.array(gradient, start.dtype)), start)])
        values.append(start.numpy().tolist())
    return values


def slot(optimizer: Any, of: tf.Variable, name: str) -> Any:
    return optimizer.get_slot(of, name).numpy()


def close(found: Any, expected: Any, rtol: float = 1e-6) -> None:
    np.testing.assert_allclose(np.array(found, np.float64), np.array(expected, np.float64), rtol=rtol, atol=1e-12)


def test_sgd_minimizes_a_loss_over_two_variables() -> None:
    v0, v1 = variable(1, 2), variable(3, 4)
    count = optimizers.SGD(3.0).minimize(lambda: 5 * v0 + 3 * v1, [v0, v1])
    assert [v0.numpy().tolist(), v1.numpy().tolist(), int(count)] == fact("F002")["result"]


def test_sgd_follows_the_gradients_of_a_quadratic_loss() -> None:
    v1, v2 = tf.Variable(1.0), tf.Variable(2.0)
    optimizers.SGD(0.1).minimize(lambda: 3 * v1 * v1 + 2 * v2 * v2, [v1, v2])
    close([v1.numpy(), v2.numpy()], fact("F003")["result"])


def test_a_learning_rate_assigned_between_steps_holds_from_then_on() -> None:
    v1, v2 = tf.Variable(1.0), tf.Variable(1.0)
    optimizer = optimizers.SGD(0.1)
    values = []
    for rate in (0.1, 0.05):
        optimizer.learning_rate = rate
        optimizer.minimize(lambda: 3 * v1 + 2 * v2, [v1, v2])
        values.append([v1.numpy(), v2.numpy()])
    close(values, fact("F004")["result"])


def test_momentum_of_sgd_contains_the_learning_rate() -> None:
    w, optimizer = variable(0), optimizers.SGD(0.1, momentum=0.9)
    found = [[steps(optimizer, [[1]], w)[0][0], slot(optimizer, w, "momentum")[0]] for _ in range(3)]
    close(found, fact("F021")["result"])


def test_a_changed_rate_does_not_rescale_the_momentum_of_sgd() -> None:
    w, optimizer = variable(0), optimizers.SGD(0.1, momentum=0.9)
    steps(optimizer, [[1], [1]], w)
    optimizer.learning_rate = 0.01
    keras, v1 = fact("F022")["result"]
    close(steps(optimizer, [[1]], w)[0], keras)
    assert keras != v1


def test_the_mean_square_of_rmsprop_starts_at_zero() -> None:
    w, optimizer = variable(0), optimizers.RMSprop(0.1)
    optimizer.build([w])
    _, keras = fact("F029")["result"]
    assert slot(optimizer, w, "rms").tolist() == keras


def test_epsilon_of_rmsprop_is_inside_the_root_with_momentum_and_outside_without() -> None:
    found = [
        steps(optimizers.RMSprop(1.0, rho=0.9, momentum=momentum, epsilon=1.0), [[1]], variable(0))[0]
        for momentum in (0.0, 1e-6)
    ]
    close(found, fact("F030")["result"])


def test_rmsprop_decays_all_rows_without_momentum_and_touched_ones_with_it() -> None:
    found = []
    for momentum in (0.0, 0.5):
        w = tf.Variable(np.zeros((3, 1), np.float32))
        optimizer = optimizers.RMSprop(1.0, momentum=momentum)
        for row in (0, 1):
            optimizer.apply_gradients([(tf.IndexedSlices(np.ones((1, 1), np.float32), [row], (3, 1)), w)])
        found.append(slot(optimizer, w, "rms"))
    close(found, fact("F031")["result"])


def test_epsilon_of_adagrad_is_outside_the_root() -> None:
    optimizer = optimizers.Adagrad(1.0, initial_accumulator_value=0.1, epsilon=1.0)
    close(steps(optimizer, [[1]], variable(0))[0], fact("F032")["result"])


def test_epsilon_of_adam_is_added_to_the_uncorrected_root() -> None:
    close(steps(optimizers.Adam(0.1, epsilon=1.0), [[1]], variable(0))[0], fact("F035")["result"])


def test_amsgrad_keeps_the_largest_second_moment() -> None:
    w, optimizer = variable(0), optimizers.Adam(0.1, beta_1=0.5, beta_2=0.5, amsgrad=True)
    values, vhat = fact("F036")["result"]
    close(steps(optimizer, [[10], [0.1]], w), values)
    close(slot(optimizer, w, "vhat"), vhat)


def test_bias_correction_of_adam_counts_the_optimizers_steps_not_the_variables() -> None:
    a, b, optimizer = variable(0), variable(0), optimizers.Adam(0.1)
    one = tf.Tensor(np.ones(1, np.float32))
    optimizer.apply_gradients([(one, a)])
    optimizer.apply_gradients([(one, a), (one, b)])
    close([a.numpy(), b.numpy()], np.reshape(fact("F037")["result"], (2, 1)))


def test_adamax_takes_the_largest_gradient() -> None:
    w, optimizer = variable(0), optimizers.Adamax(0.1)
    values, m, v = fact("F038")["result"]
    close(steps(optimizer, [[2], [1]], w), values)
    close([slot(optimizer, w, "m"), slot(optimizer, w, "v")], [m, v])


def test_nadam_keeps_the_product_of_its_momenta() -> None:
    optimizer = optimizers.Nadam(0.1)
    values, product = fact("F039")["result"]
    close(steps(optimizer, [[1], [1]], variable(0)), values)
    (cache,) = [weight for weight in optimizer.weights if "momentum_cache" in weight.name]
    close(cache.numpy(), product)


def test_adadelta_relates_updates_to_gradients() -> None:
    w, optimizer = variable(0), optimizers.Adadelta()
    value, grad, update = fact("F040")["result"]
    close(steps(optimizer, [[1]], w)[0], value)
    close([slot(optimizer, w, "accum_grad"), slot(optimizer, w, "accum_var")], [grad, update])


def test_ftrl_sets_elements_to_zero_whose_linear_term_is_within_l1() -> None:
    w, optimizer = variable(1), optimizers.Ftrl(0.5, l1_regularization_strength=0.3)
    value, linear, accumulator = fact("F041")["result"]
    assert steps(optimizer, [[0.2]], w)[0] == value
    close([slot(optimizer, w, "linear"), slot(optimizer, w, "accumulator")], [linear, accumulator])


def test_the_accumulator_of_ftrl_sees_the_gradient_without_shrinkage() -> None:
    w, optimizer = variable(1), optimizers.Ftrl(0.5, l2_shrinkage_regularization_strength=0.2)
    value, accumulator = fact("F042")["result"]
    close(steps(optimizer, [[1]], w)[0], value)
    close(slot(optimizer, w, "accumulator"), accumulator)
