"""The recorded facts about TensorFlow 1's optimizers, each run on distopt."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import distopt.compat.v1 as tf
from distopt.distribute import MirroredStrategy
from tests.parity.facts import fact


@pytest.fixture
def graph() -> Iterator[tf.Graph]:
    graph = tf.Graph()
    with graph.as_default():
        yield graph


@pytest.fixture
def session(graph: tf.Graph) -> Iterator[tf.Session]:
    with tf.Session() as session:
        yield session


def close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(np.asarray(found, np.float64), np.asarray(expected, np.float64), rtol=1e-5, atol=1e-7)


def name_of_error(action: Callable[[], Any]) -> str:
    """Return the name of the built-in exception that ``action`` raises, as the reference's users catch it."""
    with pytest.raises(Exception) as caught:
        action()
    builtin = next(kind for kind in type(caught.value).__mro__ if kind.__module__ == "builtins")
    return builtin.__name__


def zeros(*shape: int) -> tf.Variable:
    return tf.Variable(np.zeros(shape, np.float32))


def test_first_step_in_a_graph(session: tf.Session) -> None:
    v0, v1 = tf.Variable([1.0, 2.0]), tf.Variable([3.0, 4.0])
    global_step = tf.Variable(0, trainable=False)
    train_op = tf.train.GradientDescentOptimizer(3.0).minimize(5 * v0 + 3 * v1, global_step, [v0, v1])
    tf.initialize_all_variables().run()
    train_op.run()
    assert [v0.eval().tolist(), v1.eval().tolist(), int(global_step.eval())] == fact("F001")["result"]


def test_gate_constants() -> None:
    optimizer = tf.train.Optimizer
    assert fact("F005")["result"] == [optimizer.GATE_NONE, optimizer.GATE_OP, optimizer.GATE_GRAPH]


def test_grad_loss_weighs_the_loss_in_a_graph(session: tf.Session) -> None:
    v = tf.Variable([1.0, 2.0])
    ((gradient, _),) = tf.train.GradientDescentOptimizer(1.0).compute_gradients(
        v * v, [v], grad_loss=tf.constant([10.0, 100.0])
    )
    session.run(tf.global_variables_initializer())
    assert session.run(gradient).tolist() == fact("F006")["result"]


def test_grad_loss_weighs_the_loss_eagerly() -> None:
    v = tf.Variable([1.0, 2.0])
    optimizer = tf.train.GradientDescentOptimizer(1.0)
    ((gradient, _),) = optimizer.compute_gradients(lambda: v * v, [v], grad_loss=tf.constant([10.0, 100.0]))
    assert gradient.numpy().tolist() == fact("F007")["result"]


def test_loss_with_axes_is_summed(session: tf.Session) -> None:
    v = tf.Variable([1.0, 2.0])
    ((gradient, _),) = tf.train.GradientDescentOptimizer(1.0).compute_gradients(v * v, [v])
    session.run(tf.global_variables_initializer())
    assert session.run(gradient).tolist() == fact("F008")["result"]


def test_aggregation_methods_give_one_result(session: tf.Session) -> None:
    v = tf.Variable([1.0, 2.0])
    loss = tf.reduce_sum(v * v + 3 * v)
    optimizer = tf.train.GradientDescentOptimizer(1.0)
    gradients = [optimizer.compute_gradients(loss, [v], aggregation_method=m)[0][0] for m in (0, 1, 2)]
    session.run(tf.global_variables_initializer())
    assert [gradient.tolist() for gradient in session.run(gradients)] == fact("F009")["result"]


def test_unknown_aggregation_method_and_gate_are_refused(graph: tf.Graph) -> None:
    v = tf.Variable([1.0, 2.0])
    optimizer = tf.train.GradientDescentOptimizer(1.0)
    found = [
        name_of_error(lambda: optimizer.compute_gradients(v * v, [v], aggregation_method=77)),
        name_of_error(lambda: optimizer.compute_gradients(v * v, [v], gate_gradients=3)),
    ]
    assert found == fact("F010")["result"]


def test_errors_where_things_run_eagerly() -> None:
    v, other = tf.Variable([1.0]), tf.Variable([2.0])
    optimizer = tf.train.GradientDescentOptimizer(1.0)
    found = [
        name_of_error(lambda: tf.train.GradientDescentOptimizer(1.0, name="")),
        name_of_error(lambda: tf.train.GradientDescentOptimizer(1.0, name=None)),  # type: ignore[arg-type]
        name_of_error(lambda: optimizer.minimize(v * v, var_list=[v])),
        name_of_error(lambda: optimizer.apply_gradients([])),
        name_of_error(lambda: optimizer.apply_gradients([(None, v)])),
        name_of_error(lambda: optimizer.minimize(lambda: v * v, var_list=[other])),
    ]
    assert found == fact("F011")["result"]


