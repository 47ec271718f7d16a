from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import distopt as tf
from distopt.aggregation import (
    BFloat16,
    Compression,
    Float16,
    GradientAggregator,
    Int8,
    Krum,
    Mean,
    MeanBySamples,
    Median,
    Sum,
    TopK,
    note_samples,
)
from distopt.aggregation.memory import Memory
from distopt.distribute import Strategy
from distopt.errors import UnequalHypersError
from distopt.testing import run_strategy
from distopt.types import Array

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
CODES = [Float16(), BFloat16(), Int8(16), TopK(0.1), TopK(1.0)]


def values_of(size: int, dtype: Any = np.float32, seed: int = 0) -> Array:
    rng = np.random.default_rng([seed, size])
    return np.asarray(rng.standard_normal(size) * 10.0 ** rng.integers(-3, 3, size), dtype)


def decoded(compression: Compression, values: Array) -> Array:
    return compression.decode(compression.encode(values), values.size, values.dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 300])
@pytest.mark.parametrize("compression", CODES, ids=repr)
def test_code_has_the_length_that_is_known_beforehand(compression: Compression, size: int, dtype: type) -> None:
    values = values_of(size, dtype)
    code = compression.encode(values)
    assert code.dtype == np.uint8
    assert code.shape == (compression.num_bytes(size, values.dtype),)
    back = compression.decode(code, size, values.dtype)
    assert (back.shape, back.dtype) == (values.shape, values.dtype)


@pytest.mark.parametrize(
    ("compression", "dtype", "half_unit"),
    [(Float16(), np.float16, 2.0**-11), (BFloat16(), ml_dtypes.bfloat16, 2.0**-8)],
)
def test_cast_is_numpys_and_off_by_half_a_unit_in_the_last_place(
    compression: Compression, dtype: type, half_unit: float
) -> None:
    values = values_of(1000)
    back = decoded(compression, values)
    np.testing.assert_array_equal(back, values.astype(dtype).astype(np.float32))
    assert (np.abs(back - values) <= half_unit * np.abs(values) + 2.0**-25).all()  # float16's subnormal numbers


def test_number_too_large_for_a_cast_is_sent_as_the_largest_and_the_rest_is_left_over() -> None:
    memory, variable = Memory(), object()
    said, _ = Float16().contribution(memory, 0, variable, np.array([1e5, -1e9], np.float32))
    np.testing.assert_array_equal(said, [65504.0, -65504.0])
    left = memory.get("residual", 0, variable)
    assert left is not None
    np.testing.assert_array_equal(left, np.array([1e5, -1e9], np.float32) - said)


def int8_by_the_formula(values: Array, block: int) -> Array:
    """Of each block: the scale is its largest magnitude over 127, each number the nearest multiple of the scale."""
    back = np.empty_like(values)
    for start in range(0, values.size, block):
        part = values[start : start + block]
        scale = np.float32(np.abs(part).max()) / np.float32(127)
        back[start : start + block] = np.rint(part / scale) * scale if scale > 0 else 0
    return back


@pytest.mark.parametrize("block", [1, 16, 256])
def test_int8_is_the_nearest_multiple_of_each_blocks_scale(block: int) -> None:
    values = values_of(1000)
    values[32:64] = 0
    back = decoded(Int8(block), values)
    np.testing.assert_array_equal(back, int8_by_the_formula(values, block))
    largest = np.repeat([np.abs(values[i : i + block]).max() for i in range(0, 1000, block)], block)[:1000]
    assert (np.abs(back - values) <= 1.001 * largest / 254).all()


def test_int8_of_the_smallest_numbers_does_not_overflow() -> None:
    values = np.array([190, 3, -190, 0], np.float32) * np.float32(1.4e-45)
    assert np.abs(decoded(Int8(), values)).max() <= np.abs(values).max()


@pytest.mark.parametrize("ratio", [0.001, 0.1, 0.5, 1.0])
def test_top_k_keeps_the_largest_and_contracts_as_the_paper_says(ratio: float) -> None:
    values = values_of(200)
    values[10:20] = 7.0  # equal ones: the first are taken
    count = max(1, round(200 * ratio))
    kept = np.argsort(-np.abs(values), kind="stable")[:count]
    want = np.zeros_like(values)
    want[kept] = values[kept]
    back = decoded(TopK(ratio), values)
    np.testing.assert_array_equal(back, want)
    assert np.sum((values - back) ** 2) <= (1 - count / 200) * np.sum(values**2) * 1.00001


