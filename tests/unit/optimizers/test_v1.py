"""The TensorFlow 1 face: what it takes and refuses, optimizers of one's own, the same eagerly and in a graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import distopt.compat.v1 as tf
from distopt.distribute import MirroredStrategy
from distopt.errors import PlacementError, UninitializedVariableError
from distopt.optimizers.v1 import AggregatedRound
from distopt.optimizers.v1.sync_replicas import participants
from distopt.testing import run_strategy
from tests.parity.deployments import Job, served


@pytest.fixture
def graph() -> Iterator[tf.Graph]:
    graph = tf.Graph()
    with graph.as_default():
        yield graph


@pytest.fixture
def session(graph: tf.Graph) -> Iterator[tf.Session]:
    with tf.Session() as session:
        yield session


def started(session: tf.Session) -> tf.Session:
    session.run(tf.global_variables_initializer())
    return session


def ones() -> tf.Tensor:
    return tf.constant([1.0, 1.0])


def replica_id() -> int:
    context = tf.distribute.get_replica_context()
    assert context is not None
    return int(context.replica_id_in_sync_group)


# ---------------------------------------------------------------- eagerly and in a graph


def test_the_example_of_the_reference_page_prints_its_result(capsys: pytest.CaptureFixture[str]) -> None:
    with tf.Graph().as_default(), tf.Session():
        var0 = tf.Variable([1.0, 2.0])
        var1 = tf.Variable([3.0, 4.0])
        cost = 5 * var0 + 3 * var1
        opt_op = tf.train.GradientDescentOptimizer(3.0).minimize(cost, var_list=[var0, var1])
        tf.initialize_all_variables().run()
        opt_op.run()
        print(var0.eval())  # noqa: T201 - the page prints
    assert capsys.readouterr().out == "[-14. -13.]\n"


def test_processing_gradients_between_computing_and_applying(session: tf.Session) -> None:
    weights = tf.Variable([1.0, -2.0])
    optimizer = tf.train.GradientDescentOptimizer(1.0)
    pairs = optimizer.compute_gradients(tf.reduce_sum(weights * weights))
    capped = [(tf.clip_by_value(gradient, -3.0, 3.0), variable) for gradient, variable in pairs]
    train_op = optimizer.apply_gradients(capped)
    started(session).run(train_op)
    assert session.run(weights).tolist() == [-1, 1]


def test_every_run_evaluates_loss_gradients_and_rate_anew(session: tf.Session) -> None:
    rows, rate = tf.placeholder(np.float32, [None]), tf.placeholder(np.float32, ())
    weights = tf.Variable(0.0)
    train_op = tf.train.GradientDescentOptimizer(rate).minimize(tf.reduce_sum(rows * weights))
    started(session).run(train_op, {rows: [1, 2], rate: 1.0})
    session.run(train_op, {rows: [1, 2, 3], rate: 0.5})
    assert session.run(weights) == -3 - 3


def test_loss_fetched_with_the_step_is_the_one_before_it(session: tf.Session) -> None:
    weights = tf.Variable([2.0])
    loss = tf.reduce_sum(weights * weights)
    train_op = tf.train.GradientDescentOptimizer(0.25).minimize(loss)
    assert [started(session).run([train_op, loss])[1], session.run(loss)] == [4, 1]


def test_rate_may_be_a_decay_of_the_global_step(session: tf.Session) -> None:
    global_step = tf.train.get_or_create_global_step()
    rate = tf.train.exponential_decay(1.0, global_step, 1, 0.5)
    weights = tf.Variable([0.0, 0.0])
    train_op = tf.train.GradientDescentOptimizer(rate).minimize(tf.reduce_sum(weights), global_step)
    started(session)
    found = []
    for _ in range(3):
        session.run(train_op)
        found.append(float(session.run(weights)[0]))
    assert found == [-1, -1.5, -1.75]
    assert tf.train.global_step(session, global_step) == 3


def test_slots_are_initialized_with_the_variables_and_missed_if_they_are_not(session: tf.Session) -> None:
    weights = tf.Variable([1.0, 1.0])
    initializer = tf.global_variables_initializer()
    train_op = tf.train.MomentumOptimizer(1.0, 0.9).minimize(tf.reduce_sum(weights))
    session.run(initializer)
    with pytest.raises(UninitializedVariableError, match="Variable/Momentum:0"):
        session.run(train_op)
    assert session.run(weights).tolist() == [1, 1]


def test_row_sparse_gradient_in_a_graph_moves_its_rows(session: tf.Session) -> None:
    ids = tf.placeholder(np.int64, [None])
    table = tf.Variable(np.zeros((4, 2), np.float32))
    train_op = tf.train.GradientDescentOptimizer(1.0).minimize(tf.reduce_sum(tf.gather(table, ids)))
    started(session).run(train_op, {ids: [1, 3, 1]})
    np.testing.assert_array_equal(session.run(table)[:, 0], [0, -2, 0, -1])


def test_graph_and_eager_steps_have_the_same_bits() -> None:
    start = np.random.default_rng(3).standard_normal((3, 2)).astype(np.float32)
    rows = np.random.default_rng(4).standard_normal((5, 3)).astype(np.float32)

    def loss_of(kernel: Any) -> Any:
        return tf.reduce_mean(tf.square(tf.tanh(tf.matmul(rows, kernel))))

    eager, optimizer = tf.Variable(start), tf.train.AdamOptimizer(0.1)
    for _ in range(3):
        optimizer.minimize(lambda: loss_of(eager))
    with tf.Graph().as_default(), tf.Session() as session:
        kernel = tf.Variable(start)
        train_op = tf.train.AdamOptimizer(0.1).minimize(loss_of(kernel))
        started(session)
        for _ in range(3):
            session.run(train_op)
        assert session.run(kernel).tobytes() == eager.numpy().tobytes()


def test_replicas_that_run_a_session_sum_their_gradients(session: tf.Session) -> None:
    strategy = MirroredStrategy(3)
    weights, rows, rate = tf.Variable([0.0]), tf.placeholder(np.float32, [1]), tf.placeholder(np.float32, ())
    global_step = tf.train.create_global_step()
    train_op = tf.train.AdamOptimizer(rate).minimize(tf.reduce_sum(rows * weights), global_step)
    started(session)
    for _ in range(2):
        strategy.run(lambda: session.run(train_op, {rows: [replica_id() + 1.0], rate: 0.5}))
    eager, optimizer = [], tf.train.AdamOptimizer(0.5)
    with tf.init_scope():
        alone = tf.Variable([0.0])
        for _ in range(2):
            optimizer.apply_gradients([(tf.constant([6.0]), alone)])
        eager = alone.numpy().tolist()
    assert session.run(weights).tolist() == eager
    assert int(session.run(global_step)) == 2


def test_processes_start_a_graph_from_one_initial_value_and_make_the_same_steps() -> None:
    def job(strategy: Any) -> list[float]:
        with tf.Graph().as_default(), tf.Session() as session:
            with strategy.scope():
                weights = tf.Variable([1.0 + strategy.extended.rank])
            rows = tf.placeholder(np.float32, [1])
            train_op = tf.train.MomentumOptimizer(0.5, 0.5).minimize(rows * weights)
            started(session)
            for _ in range(2):
                strategy.run(lambda: session.run(train_op, {rows: [replica_id() + 1.0]}))
            found: list[float] = session.run(weights).tolist()
            return found

    for num_workers in (1, 2, 3):
        # 1 + 2 + 3 from each step: 1 - 0.5 * 6 - 0.5 * (6 + 0.5 * 6)
        assert run_strategy(job, num_replicas=3, num_workers=num_workers) == [[-6.5]] * num_workers


# ---------------------------------------------------------------- arguments and refusals


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (lambda: tf.train.AdagradOptimizer(0.1, initial_accumulator_value=0.0), "must be positive, but is 0.0"),
        (lambda: tf.train.ProximalAdagradOptimizer(0.1, initial_accumulator_value=-1.0), "but is -1.0"),
        (lambda: tf.train.AdagradDAOptimizer(0.1, 0, initial_gradient_squared_accumulator_value=0), "but is 0"),
        (lambda: tf.train.FtrlOptimizer(0.1, learning_rate_power=0.5), "must not be positive, but is 0.5"),
        (lambda: tf.train.FtrlOptimizer(0.1, l1_regularization_strength=-1.0), "l1_regularization_strength"),
        (lambda: tf.train.FtrlOptimizer(0.1, l2_shrinkage_regularization_strength=-1.0), "l2_shrinkage"),
    ],
)
def test_wrong_constructor_argument_is_refused_with_its_value(make: Callable[[], Any], wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        make()


def test_apply_gradients_of_nothing_iterable_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="not iterable"):
        tf.train.GradientDescentOptimizer(1.0).apply_gradients(None)  # type: ignore[arg-type]


def test_entry_of_var_list_that_is_no_variable_is_a_type_error(graph: tf.Graph) -> None:
    weights = tf.Variable(1.0)
    with pytest.raises(TypeError, match="var_list holds variables, not 'weights'"):
        tf.train.GradientDescentOptimizer(1.0).compute_gradients(weights * 2, ["weights"])


def test_gradient_that_cannot_be_a_tensor_is_a_type_error_in_a_graph(graph: tf.Graph) -> None:
    with pytest.raises(TypeError, match="no tensor and cannot be made one"):
        tf.train.GradientDescentOptimizer(1.0).apply_gradients([(object(), tf.Variable(1.0))])


def test_listed_variable_gets_a_gradient_though_it_is_not_trainable() -> None:
    fixed = tf.Variable([1.0], trainable=False)
    tf.train.GradientDescentOptimizer(1.0).minimize(lambda: 3 * fixed, var_list=[fixed])
    assert fixed.numpy() == [-2]


def test_an_optimizer_belongs_to_one_graph() -> None:
    optimizer = tf.train.AdamOptimizer()
    for attempt in range(2):
        with tf.Graph().as_default():
            weights = tf.Variable(1.0)
            if attempt == 0:
                optimizer.minimize(weights * 2)
            else:
                with pytest.raises(ValueError, match="another graph"):
                    optimizer.minimize(weights * 2)


def test_global_step_helpers_follow_the_collection(graph: tf.Graph) -> None:
    assert tf.train.get_global_step() is None
    step = tf.train.create_global_step()
    assert (step.name, step.dtype, step.trainable) == ("global_step:0", np.int64, False)
    assert tf.train.get_or_create_global_step() is step
    with pytest.raises(ValueError, match="has a global step already"):
        tf.train.create_global_step()
    for wrong in (3, tf.Variable(1.0), tf.Variable([1])):
        with pytest.raises(TypeError, match="a global step is"):
            tf.train.assert_global_step(wrong)


# ---------------------------------------------------------------- optimizers of one's own


class Signs(tf.train.Optimizer):  # type: ignore[misc]  # the namespace is gathered
    """Steps of one size, and a slot that counts them; as TensorFlow 1's custom optimizers are written."""

    def __init__(self, learning_rate: float) -> None:
        super().__init__(False, "Signs")
        self._lr = learning_rate
        self.calls: list[str] = []

    def _create_slots(self, var_list: Any) -> None:
        for variable in var_list:
            self._zeros_slot(variable, "count", self._name)
        self._create_non_slot_variable(1.0, "factor", var_list[0])

    def _prepare(self) -> None:
        self.calls.append("prepare")

    def _resource_apply_dense(self, grad: Any, handle: Any) -> Any:
        self.calls.append("dense")
        count = self.get_slot(handle, "count")
        count.assign_add(tf.ones_like(count))
        return handle.assign_sub(self._lr * tf.sign(grad))

    def _resource_apply_sparse(self, grad: Any, handle: Any, indices: Any) -> Any:
        self.calls.append(f"sparse {indices.tolist()}")
        return self._resource_scatter_add(handle, indices, -self._lr * tf.sign(grad))

    def _finish(self, update_ops: Any, name_scope: str) -> Any:
        self.calls.append(f"finish {len(update_ops)}")


