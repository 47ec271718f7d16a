"""Optimizers of one's own, whose update is a method, as in TensorFlow."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

import distopt as tf
from distopt import replica_context
from distopt.comm.communicator import Traffic
from distopt.distribute import MirroredStrategy, MultiWorkerMirroredStrategy, SyncParameterServerStrategy
from distopt.errors import PlacementError
from distopt.testing import run_replicas

Optimizer = tf.keras.optimizers.Optimizer


class HeavyBall(Optimizer):
    """``m = mu m + g``, ``w = w - lr m``; rows of a sparse gradient are only subtracted."""

    def __init__(self, learning_rate: Any = 0.5, mu: Any = 0.5, name: str = "HeavyBall", **kwargs: Any) -> None:
        super().__init__(name, **kwargs)
        self._set_hyper("learning_rate", kwargs.get("lr", learning_rate))
        self._set_hyper("decay", self._initial_decay)
        self._set_hyper("mu", mu)

    def _create_slots(self, var_list: Any) -> None:
        for var in var_list:
            self.add_slot(var, "m")

    def _prepare_local(self, var_device: Any, var_dtype: Any, apply_state: Any) -> None:
        super()._prepare_local(var_device, var_dtype, apply_state)
        apply_state[var_device, var_dtype]["mu"] = self._get_hyper("mu", var_dtype)

    def _resource_apply_dense(self, grad: Any, var: Any, apply_state: Any = None) -> None:
        given = (apply_state or {}).get((var.device, var.dtype))
        coefficients = given or self._fallback_apply_state(var.device, var.dtype)
        m = self.get_slot(var, "m")
        m.assign(coefficients["mu"] * m + grad)
        var.assign_sub(coefficients["lr_t"] * m)

    def _resource_apply_sparse(self, grad: Any, var: Any, indices: Any, apply_state: Any = None) -> None:
        assert len(set(indices.tolist())) == len(indices), "duplicates are summed before"
        self._resource_scatter_add(var, indices, -apply_state[var.device, var.dtype]["lr_t"] * grad)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "learning_rate": self._serialize_hyperparameter("learning_rate"),
            "mu": self._serialize_hyperparameter("mu"),
        }


def expected(gradients: list[Any], start: Any, mu: float = 0.5, rate: float = 0.5) -> Any:
    value, m = np.array(start, np.float32), np.zeros(len(start), np.float32)
    for gradient in gradients:
        m = mu * m + np.array(gradient, np.float32)
        value = value - rate * m
    return value


def tensor(*values: float) -> tf.Tensor:
    return tf.Tensor(np.array(values, np.float32))


def test_dense_gradients_go_to_the_method_with_its_slots_and_hypers() -> None:
    w, optimizer = tf.Variable([1.0, 2.0]), HeavyBall()
    for gradient in ([1, 2], [4, -8]):
        optimizer.apply_gradients([(tensor(*gradient), w)])
    np.testing.assert_array_equal(w.numpy(), expected([[1, 2], [4, -8]], [1, 2]))
    assert [weight.name for weight in optimizer.weights] == ["HeavyBall/iter:0", "HeavyBall/Variable/m:0"]
    assert int(optimizer.iterations.numpy()) == 2


def test_rows_are_summed_before_the_sparse_method_sees_them() -> None:
    w, optimizer = tf.Variable([1.0, 1.0, 1.0]), HeavyBall()
    optimizer.apply_gradients([(tf.IndexedSlices(tensor(1, 2, 4), [2, 0, 2], (3,)), w)])
    np.testing.assert_array_equal(w.numpy(), [0.0, 1.0, -1.5])


def test_clips_schedules_constraints_and_minimize_work_around_the_method() -> None:
    rate = tf.keras.optimizers.schedules.PiecewiseConstantDecay([0], [1.0, 0.5])
    w = tf.Variable([4.0], constraint=lambda value: tf.maximum(value, 2.5))
    optimizer = HeavyBall(rate, mu=0.0, clipvalue=1.0)
    values = []
    for _ in range(3):
        optimizer.minimize(lambda: w * w, [w])
        values.append(float(w.numpy()[0]))
    assert values == [3.0, 2.5, 2.5]


@pytest.mark.parametrize("replicas", [1, 2, 3, 5, 8])
def test_replicas_sum_their_gradients_before_the_method(replicas: int) -> None:
    strategy = MirroredStrategy(replicas)
    with strategy.scope():
        w = tf.Variable([0.0])
    optimizer = HeavyBall()

    def step() -> None:
        replica = replica_context.current_replica("test").replica_id_in_sync_group
        optimizer.apply_gradients([(tensor(replica + 1), w)])

    strategy.run(step)
    strategy.run(step)
    total = replicas * (replicas + 1) / 2
    np.testing.assert_array_equal(w.numpy(), expected([[total]] * 2, [0]))
    assert int(optimizer.iterations.numpy()) == 2


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_have_the_bits_of_one_process(workers: int) -> None:
    def body(comm: Any) -> bytes:
        strategy = MultiWorkerMirroredStrategy(replicas=3, communicator=comm)
        with strategy.scope():
            w = tf.Variable([0.0])
        optimizer = HeavyBall(lambda: 0.1 * (1 + comm.rank))  # a rate that differs: replica 0's host decides

        def step() -> None:
            replica = replica_context.current_replica("test").replica_id_in_sync_group
            optimizer.apply_gradients([(tensor(1 / (replica + 1)), w)])

        for _ in range(3):
            strategy.run(step)
        return w.numpy().tobytes() + optimizer.get_slot(w, "m").numpy().tobytes()

    (alone,) = run_replicas(body, 1)
    assert run_replicas(body, workers) == [alone] * workers


def test_gradients_that_are_not_aggregated_update_each_replicas_copy() -> None:
    strategy = MirroredStrategy(2)
    with strategy.scope():
        w = tf.Variable([0.0])
    optimizer = HeavyBall()

    def step() -> None:
        replica = replica_context.current_replica("test").replica_id_in_sync_group
        optimizer.apply_gradients([(tensor(replica + 1), w)], experimental_aggregate_gradients=False)

    strategy.run(step)
    strategy.run(step)
    for replica in range(2):
        np.testing.assert_array_equal(w.copy_of(replica), expected([[replica + 1]] * 2, [0]))


def test_several_servers_refuse_the_method_by_name() -> None:
    class Link:
        rank, size, num_servers, traffic = 0, 1, 2, Traffic()

    strategy = SyncParameterServerStrategy(Link(), replicas=2)
    w, optimizer = tf.Variable([0.0]), HeavyBall()
    with pytest.raises(PlacementError, match=r"HeavyBall\._resource_apply_dense"):
        strategy.run(lambda: optimizer.apply_gradients([(tensor(1), w)]))


def test_a_missing_method_is_named_before_anything_changes() -> None:
    class OnlyDense(Optimizer):
        def _resource_apply_dense(self, grad: Any, var: Any, apply_state: Any = None) -> None:
            var.assign_sub(grad)

    a, b, optimizer = tf.Variable([1.0]), tf.Variable([1.0]), OnlyDense("OnlyDense")
    with pytest.raises(NotImplementedError, match=r"OnlyDense\._resource_apply_sparse must be defined"):
        optimizer.apply_gradients([(tensor(1), a), (tf.IndexedSlices(tensor(1), [0], (1,)), b)])
    assert a.numpy().tolist() == [1.0]
    with pytest.raises(NotImplementedError, match=r"Optimizer\._resource_apply_dense must be defined"):
        Optimizer("Plain").apply_gradients([(tensor(1), a)])


def test_a_method_may_call_the_rule_of_the_class_it_extends() -> None:
    class Halved(tf.keras.optimizers.Adam):
        def _resource_apply_dense(self, grad: Any, var: Any, apply_state: Any = None) -> None:
            super()._resource_apply_dense(grad * 0.5, var, apply_state)

    w, other = tf.Variable([1.0, 2.0]), tf.Variable([1.0, 2.0])
    halved, plain = Halved(0.1), tf.keras.optimizers.Adam(0.1)
    for gradient in ([1, 2], [3, -4]):
        halved.apply_gradients([(tensor(*gradient), w)])
        plain.apply_gradients([(tensor(*gradient) * 0.5, other)])
    assert w.numpy().tobytes() == other.numpy().tobytes()


def test_duplicates_reach_a_class_that_takes_them_itself() -> None:
    seen: list[Any] = []

    class Raw(Optimizer):
        def _resource_apply_sparse_duplicate_indices(self, grad: Any, var: Any, indices: Any, **_: Any) -> None:
            seen.append(indices.tolist())
            self._resource_scatter_add(var, indices, -grad)

    w = tf.Variable([0.0, 0.0])
    Raw("Raw").apply_gradients([(tf.IndexedSlices(tensor(1, 2), [1, 1], (2,)), w)])
    assert seen == [[1, 1]]
    assert w.numpy().tolist() == [0.0, -3.0]


def test_weight_decay_cannot_be_added_to_a_method() -> None:
    w, optimizer = tf.Variable([1.0]), HeavyBall()
    optimizer.features.weight_decay = 0.1
    with pytest.raises(NotImplementedError, match="weight decay"):
        optimizer.apply_gradients([(tensor(1), w)])


def test_configuration_and_copies_of_an_optimizer_of_ones_own() -> None:
    optimizer, w = HeavyBall(0.25, mu=0.75), tf.Variable([1.0])
    described = tf.keras.optimizers.serialize(optimizer)
    assert described is not None
    assert described["registered_name"] == "HeavyBall"
    made = tf.keras.optimizers.deserialize(described, custom_objects={"HeavyBall": HeavyBall})
    assert made.get_config() == {"name": "HeavyBall", "learning_rate": 0.25, "mu": 0.75}
    optimizer.apply_gradients([(tensor(1), w)])
    twin = copy.deepcopy(optimizer)
    optimizer.apply_gradients([(tensor(1), w)])
    assert twin.get_slot(w, "m").numpy().tolist() == [1.0]
    assert optimizer.get_slot(w, "m").numpy().tolist() == [1.75]