def test_errors_in_a_graph() -> None:
    optimizer = tf.train.GradientDescentOptimizer(1.0)
    with tf.Graph().as_default():
        fixed = tf.Variable([1.0], trainable=False)
        no_variables = name_of_error(lambda: optimizer.compute_gradients(fixed * 2))
    with tf.Graph().as_default():
        v = tf.Variable([1.0, 2.0])
        whole = tf.Variable([1, 2])
        constrained = tf.Variable([[1.0], [2.0]], constraint=lambda value: value)
        slices = tf.IndexedSlices(np.ones((1, 1), np.float32), [0], (2, 1))
        found = [
            no_variables,
            name_of_error(lambda: optimizer.compute_gradients(v * v, [])),
            name_of_error(lambda: optimizer.compute_gradients(whole * whole, [whole])),
            name_of_error(lambda: optimizer.apply_gradients([(tf.constant([1.0, 2.0]), v * 1)])),
            name_of_error(lambda: optimizer.apply_gradients([(slices, constrained)])),
            name_of_error(lambda: tf.train.Optimizer(False, "base").apply_gradients([(tf.constant([1.0, 2.0]), v)])),
        ]
    assert found == fact("F012")["result"]


def test_eager_apply_returns_none_and_counts() -> None:
    v, global_step = tf.Variable([1.0]), tf.Variable(0, trainable=False)
    optimizer = tf.train.GradientDescentOptimizer(1.0)
    pairs = [(tf.constant([1.0]), v)]
    first = optimizer.apply_gradients(pairs)
    second = optimizer.apply_gradients(pairs, global_step=global_step)
    assert [first, second, int(global_step.numpy())] == fact("F013")["result"]


def test_operations_that_minimize_returns(graph: tf.Graph) -> None:
    v, global_step = tf.Variable([1.0]), tf.Variable(0, trainable=False)
    optimizer = tf.train.GradientDescentOptimizer(1.0)
    plain = optimizer.minimize(v * v)
    counting = optimizer.minimize(v * v, global_step=global_step)
    found = [type(plain).__name__, plain.type, plain.name, type(counting).__name__, counting.type, counting.name]
    assert found == fact("F014")["result"]
    assert [id(op) for op in tf.get_collection(tf.GraphKeys.TRAIN_OP)] == [id(plain), id(counting)]


def test_slot_names_are_sorted() -> None:
    step = tf.Variable(0, trainable=False)
    found = []
    for optimizer in (
        tf.train.AdamOptimizer(),
        tf.train.RMSPropOptimizer(0.1, centered=True),
        tf.train.AdadeltaOptimizer(),
        tf.train.FtrlOptimizer(0.1),
        tf.train.AdagradDAOptimizer(0.1, step),
        tf.train.MomentumOptimizer(0.1, 0.9),
        tf.train.AdagradOptimizer(0.1),
        tf.train.GradientDescentOptimizer(0.1),
    ):
        optimizer.apply_gradients([(tf.constant([1.0]), tf.Variable([1.0]))])
        found.append(optimizer.get_slot_names())
    assert found == fact("F015")["result"]


def test_slots_before_and_after_the_first_step() -> None:
    v, optimizer = tf.Variable([1.0]), tf.train.AdamOptimizer()
    before = optimizer.get_slot_names()
    optimizer.apply_gradients([(tf.constant([1.0]), v)])
    unknown = [optimizer.get_slot(v, "momentum"), optimizer.get_slot(tf.Variable([1.0]), "m")]
    assert [before, optimizer.get_slot_names(), *unknown] == fact("F016")["result"]


def test_variables_of_an_optimizer_are_sorted_by_name(graph: tf.Graph) -> None:
    first, second = tf.Variable([1.0]), tf.Variable([2.0], name="w")
    optimizer = tf.train.AdamOptimizer()
    optimizer.minimize(first * second)
    assert [variable.name for variable in optimizer.variables()] == fact("F017")["result"]