def test_optimizer_of_ones_own_eagerly() -> None:
    a, b = tf.Variable([1.0, 1.0]), tf.Variable([[1.0], [1.0]])
    optimizer = Signs(0.5)
    slices = tf.IndexedSlices(np.float32([[3], [4]]), [1, 1], (2, 1))
    optimizer.apply_gradients([(tf.constant([5.0, -5.0]), a), (slices, b)])
    assert optimizer.calls == ["prepare", "dense", "sparse [1]", "finish 2"]
    assert (a.numpy().tolist(), b.numpy().tolist()) == ([0.5, 1.5], [[1], [0.5]])
    assert [variable.name for variable in optimizer.variables()] == ["Variable/Signs:0", "Variable/Signs:0", "factor:0"]


def test_optimizer_of_ones_own_in_a_graph_and_on_replicas(session: tf.Session) -> None:
    weights = tf.Variable([1.0, 1.0])
    optimizer = Signs(0.5)
    train_op = optimizer.minimize(tf.reduce_sum(weights))
    started(session)
    session.run(train_op)
    MirroredStrategy(2).run(lambda: session.run(train_op))
    assert session.run([weights, optimizer.get_slot(weights, "count")])[0].tolist() == [0, 0]
    assert session.run(optimizer.get_slot(weights, "count")).tolist() == [2, 2]


