"""Two of eight replicas send garbage in every step: the digits are learned all the same, or, by a sum, not at all."""

from __future__ import annotations

import functools

import numpy as np
import pytest

import distopt as tf
from distopt import ops
from distopt.aggregation import (
    GeometricMedian,
    GradientAggregator,
    Krum,
    Mean,
    Median,
    MultiKrum,
    Sum,
    TrimmedMean,
)
from distopt.sampling import epoch_permutation
from distopt.tasks.digits import Digits, DigitsOptions
from distopt.types import Array

REPLICAS = 8
LIARS = (2, 5)
BATCH = 128


@functools.cache
def digits() -> Digits:
    return Digits(DigitsOptions(hidden=(64,)))


def lie(replica: int, step: int, gradient: Array) -> Array:
    """One liar walks uphill, fast; the other sends noise, and now and then what is no number."""
    if replica == LIARS[0]:
        return -10 * gradient
    if step % 5 == 0:
        return np.full_like(gradient, [np.nan, np.inf, -1e38][step // 5 % 3])
    return 100 * np.random.default_rng([replica, step]).standard_normal(gradient.shape).astype(gradient.dtype)


def accuracy_among_liars(aggregator: GradientAggregator, epochs: int = 16) -> float:
    """Train a small perceptron with Adam, each replica on its own mean loss; return the test accuracy."""
    task = digits()
    x, y = task.train_data()
    strategy = tf.distribute.MirroredStrategy(REPLICAS)
    with strategy.scope():
        model = task.build(1)
        optimizer = tf.keras.optimizers.Adam(0.01, gradient_aggregator=aggregator)
    variables = model.trainable_variables

    def replica_step(rows: Array, step: int) -> None:
        context = tf.distribute.get_replica_context()
        assert context is not None
        replica = context.replica_id_in_sync_group
        own = rows[replica::REPLICAS]
        with tf.GradientTape() as tape:
            loss = ops.reduce_mean(task.per_example_loss(model, x[own], y[own]))
        gradients = [gradient.numpy() for gradient in tape.gradient(loss, variables)]
        if replica in LIARS:
            gradients = [lie(replica, step, gradient) for gradient in gradients]
        optimizer.apply_gradients(zip(gradients, variables, strict=True))

    step = 0
    with np.errstate(all="ignore"):
        for epoch in range(epochs):
            order = epoch_permutation(1, epoch, len(x))
            for start in range(0, len(x) - BATCH + 1, BATCH):
                strategy.run(replica_step, args=(order[start : start + BATCH], step))
                step += 1
        test_x, test_y = task.test_data()
        return task.count_correct(model, test_x, test_y)[0] / len(test_x)


@pytest.mark.parametrize(
    ("aggregator", "epochs"),
    [
        (Median(), 16),
        (TrimmedMean(2), 16),
        (Krum(2), 24),  # each step learns from one replica's samples alone
        (MultiKrum(2), 16),
        (GeometricMedian(4), 16),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_digits_are_learned_although_two_of_eight_replicas_send_garbage(
    aggregator: GradientAggregator, epochs: int
) -> None:
    assert accuracy_among_liars(aggregator, epochs) >= 0.95


@pytest.mark.parametrize("aggregator", [Sum(), Mean()], ids=lambda aggregator: aggregator.name)
def test_an_aggregator_that_trusts_everyone_learns_nothing_from_two_liars(aggregator: GradientAggregator) -> None:
    assert not accuracy_among_liars(aggregator, 4) > 0.5