def test_two_operations_of_one_optimizer_share_slots(session: tf.Session) -> None:
    v = tf.Variable([1.0])
    optimizer = tf.train.MomentumOptimizer(1.0, 0.5)
    first, second = optimizer.minimize(v), optimizer.minimize(v)
    session.run(tf.global_variables_initializer())
    session.run(first)
    session.run(second)
    slot = session.run(optimizer.get_slot(v, "momentum"))
    assert [v.eval().tolist(), slot.tolist(), len(optimizer.variables())] == fact("F018")["result"]


def test_momentum_accumulates_gradients_without_the_rate() -> None:
    v, optimizer = zeros(1), tf.train.MomentumOptimizer(0.1, 0.9)
    found = []
    for _ in range(3):
        optimizer.apply_gradients([(tf.constant([1.0]), v)])
        slot = optimizer.get_slot(v, "momentum")
        assert slot is not None
        found.append([v.numpy()[0], slot.numpy()[0]])
    close(found, fact("F019")["result"])


def test_nesterov_momentum() -> None:
    v, optimizer = zeros(1), tf.train.MomentumOptimizer(0.1, 0.9, use_nesterov=True)
    found = []
    for _ in range(3):
        optimizer.apply_gradients([(tf.constant([1.0]), v)])
        found.append(v.numpy().tolist())
    close(found, fact("F020")["result"])


def test_momentum_follows_a_change_of_the_rate_unlike_keras() -> None:
    """F022 holds both; this is the part of TensorFlow 1."""
    rate = tf.Variable(0.1, trainable=False)
    v, optimizer = zeros(1), tf.train.MomentumOptimizer(rate, 0.9)
    for step in range(3):
        if step == 2:
            rate.assign(0.01)
        optimizer.apply_gradients([(tf.constant([1.0]), v)])
    close(v.numpy(), fact("F022")["result"][1])


def test_dual_averaging_forgets_the_initial_value() -> None:
    v = tf.Variable([100.0, 100.0])
    optimizer = tf.train.AdagradDAOptimizer(0.5, tf.Variable(0, dtype=np.int64, trainable=False))
    optimizer.apply_gradients([(tf.constant([1.0, 0.0]), v)])
    close(v.numpy(), fact("F023")["result"])
    assert np.signbit(v.numpy()).tolist() == np.signbit(fact("F023")["result"]).tolist()


def test_first_step_of_adam() -> None:
    v = zeros(3)
    tf.train.AdamOptimizer().apply_gradients([(tf.constant([1.0, -5.0, 1e-4]), v)])
    np.testing.assert_allclose(v.numpy(), fact("F024")["result"], rtol=1e-5)


def test_powers_of_adams_betas_are_float32_products() -> None:
    v, optimizer = zeros(1), tf.train.AdamOptimizer()
    for _ in range(2):
        optimizer.apply_gradients([(tf.constant([1.0]), v)])
    powers = [power.numpy() for power in optimizer._get_beta_accumulators() if power is not None]
    assert [str(power) for power in powers] == [str(number) for number in fact("F025")["result"]]


def row(index: int) -> tf.IndexedSlices:
    return tf.IndexedSlices(np.ones((1, 1), np.float32), [index], (3, 1))


def test_adam_moves_rows_without_a_gradient_too() -> None:
    v, optimizer = zeros(3, 1), tf.train.AdamOptimizer(0.1)
    for step in range(2):
        optimizer.apply_gradients([(row(step), v)])
    close(v.numpy(), fact("F026")["result"])


def test_momentum_moves_rows_with_a_gradient_only() -> None:
    v, optimizer = zeros(3, 1), tf.train.MomentumOptimizer(0.1, 0.9)
    for step in range(2):
        optimizer.apply_gradients([(row(step), v)])
    close(v.numpy(), fact("F027")["result"])


def test_rmsprop_starts_at_one(session: tf.Session) -> None:
    v, optimizer = zeros(1), tf.train.RMSPropOptimizer(0.1)
    train_op = optimizer.apply_gradients([(tf.constant([0.0]), v)])
    assert train_op is not None
    session.run(tf.global_variables_initializer())
    before = session.run(optimizer.get_slot(v, "rms"))
    train_op.run()
    close([before, session.run(optimizer.get_slot(v, "rms"))], fact("F028")["result"])


def test_adagrad_has_no_epsilon() -> None:
    v = zeros(1)
    tf.train.AdagradOptimizer(1.0).apply_gradients([(tf.constant([1.0]), v)])
    close(v.numpy(), fact("F033")["result"])