def test_optimizer_for_reference_variables_is_called_too() -> None:
    class Plain(tf.train.Optimizer):  # type: ignore[misc]
        def _apply_dense(self, grad: Any, var: Any) -> Any:
            return var.assign_sub(grad)

    weights = tf.Variable([1.0, 1.0])
    optimizer = Plain(False, "Plain")
    optimizer.apply_gradients([(ones(), weights)])
    assert weights.numpy().tolist() == [0, 0]
    slices = tf.IndexedSlices(np.float32([1]), [0], (2,))
    with pytest.raises(NotImplementedError, match="Plain cannot take a row-sparse gradient"):
        optimizer.apply_gradients([(slices, weights)])


def test_finish_alone_may_be_defined_over_a_rule() -> None:
    class Counting(tf.train.MomentumOptimizer):  # type: ignore[misc]
        finished = 0

        def _finish(self, update_ops: Any, name_scope: str) -> Any:
            self.finished += 1

    counting, plain = Counting(0.5, 0.5), tf.train.MomentumOptimizer(0.5, 0.5)
    a, b = tf.Variable([1.0, 1.0]), tf.Variable([1.0, 1.0])
    for _ in range(2):
        counting.apply_gradients([(ones(), a)])
        plain.apply_gradients([(ones(), b)])
    assert counting.finished == 2
    assert a.numpy().tolist() == b.numpy().tolist()


