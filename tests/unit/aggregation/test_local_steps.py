from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import distopt as tf
from distopt.aggregation import GradientAggregator, Krum, LocalSteps, Mean, Median, Sum, TopK
from distopt.distribute import Strategy
from distopt.optimizers import LossScaleOptimizer, LossScaleOptimizerV3
from distopt.testing import run_strategy
from distopt.types import Array

SIZE = 6


def gradient_of(value: Array, step: int, replica: int) -> Array:
    """The gradient of a quadratic that differs by replica and step: it depends on where the replica is."""
    target = np.random.default_rng([step, replica]).standard_normal(SIZE).astype(np.float32)
    return value - target


def trained(aggregator: Any, steps: int, momentum: float = 0.9) -> Any:
    def body(strategy: Strategy) -> tuple[list[Array], list[str]]:
        with strategy.scope():
            w = tf.Variable(np.ones(SIZE, np.float32), name="w")
            optimizer = tf.keras.optimizers.SGD(0.125, momentum, gradient_aggregator=aggregator())
        receipts: list[str] = []
        strategy.extended.observe_reductions(lambda receipt: receipts.append(receipt.what))

        def step(number: int) -> Array:
            context = tf.distribute.get_replica_context()
            assert context is not None
            gradient = gradient_of(w.numpy(), number, context.replica_id_in_sync_group)
            optimizer.apply_gradients([(gradient, w)])
            return w.numpy()

        for number in range(steps):
            values = strategy.run(step, args=(number,))
        return [np.asarray(v) for v in strategy.experimental_local_results(values)], receipts

    return body


def local_sgd(num_replicas: int, steps: int, every: int, momentum: float) -> list[Array]:
    """Stich 2019, algorithm 1, with momentum that each replica keeps to itself."""
    values = [np.ones(SIZE) for _ in range(num_replicas)]
    velocities = [np.zeros(SIZE) for _ in range(num_replicas)]
    for step in range(steps):
        for replica in range(num_replicas):
            gradient = gradient_of(values[replica], step, replica)
            velocities[replica] = momentum * velocities[replica] - 0.125 * gradient
            values[replica] = values[replica] + velocities[replica]
        if (step + 1) % every == 0:
            values = [np.mean(values, axis=0)] * num_replicas
    return values


@pytest.mark.parametrize(("num_replicas", "steps"), [(1, 4), (2, 6), (3, 7), (5, 3)])
def test_replicas_go_on_by_themselves_and_average_every_three_steps(num_replicas: int, steps: int) -> None:
    ((values, receipts),) = run_strategy(trained(lambda: LocalSteps(Mean(), 3), steps), num_replicas)
    for value, want in zip(values, local_sgd(num_replicas, steps, 3, 0.9), strict=True):
        np.testing.assert_allclose(value, want, rtol=1e-5, atol=1e-6)
    if num_replicas > 1:
        assert receipts == ["variables"] * (steps // 3)


@pytest.mark.parametrize("average", [Mean(), Median(), Krum(1)], ids=lambda a: a.name)
def test_local_steps_give_the_same_bits_wherever_replicas_are(average: GradientAggregator) -> None:
    ((want, _),) = run_strategy(trained(lambda: LocalSteps(average, 2), 5), 5)
    for workers in (2, 3, 5, 6):
        results = run_strategy(trained(lambda: LocalSteps(average, 2), 5), 5, workers)
        found = [value.tobytes() for values, _ in results[:5] for value in values]
        assert found == [value.tobytes() for value in want], workers


def test_local_steps_of_one_are_the_mean_of_gradients_for_plain_descent() -> None:
    ((values, _),) = run_strategy(trained(lambda: LocalSteps(Mean(), 1), 3, momentum=0.0), 4)
    ((want, _),) = run_strategy(trained(Mean, 3, momentum=0.0), 4)
    np.testing.assert_allclose(values[0], want[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LocalSteps(Mean(), 0), "every must be at least 1, but is 0"),
        (lambda: LocalSteps(Sum(), 2), "local steps average the replicas' variables, and sum is no average of them"),
        (
            lambda: LocalSteps(Mean().compressed(TopK()), 2),
            "local steps average variables, and mean of top_k compresses",
        ),
        (lambda: LocalSteps(Mean(), 2).compressed(TopK()), "local steps average variables, and top_k compresses"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("scaled", [LossScaleOptimizer, LossScaleOptimizerV3])
@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_step_that_is_infinite_on_one_replica_is_left_out_by_all_and_copies_are_still_averaged(
    num_workers: int, scaled: Any
) -> None:
    def body(strategy: Strategy) -> tuple[list[list[float]], float]:
        with strategy.scope():
            w = tf.Variable(np.zeros(2, np.float32))
            inner = tf.keras.optimizers.SGD(1.0, gradient_aggregator=LocalSteps(Mean(), every=2))
            optimizer = scaled(inner, initial_scale=4.0)

        def step(number: int) -> Array:
            context = tf.distribute.get_replica_context()
            assert context is not None
            replica = context.replica_id_in_sync_group
            gradient = np.full(2, np.inf if (number, replica) == (1, 2) else replica, np.float32)
            scale = np.float32(optimizer.loss_scale if scaled is LossScaleOptimizerV3 else 1.0)
            optimizer.apply_gradients([(gradient * scale, w)])
            return w.numpy()

        values = [strategy.run(step, args=(number,)) for number in range(2 if scaled is LossScaleOptimizer else 3)]
        last = strategy.experimental_local_results(values[-1])
        return [np.asarray(value).tolist() for value in last], float(optimizer.loss_scale)

    found = [value for values, _ in run_strategy(body, 3, num_workers) for value in values]
    # Of the class of Keras 3, the average is taken after the second step that is made; the other's counts all.
    want = [[-2.0, -2.0]] * 3 if scaled is LossScaleOptimizerV3 else [[0.0, 0.0], [-1.0, -1.0], [-2.0, -2.0]]
    assert found == want
    assert {scale for _, scale in run_strategy(body, 3, num_workers)} == {2.0}