@pytest.mark.parametrize("compression", CODES, ids=repr)
def test_what_was_said_and_what_is_left_come_to_all_gradients(compression: Compression) -> None:
    memory, variable = Memory(), object()
    gradients = [values_of(100, np.float64, seed).reshape(20, 5) for seed in range(6)]
    said = sum(compression.contribution(memory, 3, variable, g)[0] for g in gradients)
    left = memory.get("residual", 3, variable)
    assert left is not None
    np.testing.assert_allclose(said + left, sum(gradients), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("compression", CODES, ids=repr)
def test_what_is_not_finite_is_seen_and_leaves_nothing_over(compression: Compression) -> None:
    memory, variable = Memory(), object()
    gradient = values_of(40)
    gradient[3], gradient[7] = np.nan, np.inf
    said, _ = compression.contribution(memory, 0, variable, gradient)
    left = memory.get("residual", 0, variable)
    assert left is not None
    assert not np.isfinite(said[[3, 7]]).any()
    assert np.isfinite(left).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Int8(0), "block must be at least 1, but is 0"),
        (lambda: TopK(0.0), "ratio must be greater than 0 and at most 1, but is 0.0"),
        (lambda: TopK(1.5), "ratio must be greater than 0 and at most 1, but is 1.5"),
        (lambda: Sum().compressed(TopK()).compressed(Int8()), "the sum of top_k are compressed already"),
        (lambda: note_samples(-1), "a replica cannot have -1 samples"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# ------------------------------------------------------------------------------------------ on the gradient's path

SHAPES = [(300, 20), (20,)]


def train(aggregator: Any, steps: int = 3, hook: Any = None) -> Any:
    """Return a body that trains on gradients that differ by replica and step.

    It returns the bits of the variables, and how many bytes the last step has received.
    """

    def body(strategy: Strategy) -> tuple[bytes, int]:
        with strategy.scope():
            variables = [tf.Variable(np.zeros(shape, np.float32), name=f"v{i}") for i, shape in enumerate(SHAPES)]
            hooks = {} if hook is None else {"gradient_transformers": [hook]}
            optimizer = tf.keras.optimizers.Adam(0.1, gradient_aggregator=aggregator(), **hooks)

        def step(number: int) -> None:
            context = tf.distribute.get_replica_context()
            assert context is not None
            replica = context.replica_id_in_sync_group
            note_samples(replica + 1)
            gradients = [values_of(int(np.prod(s)), seed=100 * number + replica).reshape(s) for s in SHAPES]
            optimizer.apply_gradients(list(zip(gradients, variables, strict=True)))

        for number in range(steps):
            strategy.run(step, args=(number,))
        received = sum(receipt.bytes_received for receipt in strategy.extended.last_receipts)
        return b"".join(v.numpy().tobytes() for v in variables), received

    return body


@pytest.mark.parametrize("num_replicas", [1, 3, 5])
@pytest.mark.parametrize("compression", CODES, ids=repr)
@pytest.mark.parametrize("aggregator", [Sum(), Median(), MeanBySamples()], ids=lambda a: a.name)
def test_compressed_contributions_give_the_same_bits_wherever_replicas_are(
    aggregator: GradientAggregator, compression: Compression, num_replicas: int
) -> None:
    body = train(lambda: aggregator.compressed(compression))
    ((want, _),) = run_strategy(body, num_replicas, 1)
    for workers in (2, 4):
        assert {bits for bits, _ in run_strategy(body, num_replicas, workers)} == {want}, workers


@pytest.mark.parametrize("hook", [None, lambda pairs: pairs], ids=["at owners", "on replicas"])
@pytest.mark.parametrize("aggregator", [Median(), Krum(1)], ids=lambda a: a.name)
def test_hook_on_the_path_changes_no_bit_of_compressed_contributions(aggregator: GradientAggregator, hook: Any) -> None:
    body = train(lambda: aggregator.compressed(TopK(0.1)), hook=hook)
    want = {bits for bits, _ in run_strategy(train(lambda: aggregator.compressed(TopK(0.1))), 5, 1)}
    for workers in (1, 2, 5):
        assert {bits for bits, _ in run_strategy(body, 5, workers)} == want, workers


@pytest.mark.parametrize(
    ("compression", "share"), [(Float16(), 0.5), (BFloat16(), 0.5), (Int8(), 0.26), (TopK(0.01), 0.021)], ids=repr
)
def test_codes_cross_the_boundary_of_a_process_in_so_many_bytes(compression: Compression, share: float) -> None:
    dense, coded = (
        run_strategy(train(aggregator), 2, 2)[0][1] for aggregator in (Sum, lambda: Sum().compressed(compression))
    )
    assert coded == sum(compression.num_bytes(int(np.prod(s)), np.dtype(np.float32)) for s in SHAPES)
    assert coded <= share * dense


def test_sums_cross_instead_of_codes_where_that_takes_fewer_bytes() -> None:
    (_, dense), _ = run_strategy(train(Sum), 8, 2)
    (_, coded), _ = run_strategy(train(lambda: Sum().compressed(Float16())), 8, 2)
    assert coded == dense


def test_residuals_are_part_of_the_optimizers_state_and_go_on_after_a_restart() -> None:
    strategy = tf.distribute.MirroredStrategy(3)
    gradients = [values_of(50, seed=s) for s in range(12)]

    def run(steps: range, state: Any = None, start: Any = None) -> tuple[Any, Array]:
        with strategy.scope():
            w = tf.Variable(np.zeros(50, np.float32) if start is None else start, name="w")
            optimizer = tf.keras.optimizers.SGD(0.1, 0.9, gradient_aggregator=Sum().compressed(TopK(0.1)))
        optimizer.build([w])
        if state is not None:
            optimizer.load_state(state)

        def step(number: int) -> None:
            context = tf.distribute.get_replica_context()
            assert context is not None
            optimizer.apply_gradients([(gradients[3 * number + context.replica_id_in_sync_group], w)])

        for number in steps:
            strategy.run(step, args=(number,))
        return optimizer.state(), w.numpy()

    whole_state, whole = run(range(4))
    half_state, half = run(range(2))
    state, value = run(range(2, 4), half_state, half)
    assert value.tobytes() == whole.tobytes()
    names = [f"aggregator.residual.{replica}.0" for replica in range(3)]
    assert [name for name in whole_state.extras if name.startswith("aggregator.")] == names
    for name in names:
        assert state.extras[name].tobytes() == whole_state.extras[name].tobytes()
        assert np.abs(whole_state.extras[name]).max() > 0


@pytest.mark.parametrize("built", [True, False], ids=["built before", "built after"])
def test_checkpoint_of_objects_holds_residuals(tmp_path: Path, built: bool) -> None:
    strategy = tf.distribute.MirroredStrategy(2)

    def make() -> tuple[Any, Any]:
        with strategy.scope():
            w = tf.Variable(np.zeros(50, np.float32), name="w")
        return w, tf.keras.optimizers.SGD(0.1, 0.9, gradient_aggregator=Sum().compressed(TopK(0.1)))

    def train_on(w: Any, optimizer: Any, steps: range) -> None:
        def step(number: int) -> None:
            context = tf.distribute.get_replica_context()
            assert context is not None
            gradient = values_of(50, seed=10 * number + context.replica_id_in_sync_group)
            optimizer.apply_gradients([(gradient, w)])

        for number in steps:
            strategy.run(step, args=(number,))

    w, optimizer = make()
    train_on(w, optimizer, range(2))
    saved = tf.train.Checkpoint(w=w, optimizer=optimizer).save(str(tmp_path / "point"))
    train_on(w, optimizer, range(2, 4))
    other, fresh = make()
    if built:
        fresh.build([other])
    tf.train.Checkpoint(w=other, optimizer=fresh).restore(saved)
    train_on(other, fresh, range(2, 4))
    assert other.numpy().tobytes() == w.numpy().tobytes()


def test_processes_with_other_options_of_the_aggregator_are_refused() -> None:
    def body(strategy: Strategy) -> None:
        with strategy.scope():
            w = tf.Variable(np.zeros(3, np.float32), name="w")
            aggregator = Sum().compressed(TopK(0.1 + 0.1 * strategy.extended.rank))
            optimizer = tf.keras.optimizers.SGD(1.0, gradient_aggregator=aggregator)
        strategy.run(lambda: optimizer.apply_gradients([(np.ones(3, np.float32), w)]))

    with pytest.raises(UnequalHypersError, match=r"gradient_aggregator is .*TopK\(ratio=0.1\).* on rank 0 and .*0.2"):
        run_strategy(body, 2, 2)


def test_row_sparse_gradient_is_made_dense_before_it_is_compressed() -> None:
    strategy = tf.distribute.MirroredStrategy(2)
    with strategy.scope():
        table = tf.Variable(np.zeros((4, 2), np.float32), name="table")
        optimizer = tf.keras.optimizers.SGD(1.0, gradient_aggregator=Sum().compressed(TopK(1.0)))

    def step() -> None:
        rows = tf.IndexedSlices(np.ones((2, 2), np.float32), np.array([1, 1]), (4, 2))
        optimizer.apply_gradients([(rows, table)])

    strategy.run(step)
    np.testing.assert_array_equal(table.numpy(), [[0, 0], [-4, -4], [0, 0], [0, 0]])


def test_variable_listed_twice_is_refused_where_something_is_remembered_of_it() -> None:
    strategy = tf.distribute.MirroredStrategy(2)
    with strategy.scope():
        w = tf.Variable(np.zeros(2, np.float32), name="w")
        optimizer = tf.keras.optimizers.SGD(1.0, gradient_aggregator=Sum().compressed(TopK(1.0)))
    with pytest.raises(
        ValueError, match="sum of top_k remembers what is left by variable, so none may be listed twice"
    ):
        strategy.run(lambda: optimizer.apply_gradients([(np.ones(2, np.float32), w)] * 2))


# -------------------------------------------------------------------------------------------------- mean by samples


def test_mean_by_samples_weighs_each_replica_by_what_it_noted() -> None:
    counts, gradients = [3, 0, 5], [1.0, 1000.0, 9.0]

    def body(strategy: Strategy) -> float:
        with strategy.scope():
            w = tf.Variable(np.float32(0), name="w")
            optimizer = tf.keras.optimizers.SGD(1.0, gradient_aggregator=MeanBySamples())

        def step() -> None:
            context = tf.distribute.get_replica_context()
            assert context is not None
            note_samples(counts[context.replica_id_in_sync_group])
            optimizer.apply_gradients([(np.float32(gradients[context.replica_id_in_sync_group]), w)])

        strategy.run(step)
        return float(w.numpy())

    for workers in (1, 2, 3, 4):
        assert run_strategy(body, 3, workers) == [-(3 * 1.0 + 5 * 9.0) / 8] * workers


@pytest.mark.parametrize(
    ("noted", "message"), [(None, "replica 0 has not noted how many it has"), (0, "no replica has noted a sample")]
)
def test_mean_by_samples_without_samples_is_refused(noted: int | None, message: str) -> None:
    strategy = tf.distribute.MirroredStrategy(2)
    with strategy.scope():
        w = tf.Variable(np.float32(0), name="w")
        optimizer = tf.keras.optimizers.SGD(1.0, gradient_aggregator=MeanBySamples())

    def step() -> None:
        if noted is not None:
            note_samples(noted)
        optimizer.apply_gradients([(np.float32(1), w)])

    with pytest.raises(ValueError, match=message):
        strategy.run(step)
    assert float(w.numpy()) == 0


def test_mean_by_samples_of_equal_numbers_is_the_mean() -> None:
    def value(aggregator: GradientAggregator) -> float:
        strategy = tf.distribute.MirroredStrategy(4)
        with strategy.scope():
            w = tf.Variable(np.float32(0), name="w")
            optimizer = tf.keras.optimizers.SGD(1.0, gradient_aggregator=aggregator)

        def step() -> None:
            context = tf.distribute.get_replica_context()
            assert context is not None
            note_samples(16)
            optimizer.apply_gradients([(np.float32(context.replica_id_in_sync_group), w)])

        strategy.run(step)
        return float(w.numpy())

    assert value(MeanBySamples()) == value(Mean()) == -1.5