def test_state_goes_on_where_it_was_powers_of_the_betas_included() -> None:
    def steps(optimizer: tf.train.Optimizer, variable: tf.Variable, values: list[float]) -> None:
        for value in values:
            optimizer.apply_gradients([(tf.constant([value, -value]), variable)])

    whole, first, second = (tf.train.AdamOptimizer(0.1) for _ in range(3))
    a, b = tf.Variable([1.0, 2.0]), tf.Variable([1.0, 2.0])
    steps(whole, a, [1.0, 2.0, 3.0])
    steps(first, b, [1.0, 2.0])
    resumed = tf.Variable(b.numpy())
    second.build([resumed])
    second.load_state(first.state())
    steps(second, resumed, [3.0])
    assert resumed.numpy().tobytes() == a.numpy().tobytes()


# ---------------------------------------------------------------- SyncReplicasOptimizer


@pytest.mark.parametrize(("wanted", "total"), [(1, 1), (2, 3), (3, 5), (5, 5), (8, 8)])
def test_rounds_take_every_replica_in_turn(wanted: int, total: int) -> None:
    rounds = [participants(step, wanted, total) for step in range(total)]
    assert all(len(set(chosen)) == wanted for chosen in rounds)
    assert sorted(replica for chosen in rounds for replica in chosen) == sorted(list(range(total)) * wanted)


