"""A training loop of the user's goes on without the processes that it loses, to the bits of one that loses none."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import distopt as tf
from distopt.comm.communicator import Communicator
from distopt.comm.in_process_faults import KilledByPlan
from distopt.elastic import State, run
from distopt.errors import LocalProtocolError, PeerLostError
from distopt.testing import FaultPlan, run_replicas
from distopt.types import Array

STEPS = 12
REPLICAS = 5
INITIAL = np.linspace(-1.0, 1.0, 12, dtype=np.float32).reshape(4, 3)


def batch(step: int, replica: int) -> Array:
    return np.random.default_rng([step, replica]).standard_normal((6, 4)).astype(np.float32)


def dense(strategy: Any, state: State) -> str:
    with strategy.scope():
        weight, bias = tf.Variable(INITIAL), tf.Variable(np.zeros(3, np.float32))
        seen = tf.Variable(0.0, trainable=False)
        optimizer = tf.keras.optimizers.Adam(0.05, clipnorm=1.0)
    state.follow(optimizer, [weight, bias, seen])

    def replica_step(step: int) -> None:
        x = batch(step, tf.distribute.get_replica_context().replica_id_in_sync_group)
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum((tf.matmul(x, weight) + bias) ** 2) / (6 * REPLICAS)
        gradients = tape.gradient(loss, [weight, bias])
        optimizer.apply_gradients(zip(gradients, [weight, bias], strict=True))

    for step in range(state.step, STEPS):
        strategy.run(replica_step, args=(step,))
        seen.assign_add(6.0 * REPLICAS)
        state.commit()
    assert float(seen.numpy()) == 6.0 * REPLICAS * STEPS
    return state.hash()


def with_state_of_replicas(strategy: Any, state: State) -> str:
    """Draw noise in every replica and outside of them, and keep averages for each."""
    with strategy.scope():
        weight = tf.Variable(INITIAL)
        averages = [
            tf.Variable(
                np.zeros(3, np.float32),
                trainable=False,
                synchronization=tf.VariableSynchronization.ON_READ,
                aggregation=aggregation,
            )
            for aggregation in tf.VariableAggregation
        ]
        optimizer = tf.keras.optimizers.SGD(0.05, momentum=0.9)
    state.follow(optimizer, [weight, *averages])

    def replica_step(step: int, shift: Any) -> None:
        x = batch(step, tf.distribute.get_replica_context().replica_id_in_sync_group) + tf.random.normal([6, 4])
        with tf.GradientTape() as tape:
            y = tf.matmul(x, weight)
            loss = tf.reduce_sum((y - shift) ** 2) / (6 * REPLICAS)
        optimizer.apply_gradients([(tape.gradient(loss, weight), weight)])
        for average in averages:
            average.assign(0.9 * average + 0.1 * tf.reduce_mean(y, 0))

    for step in range(state.step, STEPS):
        strategy.run(replica_step, args=(step, tf.random.normal([3])))
        state.commit()
    return state.hash()


@pytest.fixture(autouse=True)
def _draws_begin_anew() -> Iterator[None]:
    with tf.random.seed_scope(3):
        yield


def hashes(
    train: Callable[[Any, State], str], ranks: int, faults: FaultPlan, placement: str = "replica", keep: int = 3
) -> list[str]:
    def rank(communicator: Communicator) -> str:
        with tf.random.seed_scope(3):
            return run(train, replicas=REPLICAS, placement=placement, keep_every_steps=keep, communicator=communicator)

    found = run_replicas(rank, ranks, faults=faults, survives_losses=True, timeout_s=60.0)
    return [each for each in found if each is not None]


@functools.cache
def undisturbed(train: Callable[[Any, State], str]) -> str:
    (found,) = hashes(train, 1, FaultPlan())
    return found


@pytest.mark.parametrize(
    ("victim", "exchange", "placement"),
    [
        *(
            (rank, exchange, "replica")
            for rank, exchange in [(0, 0), (1, 2), (2, 5), (0, 9), (1, 14), (2, 17), (0, 20)]
        ),
        *((rank, exchange, "sharded") for rank, exchange in [(1, 0), (2, 2), (0, 5), (2, 9), (0, 14)]),
    ],
)
def test_process_lost_in_any_exchange_leaves_the_bits(victim: int, exchange: int, placement: str) -> None:
    found = hashes(dense, 3, FaultPlan().kill(rank=victim, exchange=exchange), placement)
    assert found == 2 * [undisturbed(dense)]


@pytest.mark.parametrize(
    ("ranks", "victim", "exchange", "placement"),
    [(3, 1, 4, "replica"), (3, 0, 17, "sharded"), (3, 2, 25, "replica"), (7, 6, 20, "replica"), (7, 3, 30, "sharded")],
)
def test_what_replicas_have_for_themselves_goes_on_elsewhere(
    ranks: int, victim: int, exchange: int, placement: str
) -> None:
    found = hashes(with_state_of_replicas, ranks, FaultPlan().kill(rank=victim, exchange=exchange), placement)
    assert found == (ranks - 1) * [undisturbed(with_state_of_replicas)]


def test_loop_that_loses_all_processes_but_one_ends_with_the_bits() -> None:
    plan = FaultPlan().kill(rank=0, exchange=12).kill(rank=3, exchange=15).kill(rank=1, exchange=30)
    assert hashes(dense, 4, plan, keep=1) == [undisturbed(dense)]


@pytest.mark.parametrize("keep", [1, 4, 100])
def test_at_most_as_many_steps_as_said_are_made_again(keep: int) -> None:
    begun, done = [], []

    def train(strategy: Any, state: State) -> str:
        with strategy.scope():
            weight, optimizer = tf.Variable(INITIAL), tf.keras.optimizers.SGD(0.1)
        state.follow(optimizer, weight)
        if strategy.extended.rank == 0:
            begun.append(state.step)
        for step in range(state.step, STEPS):
            strategy.run(lambda: optimizer.apply_gradients([(np.ones((4, 3), np.float32), weight)]))
            state.commit()
            done.append(step + 1)
            if step == 6 and strategy.extended.communicator.size == 3 and strategy.extended.rank == 2:
                raise KilledByPlan("dies between two steps")
        return state.hash()

    assert len(set(hashes(train, 3, FaultPlan(), keep=keep))) == 1
    assert begun == [0, {1: 7, 4: 4, 100: 0}[keep]]
    assert max(done) == STEPS


def test_replicas_are_by_default_as_many_as_processes_before_any_was_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(strategy: Any, state: State) -> int:
        return int(strategy.num_replicas_in_sync)

    monkeypatch.setattr(Communicator, "size_at_start", property(lambda communicator: communicator.size + 1))
    assert run_replicas(lambda communicator: run(train, communicator=communicator), 2) == [3, 3]


def test_loss_that_is_not_survived_is_the_error_of_every_process() -> None:
    with pytest.raises(PeerLostError, match="rank 1 was killed"):
        run_replicas(lambda c: run(dense, replicas=2, communicator=c), 2, faults=FaultPlan().kill(rank=1, exchange=9))


def test_state_that_nobody_has_said_cannot_be_committed_or_said_twice() -> None:
    def too_early(strategy: Any, state: State) -> None:
        state.commit()

    def twice(strategy: Any, state: State) -> None:
        with strategy.scope():
            weight = tf.Variable(INITIAL)
        state.follow(tf.keras.optimizers.SGD(), weight)
        state.follow(tf.keras.optimizers.SGD(), weight)

    with pytest.raises(LocalProtocolError, match=r"state\.commit was called before state\.follow"):
        run_replicas(lambda c: run(too_early, communicator=c), 1)
    with pytest.raises(LocalProtocolError, match="called twice"):
        run_replicas(lambda c: run(twice, communicator=c), 1)
    with pytest.raises(ValueError, match="keep_every_steps must be 1 or more, not 0"):
        run_replicas(lambda c: run(dense, keep_every_steps=0, communicator=c), 1)
