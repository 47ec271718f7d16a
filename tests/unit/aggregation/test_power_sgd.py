from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import distopt as tf
from distopt.aggregation import GradientAggregator, Krum, Mean, Median, PowerSGD, Sum, TopK
from distopt.aggregation.power_sgd import orthonormal
from distopt.distribute import Strategy
from distopt.testing import run_strategy
from distopt.types import Array

SHAPES = [(12, 10), (10,), (3, 2, 8), ()]
"""A matrix, a vector, a tensor that is seen as a matrix of 6 by 8, a number."""
STEPS = 3


def gradient_of(step: int, replica: int, place: int) -> Array:
    rng = np.random.default_rng([step, replica, place])
    return rng.standard_normal(SHAPES[place]).astype(np.float32)


def trained(aggregator: GradientAggregator, rate: float = 1.0) -> Any:
    """Return a body that makes steps of gradient descent and returns the variables, what crossed, and the state."""

    def body(strategy: Strategy) -> tuple[list[Array], int, dict[str, Array]]:
        with strategy.scope():
            variables = [tf.Variable(np.zeros(shape, np.float32), name=f"v{i}") for i, shape in enumerate(SHAPES)]
            optimizer = tf.keras.optimizers.SGD(rate, gradient_aggregator=aggregator.compressed(PowerSGD(2)))

        def step(number: int) -> None:
            context = tf.distribute.get_replica_context()
            assert context is not None
            replica = context.replica_id_in_sync_group
            pairs = [(gradient_of(number, replica, i), v) for i, v in enumerate(variables)]
            optimizer.apply_gradients(pairs)

        for number in range(STEPS):
            strategy.run(step, args=(number,))
        received = sum(receipt.bytes_received for receipt in strategy.extended.last_receipts)
        return [v.numpy() for v in variables], received, dict(optimizer.state().extras)

    return body


def by_the_paper(num_replicas: int, place: int, q: Array, mean: bool) -> tuple[Array, list[Array]]:
    """Vogels et al. 2019, algorithms 1 and 2, in float64: what SGD with rate 1 has subtracted, and what is left over.

    Their all-reduce is a mean, and so is the decompressed result; the sum is that times the number of replicas.
    """
    shape = SHAPES[place]
    errors = [np.zeros((int(np.prod(shape[:-1])), shape[-1])) for _ in range(num_replicas)]
    total = np.zeros_like(errors[0])
    for step in range(STEPS):
        deltas = [
            gradient_of(step, replica, place).astype(np.float64).reshape(errors[0].shape) + errors[replica]
            for replica in range(num_replicas)
        ]
        p = np.mean([delta @ q for delta in deltas], axis=0)
        p, _ = np.linalg.qr(p)
        q = np.mean([delta.T @ p for delta in deltas], axis=0)
        update = p @ q.T
        errors = [delta - update for delta in deltas]
        total += update if mean else num_replicas * update
    return total.reshape(shape), errors


@pytest.mark.parametrize("num_replicas", [1, 2, 3, 5])
@pytest.mark.parametrize("aggregator", [Sum(), Mean()], ids=lambda a: a.name)
def test_power_sgd_is_the_papers_algorithm(aggregator: GradientAggregator, num_replicas: int) -> None:
    ((values, _, extras),) = run_strategy(trained(aggregator), num_replicas)
    for place in (0, 2):
        start = np.random.default_rng([place, *SHAPES[place]]).standard_normal((SHAPES[place][-1], 2))
        want, errors = by_the_paper(num_replicas, place, start, mean=aggregator.name == "mean")
        np.testing.assert_allclose(-values[place], want, rtol=1e-3, atol=1e-3)
        for replica, error in enumerate(errors):
            residual = extras[f"aggregator.residual.{replica}.{place}"]
            np.testing.assert_allclose(residual.reshape(error.shape), error, rtol=1e-3, atol=1e-3)
    for place in (1, 3):
        gradients = [gradient_of(step, r, place) for step in range(STEPS) for r in range(num_replicas)]
        want = np.sum(gradients, axis=0) / (num_replicas if aggregator.name == "mean" else 1)
        np.testing.assert_allclose(-values[place], want, rtol=1e-5, atol=1e-5)


def test_what_was_applied_and_what_is_left_over_come_to_all_gradients() -> None:
    ((values, _, extras),) = run_strategy(trained(Sum()), 3)
    left = sum(extras[f"aggregator.residual.{replica}.0"] for replica in range(3))
    everything = sum(gradient_of(step, replica, 0) for step in range(STEPS) for replica in range(3))
    np.testing.assert_allclose(-values[0] + left, everything, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_replicas", [2, 5])
def test_power_sgd_gives_the_same_bits_wherever_replicas_are(num_replicas: int) -> None:
    ((want, _, _),) = run_strategy(trained(Sum()), num_replicas)
    for workers in (2, 3, 6):
        for values, _, _ in run_strategy(trained(Sum()), num_replicas, workers):
            assert [v.tobytes() for v in values] == [v.tobytes() for v in want], workers


@pytest.mark.parametrize("num_replicas", [2, 8])
def test_factors_cross_added_up_however_many_replicas_a_process_hosts(num_replicas: int) -> None:
    (_, received, _), _ = run_strategy(trained(Sum()), num_replicas, 2)
    factors = 4 * 2 * ((12 + 10) + (6 + 8))
    assert received == factors + 4 * (10 + 1)


@pytest.mark.parametrize("aggregator", [Median(), Krum(1)], ids=lambda a: a.name)
def test_power_sgd_of_what_is_no_sum_is_refused(aggregator: GradientAggregator) -> None:
    with pytest.raises(
        ValueError, match=f"power_sgd compresses the sum .*, and {aggregator.name} needs each replica's"
    ):
        aggregator.compressed(PowerSGD())


def test_power_sgd_of_what_is_compressed_is_refused() -> None:
    with pytest.raises(ValueError, match="the sum of power_sgd is compressed already, and cannot be by top_k, too"):
        Sum().compressed(PowerSGD()).compressed(TopK())


def test_rank_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="rank must be at least 1, but is 0"):
        PowerSGD(0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_basis_is_orthonormal_and_a_dependent_column_gives_nothing(dtype: type) -> None:
    columns = np.random.default_rng(0).standard_normal((9, 4)).astype(dtype)
    columns[:, 2] = columns[:, 0] - 2 * columns[:, 1]
    basis = orthonormal(columns)
    assert basis.dtype == dtype
    np.testing.assert_allclose(basis.T @ basis, np.diag([1, 1, 0, 1]), atol=1e-6)
    assert not orthonormal(np.zeros((3, 2), dtype)).any()