def test_proximal_gradient_descent_makes_zeros() -> None:
    v = tf.Variable([1.0, 0.05])
    optimizer = tf.train.ProximalGradientDescentOptimizer(0.1, 1.0, 0.5)
    optimizer.apply_gradients([(tf.constant([1.0, 0.0]), v)])
    close(v.numpy(), fact("F043")["result"])


def test_proximal_adagrad_makes_zeros() -> None:
    v = tf.Variable([1.0])
    optimizer = tf.train.ProximalAdagradOptimizer(1.0, 0.1, 0.1, 0.1)
    optimizer.apply_gradients([(tf.constant([1.0]), v)])
    close(v.numpy(), fact("F044")["result"])


def test_rows_of_gradient_descent_add_up() -> None:
    v = tf.Variable([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    slices = tf.IndexedSlices(np.float32([[1, 1], [2, 2], [4, 4]]), [0, 2, 0], (3, 2))
    tf.train.GradientDescentOptimizer(1.0).apply_gradients([(slices, v)])
    close(v.numpy(), fact("F045")["result"])


def test_number_reaches_a_float64_variable_by_way_of_float32() -> None:
    """F067 holds five ways; this is the one of TensorFlow 1."""
    v = tf.Variable(np.float64(1.0))
    tf.train.GradientDescentOptimizer(0.1).apply_gradients([(tf.constant(np.float64(1.0)), v)])
    assert float(v.numpy()) == fact("F067")["result"][4]


def test_decays_are_functions_where_things_run_eagerly() -> None:
    exponential = tf.train.exponential_decay(0.1, 5, 10, 0.96)
    natural = tf.train.natural_exp_decay(0.1, 5, 10, 0.5)
    is_callable, *values = fact("F089")["result"]
    assert callable(exponential) is is_callable
    close([exponential(), natural()], values)


def test_gradients_are_summed_over_replicas() -> None:
    """F096 holds three generations; this is TensorFlow 1."""
    strategy = MirroredStrategy(2)
    v, optimizer = zeros(2), tf.train.GradientDescentOptimizer(1.0)

    def step() -> None:
        context = tf.distribute.get_replica_context()
        assert context is not None
        gradient = tf.constant([1.0, 1.0]) * (context.replica_id_in_sync_group + 1.0)
        optimizer.apply_gradients([(gradient, v)])

    strategy.run(step)
    close(v.numpy(), fact("F096")["result"][1])


def test_apply_in_cross_replica_context_is_refused() -> None:
    """F101 holds six errors; this is the one of TensorFlow 1."""
    with MirroredStrategy(2).scope():
        v, optimizer = zeros(1), tf.train.GradientDescentOptimizer(1.0)
        pairs = [(tf.constant([1.0]), v)]
        assert name_of_error(lambda: optimizer.apply_gradients(pairs)) == fact("F101")["result"][1]
        optimizer.apply_gradients(pairs, skip_gradients_aggregation=True)
    assert v.numpy() == [-1]


def test_exponential_moving_average() -> None:
    v, average = tf.Variable([1.0, 2.0]), tf.train.ExponentialMovingAverage(0.9)
    found: list[Any] = []
    for value in ([1.0, 2.0], [2.0, 4.0], [3.0, 3.0]):
        v.assign(value)
        average.apply([v])
        shadow = average.average(v)
        assert shadow is not None
        found.append(shadow.numpy())
    early, w = tf.train.ExponentialMovingAverage(0.9, num_updates=0), tf.Variable(1.0)
    early.apply([w])
    w.assign(2.0)
    early.apply([w])
    shadow = early.average(w)
    assert shadow is not None
    *expected, last = fact("F128")["result"]
    close(found, expected)
    close(shadow.numpy(), last)


def test_sync_replicas_applies_the_mean(session: tf.Session) -> None:
    v = tf.Variable([10.0])
    gradient = tf.placeholder(np.float32, [1])
    global_step = tf.train.create_global_step()
    optimizer = tf.train.SyncReplicasOptimizer(tf.train.GradientDescentOptimizer(1.0), replicas_to_aggregate=2)
    train_op = optimizer.apply_gradients([(gradient, v)], global_step=global_step)
    session.run(tf.global_variables_initializer())
    found = []
    for value in ([1.0], [3.0]):
        session.run(train_op, {gradient: value})
        found.append([session.run(v).tolist(), int(session.run(global_step))])
    assert found == fact("F129")["result"]
