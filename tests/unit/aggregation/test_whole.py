from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import distopt as tf
from distopt.aggregation import Adasum, GeometricMedian, Krum, MultiKrum, WholeAggregator
from distopt.distribute import Strategy
from distopt.testing import run_strategy
from distopt.types import Array

SHAPES = [(3, 2), (), (5,)]


def gradients_of(num_replicas: int, seed: int = 0) -> list[list[Array]]:
    """A few variables for each replica, float32: a common part and noise."""
    rng = np.random.default_rng(seed)
    common = [rng.standard_normal(shape) for shape in SHAPES]
    return [[(c + 0.3 * rng.standard_normal(c.shape)).astype(np.float32) for c in common] for _ in range(num_replicas)]


def flat(gradients: list[Array]) -> Array:
    return np.concatenate([gradient.astype(np.float64).reshape(-1) for gradient in gradients])


def krum_by_the_paper(points: Array, byzantine: int, selected: int) -> list[int]:
    """Blanchard et al. 2017, section 4: scores over the n - f - 2 closest, the best m of them."""
    count = len(points)
    scores = []
    for i in range(count):
        squares = sorted(np.sum((points[i] - points[j]) ** 2) for j in range(count) if j != i)
        scores.append(sum(squares[: count - byzantine - 2]))
    return sorted(range(count), key=lambda i: (scores[i], i))[:selected]


@pytest.mark.parametrize(("num_replicas", "byzantine"), [(3, 0), (5, 1), (8, 2), (9, 3)])
def test_krum_returns_the_contribution_that_the_paper_selects(num_replicas: int, byzantine: int) -> None:
    gradients = gradients_of(num_replicas, seed=num_replicas)
    (best,) = krum_by_the_paper(np.stack([flat(g) for g in gradients]), byzantine, 1)
    for got, want in zip(Krum(byzantine).combine(gradients), gradients[best], strict=True):
        assert got.tobytes() == want.tobytes()


@pytest.mark.parametrize(("num_replicas", "byzantine", "selected"), [(5, 1, 2), (8, 2, None), (8, 1, 8)])
def test_multi_krum_averages_those_that_the_paper_selects(
    num_replicas: int, byzantine: int, selected: int | None
) -> None:
    gradients = gradients_of(num_replicas, seed=3)
    points = np.stack([flat(g) for g in gradients])
    chosen = krum_by_the_paper(points, byzantine, selected or num_replicas - byzantine - 2)
    result = MultiKrum(byzantine, selected).combine(gradients)
    np.testing.assert_allclose(flat(result), points[chosen].mean(axis=0), rtol=1e-5, atol=1e-6)
    assert [r.shape for r in result] == SHAPES


def weiszfeld_by_the_paper(points: Array, start: Array, iterations: int, smoothing: float) -> Array:
    """Pillutla et al. 2019, algorithm 2, with equal weights."""
    center = start
    for _ in range(iterations):
        beta = 1.0 / np.maximum(smoothing, np.linalg.norm(points - center, axis=1))
        center = (beta[:, None] * points).sum(axis=0) / beta.sum()
    return center


@pytest.mark.parametrize("num_replicas", [1, 2, 3, 5, 8])
def test_geometric_median_is_the_papers_iteration(num_replicas: int) -> None:
    gradients = gradients_of(num_replicas, seed=5)
    points = np.stack([flat(g) for g in gradients])
    want = weiszfeld_by_the_paper(points, np.median(points, axis=0), 4, 1e-6)
    result = GeometricMedian(iterations=4).combine(gradients)
    np.testing.assert_allclose(flat(result), want, rtol=1e-4, atol=1e-5)


def test_geometric_median_has_nearly_the_least_sum_of_distances() -> None:
    gradients = gradients_of(5, seed=6)
    points = np.stack([flat(g) for g in gradients])
    exact = weiszfeld_by_the_paper(points, points.mean(axis=0), 2000, 1e-12)

    def cost(center: Array) -> float:
        return float(np.linalg.norm(points - center, axis=1).sum())

    assert cost(flat(GeometricMedian(8).combine(gradients))) <= 1.001 * cost(exact)


def adasum_by_the_paper(points: list[Array]) -> Array:
    """Maleki et al. 2021, section 3, over a binary tree whose left part is the largest power of two."""
    if len(points) == 1:
        return points[0]
    middle = 1 << (len(points) - 1).bit_length() - 1
    a, b = adasum_by_the_paper(points[:middle]), adasum_by_the_paper(points[middle:])
    return (1 - a @ b / (2 * a @ a)) * a + (1 - a @ b / (2 * b @ b)) * b