@pytest.mark.parametrize("num_workers", [1, 2, 3])
@pytest.mark.parametrize("wanted", [2, 5])
def test_sync_replicas_averages_its_participants_whatever_the_deployment(wanted: int, num_workers: int) -> None:
    total, steps = 5, 4

    def job(strategy: Any) -> tuple[list[float], list[float], int, Any]:
        with strategy.scope():
            a, b = tf.Variable([0.0, 0.0]), tf.Variable([0.0])
            step = tf.Variable(0, trainable=False, dtype=np.int64)
        optimizer = tf.train.SyncReplicasOptimizer(tf.train.GradientDescentOptimizer(1.0), wanted, total)

        def replica() -> None:
            value = float(replica_id() + 1)
            optimizer.apply_gradients([(tf.constant([value, value]), a), (tf.constant([10 * value]), b)], step)

        for _ in range(steps):
            strategy.run(replica)
        return a.numpy().tolist(), b.numpy().tolist(), int(step.numpy()), optimizer.last_round

    chosen = [participants(step, wanted, total) for step in range(steps)]
    mean = sum(np.float32(sum(r + 1 for r in ids)) / np.float32(wanted) for ids in chosen)
    for a, b, counted, last in run_strategy(job, num_replicas=total, num_workers=num_workers):
        np.testing.assert_allclose(a, [-mean, -mean], rtol=1e-6)
        np.testing.assert_allclose(b, [-10 * mean], rtol=1e-6)
        assert counted == steps
        left_out = tuple(r for r in range(total) if r not in chosen[-1])
        assert last == AggregatedRound(steps - 1, chosen[-1], left_out)


def test_sync_replicas_collects_several_calls_where_it_wants_more_than_there_are() -> None:
    strategy = MirroredStrategy(2)
    with strategy.scope():
        weights, step = tf.Variable([0.0]), tf.Variable(0, trainable=False)
    optimizer = tf.train.SyncReplicasOptimizer(tf.train.GradientDescentOptimizer(1.0), 3, 2)
    found = []
    for call in range(4):
        strategy.run(
            lambda: optimizer.apply_gradients([(tf.constant([10.0 * call + replica_id()]), weights)], step)  # noqa: B023
        )
        found.append((weights.numpy()[0], int(step.numpy())))
    first, second = np.float32(0 + 1 + 10) / np.float32(3), np.float32(20 + 21 + 30) / np.float32(3)
    assert found == [(0, 0), (-first, 1), (-first, 1), (-first - second, 2)]
    assert optimizer.last_round == AggregatedRound(1, (0, 1, 0), (1,))


def test_sync_replicas_with_another_number_of_replicas_is_refused() -> None:
    strategy = MirroredStrategy(3)
    with strategy.scope():
        weights, step = tf.Variable([0.0]), tf.Variable(0, trainable=False)
    optimizer = tf.train.SyncReplicasOptimizer(tf.train.GradientDescentOptimizer(1.0), 2)
    with pytest.raises(ValueError, match="total_num_replicas is 2, but the strategy has 3 replicas"):
        strategy.run(lambda: optimizer.apply_gradients([(tf.constant([1.0]), weights)], step))


