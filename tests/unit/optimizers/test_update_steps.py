"""Optimizers of one's own by ``build`` and ``update_step``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import distopt as tf


class Momentum(tf.keras.optimizers.Optimizer):
    """``m' = mu * m - lr * g``, ``w' = w + m'``."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.momentum = 0.5
        self.builds = 0

    def build(self, variables: Any) -> None:
        super().build(variables)
        self.builds += 1
        self.momentums = [self.add_variable_from_reference(variable, name="momentum") for variable in variables]

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        m = self.momentums[self._get_variable_index(variable)]
        self.assign(m, tf.subtract(tf.multiply(m, self.momentum), tf.multiply(np.asarray(gradient), learning_rate)))
        self.assign_add(variable, m)


@pytest.mark.parametrize("num_replicas", [1, 2, 5])
def test_update_step_is_carried_out_on_the_sum_over_replicas(num_replicas: int) -> None:
    strategy = tf.distribute.MirroredStrategy(num_replicas)
    with strategy.scope():
        variables = [tf.Variable(1.0), tf.Variable([2.0, 3.0])]
        optimizer, expected = Momentum(learning_rate=0.25), tf.keras.optimizers.SGD(0.25, momentum=0.5)
        others = [tf.Variable(1.0), tf.Variable([2.0, 3.0])]

    def step() -> None:
        weight = tf.distribute.get_replica_context().replica_id_in_sync_group + 1.0
        for each, values in ((optimizer, variables), (expected, others)):
            each.apply_gradients([(tf.fill(v.shape, weight), v) for v in values])

    for _ in range(3):
        strategy.run(step)
    for found, wanted in zip(variables, others, strict=True):
        np.testing.assert_array_equal(found.numpy(), wanted.numpy())
    assert optimizer.builds == 1
    assert int(optimizer.iterations) == 3
    assert len(optimizer.weights) == 3


def test_update_step_gets_rows_as_they_are_and_the_rate_of_its_schedule() -> None:
    seen: list[Any] = []

    class Notes(tf.keras.optimizers.Optimizer):
        def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
            seen.append((gradient, float(learning_rate)))
            self.assign_sub(variable, gradient.numpy() * learning_rate)

    schedule = tf.keras.optimizers.schedules.PiecewiseConstantDecay([0], [0.5, 0.25])
    table, optimizer = tf.Variable(np.zeros((3, 1), np.float32)), Notes(learning_rate=schedule)
    for _ in range(2):
        optimizer.apply_gradients([(tf.IndexedSlices(np.ones((2, 1), np.float32), [1, 1], (3, 1)), table)])
    assert [rate for _, rate in seen] == [0.5, 0.25]
    assert all(isinstance(gradient, tf.IndexedSlices) for gradient, _ in seen)
    assert table.numpy().tolist() == [[0.0], [-1.5], [0.0]]


def test_variables_that_come_later_are_refused_where_build_was_written_for_the_first() -> None:
    first, later = tf.Variable(1.0), tf.Variable(1.0, name="later")
    optimizer = Momentum(learning_rate=1.0)
    optimizer.apply_gradients([(tf.constant(1.0), first)])
    with pytest.raises(ValueError, match="later:0: not among the variables"):
        optimizer.apply_gradients([(tf.constant(1.0), later)])
    with pytest.raises(ValueError, match="later:0 is not a variable"):
        optimizer._get_variable_index(later)
    optimizer.apply_gradients([(tf.constant(0.0), first)])
    assert float(first) == -0.5


def test_optimizer_without_a_rate_tells_what_it_lacks() -> None:
    with pytest.raises(KeyError, match="learning_rate"):
        Momentum().apply_gradients([(tf.constant(1.0), tf.Variable(1.0))])


class MomentumOfTwo(tf.keras.optimizers.Optimizer):
    """The same, written as for TensorFlow 2.11 to 2.15."""

    def __init__(self, learning_rate: Any = 0.25, name: str = "MomentumOfTwo", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self._learning_rate = self._build_learning_rate(learning_rate)

    def build(self, var_list: Any) -> None:
        super().build(var_list)
        self.momentums = [
            self.add_variable_from_reference(model_variable=var, variable_name="m", initial_value=tf.zeros(var.shape))
            for var in var_list
        ]

    def update_step(self, gradient: Any, variable: Any) -> None:
        m = self.momentums[self._index_dict[self._var_key(variable)]]
        m.assign(m * 0.5 - gradient * tf.cast(self.learning_rate, variable.dtype))
        variable.assign_add(m)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "learning_rate": self._serialize_hyperparameter(self._learning_rate)}


@pytest.mark.parametrize("schedule", [False, True])
def test_update_step_of_two_arguments_asks_for_the_rate_of_the_step(schedule: bool) -> None:
    decay = tf.keras.optimizers.schedules.ExponentialDecay(0.25, 1, 0.5)
    rate: Any = decay if schedule else 0.25
    w, other = tf.Variable([2.0, 3.0], name="w"), tf.Variable([2.0, 3.0])
    optimizer, expected = MomentumOfTwo(rate, clipvalue=0.5), tf.keras.optimizers.SGD(rate, momentum=0.5, clipvalue=0.5)
    for _ in range(3):
        for each, variable in ((optimizer, w), (expected, other)):
            each.apply_gradients([(tf.constant([1.0, -0.25]), variable)])
    np.testing.assert_array_equal(w.numpy(), other.numpy())
    assert float(optimizer.learning_rate) == (0.25 / 8 if schedule else 0.25)
    assert [v.name for v in optimizer.variables] == ["MomentumOfTwo/iter:0", "MomentumOfTwo/w/m:0"]
    again = MomentumOfTwo.from_config(optimizer.get_config())
    assert again.get_config() == optimizer.get_config()
    optimizer.learning_rate = 1.0
    optimizer.apply_gradients([(tf.constant([0.5, 0.5]), w)])
    assert float(optimizer.learning_rate) == 1.0
    with pytest.raises(TypeError, match="needs the variable"):
        optimizer.add_variable_from_reference(name="m")
