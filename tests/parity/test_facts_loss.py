"""Facts of topic ``loss``: reductions, and how losses scale with the global batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import distopt as tf
from distopt.distribute import MirroredStrategy, PerReplica
from tests.parity.facts import fact

LABELS, PREDICTIONS = [[1.0], [2.0]], [[2.0], [4.0]]


@pytest.fixture
def strategy() -> MirroredStrategy:
    return MirroredStrategy(2)


def mse(reduction: str) -> Any:
    return tf.keras.losses.MeanSquaredError(reduction=reduction)


def outcome(call: Callable[[], Any]) -> str:
    """Return the name of the built-in error that ``call`` raises, or ``"no error"``."""
    try:
        call()
    except (ValueError, TypeError, RuntimeError) as error:
        return next(base.__name__ for base in type(error).__mro__ if base.__module__ == "builtins")
    return "no error"


def test_reductions_of_a_loss() -> None:
    found: list[Any] = [
        mse(name)(LABELS, PREDICTIONS).numpy().tolist() for name in ("none", "sum", "sum_over_batch_size", "auto")
    ]
    found.append(float(mse("auto")(LABELS, PREDICTIONS, sample_weight=[0.5, 0.25])))
    assert found == fact("F108")["result"]


def test_loss_divided_by_the_batch_at_hand_is_refused_under_a_strategy(strategy: MirroredStrategy) -> None:
    with strategy.scope():
        found = [
            outcome(lambda name=name: mse(name)(LABELS, PREDICTIONS))  # type: ignore[misc]  # a default as a capture
            for name in ("none", "sum", "sum_over_batch_size", "auto")
        ]
    assert [*found, outcome(lambda: mse("mean"))] == fact("F109")["result"]


def test_compute_average_loss_divides_by_the_global_batch(strategy: MirroredStrategy) -> None:
    losses = np.float32([1, 2, 3])
    average = tf.nn.compute_average_loss
    found: list[Any] = [
        float(average(losses)),
        float(average(losses, global_batch_size=6)),
        float(average(losses, sample_weight=[1, 0.5, 0], global_batch_size=6)),
        float(average(losses, global_batch_size=0)),
        float(average(np.float32([[1, 2], [3, 4]]))),
    ]
    per_replica = strategy.run(lambda: average(losses))
    found.append([float(each) for each in strategy.experimental_local_results(per_replica)])
    expected = fact("F110")["result"]
    assert found[:2] + found[3:] == expected[:2] + expected[3:]
    np.testing.assert_array_equal(np.float32(found[2]), np.float32(expected[2]))


def test_compute_average_loss_refuses_what_it_cannot_divide(strategy: MirroredStrategy) -> None:
    losses = np.float32([1, 2, 3])
    average = tf.nn.compute_average_loss
    found = [
        outcome(lambda: average(np.float32(1.0))),
        outcome(lambda: average(losses, global_batch_size=6.0)),
        outcome(lambda: average(losses, global_batch_size=[6])),
        outcome(lambda: average(losses, global_batch_size=-1)),
    ]
    with strategy.scope():
        found += [outcome(lambda: average(losses)), outcome(lambda: average(losses, global_batch_size=6))]
    expected = fact("F111")["result"]
    assert found[3] == "ValueError", "the reference's InvalidArgumentError, whose counterpart is a ValueError"
    assert found[:3] + found[4:] == expected[:3] + expected[4:]


def test_scale_regularization_loss_divides_by_the_number_of_replicas(strategy: MirroredStrategy) -> None:
    penalty = np.float32([1, 2])
    scale = tf.nn.scale_regularization_loss
    per_replica = strategy.run(lambda: scale(penalty))
    found: list[Any] = [float(scale(penalty)), [float(x) for x in strategy.experimental_local_results(per_replica)]]
    with strategy.scope():
        found.append(outcome(lambda: scale(penalty)))
    assert found == fact("F112")["result"]


def test_loss_divided_by_the_global_batch_gives_the_global_mean(strategy: MirroredStrategy) -> None:
    found = []
    for by_hand in (True, False):
        with strategy.scope():
            weight = tf.Variable(np.float32(1.0))
        optimizer = tf.keras.optimizers.SGD(1.0)

        def step(x: tf.Tensor, weight: Any = weight, optimizer: Any = optimizer, by_hand: bool = by_hand) -> None:
            with tf.GradientTape() as tape:
                losses = weight * x
                loss = tf.nn.compute_average_loss(losses, global_batch_size=3) if by_hand else tf.reduce_mean(losses)
            optimizer.apply_gradients([(tape.gradient(loss, weight), weight)])

        strategy.run(step, args=(PerReplica([tf.Tensor(np.float32([1, 2])), tf.Tensor(np.float32([3]))]),))
        found.append(float(weight.numpy()))
    assert found == fact("F113")["result"]