def test_sync_replicas_checks_its_arguments() -> None:
    weights, step = tf.Variable([0.0]), tf.Variable(0, trainable=False)
    optimizer = tf.train.SyncReplicasOptimizer(tf.train.GradientDescentOptimizer(1.0), 3, 1)
    with pytest.raises(ValueError, match="after apply_gradients"):
        optimizer.get_init_tokens_op()
    with pytest.raises(ValueError, match="after apply_gradients"):
        optimizer.get_chief_queue_runner()
    with pytest.raises(ValueError, match="after apply_gradients"):
        optimizer.make_session_run_hook(is_chief=True).begin()
    with pytest.raises(ValueError, match="needs global_step"):
        optimizer.apply_gradients([(tf.constant([1.0]), weights)])
    with pytest.raises(ValueError, match="neither a tensor nor IndexedSlices"):
        optimizer.apply_gradients([("gradient", weights)], step)
    optimizer.apply_gradients([(tf.constant([1.0]), weights)], step)
    with pytest.raises(ValueError, match=r"replicas_to_aggregate - total_num_replicas = 2"):
        optimizer.get_init_tokens_op(1)
    assert optimizer.get_init_tokens_op() is None


def test_sync_replicas_averages_variables_after_each_round() -> None:
    weights, step = tf.Variable([0.0]), tf.Variable(0, trainable=False)
    average = tf.train.ExponentialMovingAverage(0.5)
    optimizer = tf.train.SyncReplicasOptimizer(
        tf.train.GradientDescentOptimizer(1.0), 2, variable_averages=average, variables_to_average=[weights]
    )
    for _ in range(4):
        optimizer.apply_gradients([(tf.constant([2.0]), weights)], step)
    shadow = average.average(weights)
    assert shadow is not None
    assert (weights.numpy().tolist(), shadow.numpy().tolist()) == ([-4], [-2.5])


@pytest.mark.parametrize("num_servers", [1, 2])
def test_servers_choose_the_participants_that_the_replicas_would(num_servers: int) -> None:
    def make() -> Job:
        inner = tf.train.GradientDescentOptimizer(1.0)
        tf.train.SyncReplicasOptimizer(inner, 1, 2)
        return Job({"a": tf.Variable([0.0]), "b": tf.Variable([[0.0]])}, inner)

    strategy, job, _ = served(num_servers)(make)
    optimizer, step = tf.train.SyncReplicasOptimizer(job.optimizer, 1, 2), tf.Variable(0, trainable=False)

    def replica() -> None:
        value = replica_id() + 1.0
        optimizer.apply_gradients([(tf.constant(value) * tf.ones_like(v), v) for v in job.variables.values()], step)

    found = []
    for _ in range(3):
        strategy.run(replica)
        found.append([variable.numpy().item() for variable in job.variables.values()])
    assert found == [[-1, -1], [-3, -3], [-4, -4]]
    assert optimizer.last_round == AggregatedRound(2, (0,), (1,))


def test_several_calls_a_round_are_refused_where_servers_hold_the_variables() -> None:
    def make() -> Job:
        return Job({"weights": tf.Variable([0.0])}, tf.train.GradientDescentOptimizer(1.0))

    strategy, job, _ = served(1)(make)
    optimizer, step = tf.train.SyncReplicasOptimizer(job.optimizer, 3, 2), tf.Variable(0, trainable=False)
    with pytest.raises(PlacementError):
        strategy.run(lambda: optimizer.apply_gradients([(tf.constant([1.0]), job.variables["weights"])], step))


# ---------------------------------------------------------------- moving averages and decays


def test_average_of_a_deferred_tensor_starts_at_zero_and_may_be_debiased(session: tf.Session) -> None:
    value = tf.placeholder(np.float32, ())
    plain = tf.train.ExponentialMovingAverage(0.75)
    debiased = tf.train.ExponentialMovingAverage(0.75, zero_debias=True, name="Debiased")
    both = tf.group(plain.apply([value]), debiased.apply([value]))
    started(session)
    found = []
    for number in (8.0, 4.0, 2.0):
        session.run(both, {value: number})
        found.append(session.run([plain.average(value), debiased.average(value)]))
    # These are the numbers of TensorFlow 2.21.
    np.testing.assert_allclose(found, [[2, 8], [2.5, 5.714286], [2.375, 4.108108]], rtol=1e-6)