@pytest.mark.parametrize("num_replicas", [1, 2, 3, 5, 8])
def test_adasum_is_the_papers_formula_for_each_variable(num_replicas: int) -> None:
    gradients = gradients_of(num_replicas, seed=8)
    result = Adasum().combine(gradients)
    for i, got in enumerate(result):
        want = adasum_by_the_paper([g[i].astype(np.float64).reshape(-1) for g in gradients])
        np.testing.assert_allclose(got.reshape(-1), want, rtol=1e-5, atol=1e-6)
        assert got.dtype == np.float32


def test_adasum_with_a_replica_that_has_nothing_is_the_other_gradient() -> None:
    gradient = np.array([1.0, -2.0], np.float32)
    for pair in ([gradient, 0 * gradient], [0 * gradient, gradient]):
        np.testing.assert_array_equal(Adasum().combine([[g] for g in pair])[0], gradient)


@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e38, -1e30, 100.0])
@pytest.mark.parametrize("aggregator", [Krum(2), MultiKrum(2), GeometricMedian(16)])
def test_two_liars_of_eight_move_the_result_no_further_than_the_honest_ones_are_spread(
    aggregator: WholeAggregator, garbage: float
) -> None:
    gradients = gradients_of(8, seed=9)
    for liar in (1, 6):
        gradients[liar] = [np.full_like(g, garbage) for g in gradients[liar]]
    honest = np.stack([flat(g) for r, g in enumerate(gradients) if r not in (1, 6)])
    center = honest.mean(axis=0)
    # 2 (R - f) / (R - 2 f) times the largest distance: the bound of the geometric median, which is the weakest one.
    bound = 2 * 6 / 4 * np.linalg.norm(honest - center, axis=1).max()
    with np.errstate(all="ignore"):
        result = flat(aggregator.combine(gradients))
    assert np.linalg.norm(result - center) <= bound


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Krum(-1), "byzantine must be at least 0, but is -1"),
        (lambda: MultiKrum(1, 0), "selected must be at least 1, but is 0"),
        (lambda: GeometricMedian(0), "iterations must be at least 1, but is 0"),
        (lambda: GeometricMedian(1, 0.0), "smoothing must be greater than 0, but is 0.0"),
        (lambda: Krum(1).combine(gradients_of(4)), r"byzantine = 1 needs at least 2 \* 1 \+ 3 = 5 replicas, not 4"),
        (lambda: MultiKrum(1, 6).combine(gradients_of(5)), "selected = 6 is more than the 5 replicas"),
    ],
)
def test_option_out_of_range_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("aggregator", [Krum(1), MultiKrum(1), GeometricMedian(), Adasum()])
def test_whole_aggregator_gives_the_same_bits_wherever_replicas_are(aggregator: WholeAggregator) -> None:
    gradients = gradients_of(5, seed=11)

    def train(strategy: Strategy) -> bytes:
        with strategy.scope():
            variables = [tf.Variable(np.zeros(shape, np.float32), name=f"v{i}") for i, shape in enumerate(SHAPES)]
            optimizer = tf.keras.optimizers.Adam(0.1, gradient_aggregator=aggregator)

        def step() -> None:
            context = tf.distribute.get_replica_context()
            assert context is not None
            optimizer.apply_gradients(list(zip(gradients[context.replica_id_in_sync_group], variables, strict=True)))

        for _ in range(2):
            strategy.run(step)
        return b"".join(v.numpy().tobytes() for v in variables)

    want = run_strategy(train, 5, 1)
    for workers in (2, 3, 7):
        assert set(run_strategy(train, 5, workers)) == set(want), workers


def test_whole_aggregator_takes_row_sparse_gradients_as_dense_ones() -> None:
    strategy = tf.distribute.MirroredStrategy(5)
    with strategy.scope():
        table = tf.Variable(np.zeros((4, 2), np.float32), name="table")
        optimizer = tf.keras.optimizers.SGD(1.0, gradient_aggregator=Krum(1))

    def step() -> None:
        rows = tf.IndexedSlices(np.ones((2, 2), np.float32), np.array([1, 1]), (4, 2))
        optimizer.apply_gradients([(rows, table)])

    strategy.run(step)
    np.testing.assert_array_equal(table.numpy(), [[0, 0], [-2, -2], [0, 0], [0, 0]])
