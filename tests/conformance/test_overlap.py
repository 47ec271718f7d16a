"""Partial sums that leave while backward goes on: the bits of one process, whatever becomes of what has left.

Hosts are emulated as in ``test_several_hosts``; see ``tests/conftest.py`` for where the bodies run.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import distopt as tf
from distopt.aggregation import Mean
from distopt.comm import mpi_transfers
from distopt.comm.communicator import Communicator
from distopt.distribute import CommunicationOptions, MirroredStrategy, MultiWorkerMirroredStrategy, Strategy
from distopt.distribute.early_sums import Overlap
from distopt.errors import UnequalHypersError
from distopt.ops.dense import dense, dense_layers
from tests.conformance import hosts
from tests.conformance.hosts import count_deaths, refused_by_all
from tests.conformance.test_sharded import bits
from tests.conformance.test_strategies import adam, sgd
from tests.conftest import GROUPS, MPI_WORLD_SIZE, Run
from tests.hooks import MedianOfReplicas

few = pytest.mark.parametrize(
    "run", GROUPS if MPI_WORLD_SIZE > 1 else ["in_process-2", "in_process-3", "in_process-5"], indirect=True
)
placements = pytest.mark.parametrize("placement", ["sharded", "replica"])
WIDTHS = (24, 70, 70, 60, 3)


on_hosts = functools.partial(hosts.on_hosts, overlap=True)


@pytest.fixture(autouse=True)
def small_gradients_too_in_many_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Overlap, "least_bytes", 0)
    monkeypatch.setattr(mpi_transfers, "_PIECE_BYTES", 200)


class Perceptron:
    """Layers of which some are one operation, a kernel that is used twice, a scalar, and what replicas make of it."""

    def __init__(self, strategy: Strategy) -> None:
        self.strategy = strategy
        with strategy.scope():
            rng = np.random.default_rng(7)
            self.weights = [
                tf.Variable(rng.standard_normal(shape).astype(np.float32) * np.float32(0.1))
                for n, m in itertools.pairwise(WIDTHS)
                for shape in ((n, m), (m,))
            ]
            self.scale = tf.Variable(np.float32(1.5))
        self.variables = [*self.weights, self.scale]

    def loss(self, step: int) -> Any:
        context = tf.distribute.get_replica_context()
        assert context is not None
        rng = np.random.default_rng([step, context.replica_id_in_sync_group])
        hidden: Any = rng.standard_normal((8, WIDTHS[0])).astype(np.float32) * np.float32(10.0 ** rng.integers(-2, 2))
        hidden = dense_layers(hidden, self.weights[:4], ("relu", "tanh"))
        hidden = dense(hidden, self.weights[2], self.weights[3], "relu")
        hidden = dense_layers(hidden, self.weights[4:8], ("relu", "linear"))
        target = rng.standard_normal((8, WIDTHS[-1])).astype(np.float32)
        return tf.reduce_sum(tf.square(tf.tanh(hidden) * self.scale - target)) * np.float32(0.02)

    def gradients(self, step: int) -> list[Any]:
        with tf.GradientTape() as tape:
            loss = self.loss(step)
        return list(tape.gradient(loss, self.variables))

    def step(self, optimizer: Any, step: int, change: Callable[[list[Any]], list[Any]] = list) -> None:
        def replica() -> None:
            optimizer.apply_gradients(zip(change(self.gradients(step)), self.variables, strict=True))

        self.strategy.run(replica)

    @property
    def early_bytes(self) -> int:
        """What has left this process early; 0 in one process."""
        communicator = self.strategy.extended.communicator
        return 0 if communicator is None else int(communicator.traffic.early_bytes)


MAKERS: dict[str, Callable[[], Any]] = {
    "global-clip": lambda: adam(global_clipnorm=0.3),
    "mean, clipped by value and norm": lambda: sgd(gradient_aggregator=Mean(), clipvalue=0.5, clipnorm=0.7),
    "median": lambda: sgd(gradient_aggregator=MedianOfReplicas()),
}


def trained(strategy: Strategy) -> tuple[list[bytes], list[int]]:
    """Return the bits of variables and slots, and the bytes that left early, for each of ``MAKERS``."""
    found, early = [], []
    for make in MAKERS.values():
        model, optimizer = Perceptron(strategy), make()
        before = model.early_bytes
        for step in range(3):
            model.step(optimizer, step)
        early.append(model.early_bytes - before)
        found += bits(optimizer, model.variables)
    return found, early


@few
@placements
def test_training_has_the_bits_of_one_process_and_something_leaves_early(
    run: Run, host_of: str, placement: str
) -> None:
    want, _ = trained(MirroredStrategy(5))
    for chunk_bytes in (1, 1 << 14):
        got = on_hosts(run, host_of, 5, trained, placement, chunk_bytes)
        assert all(found == want for found, _ in got)
        if len(set(host_of)) == run.size:  # else it depends on who comes first
            assert all(all(early) for _, early in got)
    for found, early in on_hosts(run, host_of, 5, trained, placement, overlap=False):
        assert found == want
        assert not any(early)


def disturbed(strategy: Strategy) -> list[bytes]:
    """Return the bits after steps in which what is applied is not always what was taken first, on some replica."""
    model, optimizer = Perceptron(strategy), adam(global_clipnorm=0.3)
    kept: dict[int, list[Any]] = {}

    def on(replica: int) -> bool:
        context = tf.distribute.get_replica_context()
        assert context is not None
        return replica in (-1, context.replica_id_in_sync_group)

    def scaled(replica: int) -> Callable[[list[Any]], list[Any]]:
        return lambda gradients: [g * np.float32(0.5) for g in gradients] if on(replica) else gradients

    def one_replaced(gradients: list[Any]) -> list[Any]:
        return [*gradients[:3], -gradients[3], *gradients[4:]] if on(1) else gradients

    def equal_ones(gradients: list[Any]) -> list[Any]:
        return [tf.Tensor(g.numpy().copy()) for g in gradients]

    def second_tape(gradients: list[Any]) -> list[Any]:
        del gradients[:]
        return model.gradients(99)

    def first_of_two(gradients: list[Any]) -> list[Any]:
        model.gradients(98)
        return gradients

    def differences(gradients: list[Any]) -> list[Any]:
        context = tf.distribute.get_replica_context()
        assert context is not None
        before, kept[context.replica_id_in_sync_group] = kept.get(context.replica_id_in_sync_group), gradients
        return gradients if before is None else [g - k for g, k in zip(gradients, before, strict=True)]

    def with_reductions(gradients: list[Any]) -> list[Any]:
        context = tf.distribute.get_replica_context()
        assert context is not None
        total = context.all_reduce("sum", gradients[0])
        everyones = context.all_gather(tf.reshape(gradients[-1], (1,)), axis=0)
        return [gradients[0] + total * np.float32(1e-3), *gradients[1:-1], tf.reduce_sum(everyones)]

    def looked_at(gradients: list[Any]) -> list[Any]:
        context = tf.distribute.get_replica_context()
        assert context is not None
        context.all_reduce("sum", [tf.reduce_sum(g) for g in gradients])
        return gradients

    changes: list[Callable[[list[Any]], list[Any]]] = [
        scaled(-1), scaled(0), equal_ones, one_replaced, looked_at, second_tape, first_of_two, with_reductions,
        differences, differences, list, differences,
    ]  # fmt: skip
    for step, change in enumerate(changes):
        if change is not differences:  # three that differ in a row, and nothing leaves early any more
            model.step(optimizer, 20 + step)
        model.step(optimizer, step, change)
        if change is equal_ones:  # a gradient that is never applied
            strategy.run(lambda step=step: model.gradients(step) and None)
    with pytest.raises(ZeroDivisionError):
        model.step(optimizer, 50, lambda gradients: [1 / 0])
    model.step(optimizer, 51)
    return bits(optimizer, model.variables)


@few
@placements
def test_what_is_applied_need_not_be_what_has_left(run: Run, host_of: str, placement: str) -> None:
    want = disturbed(MirroredStrategy(5))
    for got in on_hosts(run, host_of, 5, disturbed, placement):
        assert got == want


def early_bytes_of_steps(strategy: Strategy, optimizer: Any, steps: int, **how: Any) -> list[int]:
    model, found = Perceptron(strategy), []
    for step in range(steps):
        before = model.early_bytes
        model.step(optimizer, step, **how)
        found.append(model.early_bytes - before)
    return found


@few
@placements
def test_what_was_in_vain_three_times_is_not_tried_again(run: Run, host_of: str, placement: str) -> None:
    if len(set(host_of)) < run.size:
        pytest.skip("what leaves early depends on who comes first")

    def body(strategy: Strategy) -> list[int]:
        return early_bytes_of_steps(strategy, sgd(), 6, change=lambda grads: [g * np.float32(0.5) for g in grads])

    for first, *tried, after, later in on_hosts(run, host_of, run.size, body, placement):
        assert first == after == later == 0
        assert all(tried)


@few
def test_many_small_gradients_are_not_worth_it(run: Run, host_of: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for least, leaves in ((1 << 16, False), (1 << 8, True)):
        monkeypatch.setattr(Overlap, "least_bytes", least)
        found = on_hosts(run, host_of, run.size, lambda s: early_bytes_of_steps(s, sgd(), 2), "sharded")
        if not leaves or len(set(host_of)) == run.size:
            assert all((sum(early) > 0) == leaves for early in found)


@few
def test_every_step_but_the_first_sends_early(run: Run, host_of: str) -> None:
    if len(set(host_of)) < run.size:
        pytest.skip("what leaves early depends on who comes first")
    for first, *later in on_hosts(run, host_of, run.size, lambda s: early_bytes_of_steps(s, sgd(), 25), "sharded"):
        assert first == 0
        assert len(set(later)) == 1
        assert later[0] > 0


@few
def test_a_rank_sends_as_much_as_without_if_what_leaves_early_is_applied(run: Run, host_of: str) -> None:
    def body(strategy: Strategy) -> list[int]:
        model, optimizer = Perceptron(strategy), sgd()
        found: list[int] = []
        traffic = strategy.extended.communicator.traffic
        for step in range(3):
            sent, received, early = traffic.bytes_sent, traffic.bytes_received, traffic.early_bytes
            model.step(optimizer, step)
            found = [traffic.bytes_sent - sent, traffic.bytes_received - received]
            (receipt,) = strategy.extended.last_receipts
            assert receipt.bytes_sent <= found[0]
            assert receipt.bytes_received <= found[1]
            assert receipt.bytes_sent >= traffic.early_bytes - early
        return found

    want = on_hosts(run, host_of, 5, body, "sharded", overlap=False)
    assert on_hosts(run, host_of, 5, body, "sharded") == want


@few
def test_gates_of_version_1_say_whether_anything_leaves_early(run: Run, host_of: str) -> None:
    if len(set(host_of)) < run.size:
        pytest.skip("what leaves early depends on who comes first")

    def body(strategy: Strategy, gate: int = 0) -> tuple[int, list[bytes]]:
        model, optimizer = Perceptron(strategy), tf.compat.v1.train.MomentumOptimizer(0.1, 0.9)
        before = model.early_bytes

        def replica(step: int) -> None:
            pairs = optimizer.compute_gradients(lambda: model.loss(step), model.variables, gate)
            optimizer.apply_gradients(pairs)

        for step in range(3):
            strategy.run(replica, args=(step,))
        return model.early_bytes - before, [v.numpy().tobytes() for v in model.variables]

    optimizer = tf.compat.v1.train.Optimizer
    _, want = body(MirroredStrategy(run.size))
    for gate in (optimizer.GATE_NONE, optimizer.GATE_OP, optimizer.GATE_GRAPH):
        for early, got in on_hosts(run, host_of, run.size, lambda s, gate=gate: body(s, gate), "sharded"):
            assert bool(early) == (gate != optimizer.GATE_GRAPH)
            assert got == want


@few
def test_hypers_that_differ_leave_nothing_behind(run: Run, host_of: str) -> None:
    def body(strategy: Strategy, differ: bool = True) -> list[bytes]:
        model, optimizer = Perceptron(strategy), sgd()
        for step in range(4):
            if step == 2 and differ:
                rate = optimizer.learning_rate
                optimizer.learning_rate = 0.7 if host_of[strategy.extended.rank] == host_of[-1] else 0.6
                with pytest.raises(UnequalHypersError):
                    model.step(optimizer, step)
                optimizer.learning_rate = rate
            model.step(optimizer, step)
        return bits(optimizer, model.variables)

    want = body(MirroredStrategy(5), False)
    for got in on_hosts(run, host_of, 5, body, "sharded"):
        assert got == want


@few
@placements
def test_two_optimizers_rows_and_given_arrays_have_the_bits_of_one_process(
    run: Run, host_of: str, placement: str
) -> None:
    def body(strategy: Strategy) -> list[bytes]:
        model, first, second = Perceptron(strategy), sgd(), adam()
        with strategy.scope():
            table = tf.Variable(np.ones((6, 24), np.float32))
        some, others = model.variables[:4], model.variables[4:]

        def with_two(step: int) -> None:
            gradients = model.gradients(step)
            second.apply_gradients(zip(gradients[4:], others, strict=True))
            first.apply_gradients(zip(gradients[:4], some, strict=True))

        def with_rows(step: int) -> None:
            context = tf.distribute.get_replica_context()
            assert context is not None
            places = np.array([step % 6, context.replica_id_in_sync_group % 6])
            with tf.GradientTape() as tape:
                found = tf.gather(table, places) if step % 2 else table * np.float32(0.5)
                loss = model.loss(step) + tf.reduce_sum(tf.matmul(found, some[0]))
            variables = [table, *some]
            first.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))

        for step in range(3):
            strategy.run(with_two, args=(step,))
        for step in range(3, 8):
            strategy.run(with_rows, args=(step,))
        strategy.extended.gradient_arrays(second, others)
        for step in range(8, 10):
            strategy.run(with_two, args=(step,))
        return [*bits(first, [*some, table]), *bits(second, others)]

    want = body(MirroredStrategy(3))
    for got in on_hosts(run, host_of, 3, body, placement):
        assert got == want


def test_another_rank_must_want_it_too(run: Run) -> None:
    def options_of(comm: Communicator) -> CommunicationOptions:
        return CommunicationOptions(overlap=comm.rank < comm.size - 1)

    assert len(set(refused_by_all(run, options_of, "overlap is 1"))) == 1


def test_survival_excludes_it(run: Run) -> None:
    def worker(comm: Communicator) -> None:
        shared, comm.shares_memory = comm.shares_memory, True
        survives, comm.survives_losses = comm.survives_losses, True
        with pytest.raises(ValueError, match="lost ranks are survived"):
            MultiWorkerMirroredStrategy(None, CommunicationOptions(overlap=True), communicator=comm)
        comm.shares_memory, comm.survives_losses = shared, survives

    run(worker)


def test_a_rank_that_dies_in_any_exchange_ends_the_others_with_an_error_that_names_it(run: Run) -> None:
    def train(comm: Communicator) -> None:
        options = CommunicationOptions(overlap=True)
        strategy = MultiWorkerMirroredStrategy(None, options, communicator=comm, placement="sharded")
        early_bytes_of_steps(strategy, sgd(), 3)

    assert 8 < count_deaths(run, train, 40) < 40


@few
def test_what_operations_wrote_where_it_is_read_is_neither_overwritten_nor_writable(run: Run, host_of: str) -> None:
    def body(strategy: Strategy) -> list[bytes]:
        with strategy.scope():
            kernels = [tf.Variable(np.full((40, 40), 0.02, np.float32)) for _ in range(3)]
        optimizer = sgd()

        def gradients(step: int, are_written_there: bool = True) -> list[Any]:
            context = tf.distribute.get_replica_context()
            assert context is not None
            x: Any = np.random.default_rng([step, context.replica_id_in_sync_group]).random((4, 40), np.float32)
            weights = [weight for kernel in kernels for weight in (kernel, None)]
            with tf.GradientTape() as tape:
                if are_written_there:
                    x = dense_layers(x, weights, ("relu", "tanh", "linear"))
                else:
                    for kernel in kernels:
                        x = tf.matmul(x, kernel)
                loss = tf.reduce_sum(x) * np.float32(0.01)
            return list(tape.gradient(loss, kernels))

        def replica(step: int) -> None:
            gradients(step, step % 2 == 0)  # nobody keeps them
            optimizer.apply_gradients(zip(gradients(100 + step), kernels, strict=True))

        def writing() -> None:
            (first, *_) = found = gradients(0)
            if strategy.extended.communicator is not None and strategy.extended.hosted:
                with pytest.raises(ValueError, match="read-only"):
                    first.numpy()[...] = 0
            optimizer.apply_gradients(zip(found, kernels, strict=True))

        strategy.run(lambda: optimizer.apply_gradients(zip(gradients(7), kernels, strict=True)))
        for step in range(2):
            strategy.run(writing)
            strategy.run(replica, args=(step,))
        return bits(optimizer, kernels)

    want = body(MirroredStrategy(run.size))
    for got in on_hosts(run, host_of, run.size, body, "sharded"):
        assert got == want