def test_average_in_a_graph_starts_at_the_initial_value(session: tf.Session) -> None:
    weights = tf.Variable([4.0])
    average = tf.train.ExponentialMovingAverage(0.5)
    update = average.apply()
    with tf.control_dependencies([weights.assign([8.0])]):
        late = average.apply([weights])
    started(session).run(update)
    assert session.run(average.average(weights)) == [4]
    session.run(late)
    assert session.run(average.average(weights)) == [6]
    assert average.average_name(weights) == "Variable/ExponentialMovingAverage"
    assert [id(v) for v in tf.get_collection(tf.GraphKeys.MOVING_AVERAGE_VARIABLES)] == [id(weights)]


def test_average_of_what_is_no_float_variable_is_a_type_error() -> None:
    average = tf.train.ExponentialMovingAverage(0.5)
    for wrong in (tf.constant([1.0]), tf.Variable([1])):
        with pytest.raises(TypeError, match="average"):
            average.apply([wrong])


def test_average_of_replicas_copies_is_one_a_copy() -> None:
    strategy, average = MirroredStrategy(2), tf.train.ExponentialMovingAverage(0.5)
    with strategy.scope():
        weights = tf.Variable([0.0])
    average.apply([weights])

    def replica() -> None:
        weights.assign([2.0 * replica_id()])
        average.apply([weights])

    strategy.run(replica)
    shadow = average.average(weights)
    assert shadow is not None
    assert [shadow.copy_of(r).tolist() for r in range(2)] == [[0], [1]]


@pytest.mark.parametrize("in_graph", [False, True])
def test_moving_average_optimizer_averages_after_the_update(in_graph: bool) -> None:
    optimizer = tf.train.MovingAverageOptimizer(tf.train.GradientDescentOptimizer(1.0), average_decay=0.5)
    with pytest.raises(ValueError, match="needs the averages"):
        optimizer.swapping_saver()
    if in_graph:
        with tf.Graph().as_default(), tf.Session() as session:
            weights = tf.Variable([0.0])
            train_op = optimizer.minimize(2 * weights)
            started(session).run(train_op)
            found = session.run([weights, optimizer.averages()["Variable"]])
    else:
        weights = tf.Variable([0.0])
        optimizer.minimize(lambda: 2 * weights)
        found = [weights.numpy(), optimizer.averages()["Variable"].numpy()]
    assert [value.tolist() for value in found] == [[-2], [-1]]


def test_piecewise_constant_checks_dtypes() -> None:
    step = tf.Variable(0, dtype=np.int64)
    assert float(tf.train.piecewise_constant(step, [5], [1.0, 0.5])()) == 1
    with pytest.raises(ValueError, match="boundaries need 3 values"):
        tf.train.piecewise_constant(step, [5, 6], [1.0, 0.5])
    with pytest.raises(ValueError, match="dtype float32, x has int64"):
        tf.train.piecewise_constant(step, [5.0], [1.0, 0.5])
    with pytest.raises(ValueError, match="float32 and int32"):
        tf.train.piecewise_constant(step, [5], [1.0, 1])


def test_noise_of_a_decay_is_a_function_of_seed_and_step() -> None:
    step = tf.Variable(3)
    rate = tf.train.noisy_linear_cosine_decay(0.1, step, 10, seed=7)
    plain = tf.train.linear_cosine_decay(0.1, step, 10)
    other = tf.train.noisy_linear_cosine_decay(0.1, step, 10, seed=8)
    first = float(rate())
    assert first == float(rate())
    assert len({first, float(plain()), float(other())}) == 3
    step.assign(4)
    assert float(rate()) != first
