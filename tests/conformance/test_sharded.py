"""Placement ``sharded``: the bits of one process; see ``tests/conftest.py`` for where the bodies run."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import distopt as tf
from distopt.aggregation import Compression, Int8, Mean, Sum, TopK
from distopt.comm.communicator import Communicator
from distopt.comm.shared_memory import segments
from distopt.distribute import MirroredStrategy, MultiWorkerMirroredStrategy, Strategy
from distopt.errors import ForeignVariableError, PlacementError, SharedMemoryError, UnaggregatedGradientsError
from distopt.optimizers import LossScaleOptimizerV3
from distopt.types import Array
from tests.conformance.test_strategies import OPTIMIZERS, adam, expected, gradient, rows, sgd, trace
from tests.conftest import GROUPS, MPI_WORLD_SIZE, Run

FEW = GROUPS if MPI_WORLD_SIZE > 1 else ["in_process-2", "in_process-5"]
few = pytest.mark.parametrize("run", FEW, indirect=True)
"""For what does not depend on the number of processes, but that there are some, also more than replicas."""

REFUSED = ("whole-gradients", "transformer")
DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16, np.float64)


def sharded(run: Run, replicas: int, body: Callable[[Strategy], Any]) -> list[Any]:
    def worker(comm: Communicator) -> Any:
        return body(MultiWorkerMirroredStrategy(replicas=replicas, communicator=comm, placement="sharded"))

    return run(worker)


def apply(strategy: Strategy, optimizer: Any, variables: list[Any], step: int, scale: float = 1.0) -> None:
    """Make a step with gradients that differ between replicas, steps and variables, and by magnitudes."""

    def replica() -> None:
        context = tf.distribute.get_replica_context()
        assert context is not None
        pairs = []
        for place, variable in enumerate(variables):
            rng = np.random.default_rng([step, context.replica_id_in_sync_group, place])
            values = rng.standard_normal(variable.shape) * 10.0 ** rng.integers(-3, 2, variable.shape) * scale
            pairs.append((tf.Tensor(np.asarray(values).astype(variable.dtype)), variable))
        optimizer.apply_gradients(pairs)

    strategy.run(replica)


def bits(optimizer: Any, variables: list[Any]) -> list[bytes]:
    return [array.tobytes() for array in (*(v.numpy() for v in variables), *optimizer.get_weights())]


def replica_in_shared_memory(
    run: Run, replicas: int, body: Callable[[Strategy], Any], exchange_cost_bytes: int
) -> list[Any]:
    def worker(comm: Communicator) -> Any:
        comm.shares_memory = True
        comm.exchange_cost_bytes = exchange_cost_bytes
        return body(MultiWorkerMirroredStrategy(replicas=replicas, communicator=comm))

    return run(worker)


@few
@pytest.mark.parametrize("exchange_cost_bytes", [0, 1 << 30], ids=["in parts", "whole"])
@pytest.mark.parametrize("name", ["nesterov-mean", "median", "muon-local-clip", "features"])
def test_replica_reads_gradients_where_they_lie_with_the_bits_of_one_process(
    run: Run, name: str, exchange_cost_bytes: int
) -> None:
    make = OPTIMIZERS[name]
    want = expected(5, make)
    for got in replica_in_shared_memory(run, 5, lambda strategy: trace(strategy, make), exchange_cost_bytes):
        assert got == want
    want = expected(1, make, sparse=True)
    for got in replica_in_shared_memory(run, 1, lambda s: trace(s, make, sparse=True), exchange_cost_bytes):
        assert got == want


@few
@pytest.mark.parametrize("placement", ["sharded", "replica"])
def test_gradients_that_a_program_keeps_do_not_change(run: Run, placement: str) -> None:
    def body(strategy: Strategy) -> tuple[bool, int]:
        with strategy.scope():
            kernel, optimizer = tf.Variable(np.full((200, 90), 0.5, np.float32)), tf.keras.optimizers.SGD(0.1)
        kept, lay_in_shared_memory = [], []

        def step(number: int) -> None:
            context = tf.distribute.get_replica_context()
            assert context is not None
            rng = np.random.default_rng([number, context.replica_id_in_sync_group])
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(tf.ops.dense(rng.standard_normal((3, 200)).astype(np.float32), kernel))
            (gradient,) = tape.gradient(loss, [kernel])
            lay_in_shared_memory.append(gradient.numpy().base is not None)
            kept.append((gradient, gradient.numpy().copy()))
            optimizer.apply_gradients([(gradient, kernel)])

        for number in range(4):
            strategy.run(step, args=(number,))
        return all(np.array_equal(now.numpy(), then) for now, then in kept), sum(lay_in_shared_memory)

    size = MPI_WORLD_SIZE if MPI_WORLD_SIZE > 1 else run.size
    found = sharded(run, size, body) if placement == "sharded" else replica_in_shared_memory(run, size, body, 0)
    assert all(is_unchanged for is_unchanged, _ in found)
    assert all(num_in_place for _, num_in_place in found)


@few
def test_replica_in_shared_memory_skips_a_step_that_is_not_finite(run: Run) -> None:
    def body(strategy: Strategy) -> list[bytes]:
        strategy.extended.checks = tf.distribute.Checks(non_finite="skip")
        with strategy.scope():
            variables = [tf.Variable(np.full(300, 0.5, np.float32))]
        optimizer = adam()
        for step, scale in enumerate((1.0, np.nan, 1.0)):
            apply(strategy, optimizer, variables, step, scale)
        return bits(optimizer, variables)

    want = body(MirroredStrategy(3))
    for cost in (0, 1 << 30):
        for got in replica_in_shared_memory(run, 3, body, cost):
            assert got == want


@pytest.mark.parametrize(
    ("name", "replicas"), [("adam", 2), ("sgd", 8), *((name, 5) for name in OPTIMIZERS if name not in REFUSED)]
)
def test_training_has_the_bits_of_one_process(run: Run, replicas: int, name: str) -> None:
    make = OPTIMIZERS[name]
    want = expected(replicas, make)
    for got in sharded(run, replicas, lambda strategy: trace(strategy, make)):
        assert got == want


@few
@pytest.mark.parametrize("name", ["sgd", "global-clip", "features"])
def test_training_with_row_sparse_gradients_has_the_bits_of_one_process(run: Run, name: str) -> None:
    make = OPTIMIZERS[name]
    want = expected(3, make, sparse=True)
    for got in sharded(run, 3, lambda strategy: trace(strategy, make, sparse=True)):
        assert got == want


@few
@pytest.mark.parametrize("replicas", [1, 5])
def test_mixed_dtypes_late_variables_and_subsets_have_the_bits_of_one_process(run: Run, replicas: int) -> None:
    def body(strategy: Strategy) -> list[bytes]:
        with strategy.scope():
            shapes = ((5000,), (), (0, 3), (33, 7))
            variables = [tf.Variable(np.full(shape, 0.5).astype(dtype)) for dtype in DTYPES for shape in shapes]
        optimizer = adam(global_clipnorm=0.7)
        apply(strategy, optimizer, variables[::2], 0)
        apply(strategy, optimizer, variables, 1)
        with strategy.scope():
            variables.append(tf.Variable(np.ones(9000, np.float32)))
        apply(strategy, optimizer, variables[::-1], 2)
        apply(strategy, optimizer, variables[5:], 3)
        return bits(optimizer, variables)

    want = body(MirroredStrategy(replicas))
    for got in sharded(run, replicas, body):
        assert got == want


@few
def test_two_optimizers_that_share_variables_and_averages_of_subsets_have_the_bits_of_one_process(run: Run) -> None:
    def body(strategy: Strategy) -> list[bytes]:
        with strategy.scope():
            variables = [tf.Variable(np.full(shape, 0.5, np.float32)) for shape in ((5000,), (3,), (17, 400))]
        first = adam(use_ema=True, ema_overwrite_frequency=3, weight_decay=0.01)
        second = sgd(clipnorm=0.5)
        for step in range(4):
            apply(strategy, first, variables[step % 2 :], step)
            apply(strategy, second, variables[:2], 10 + step)
        first.finalize_variable_values(variables)
        return [*bits(first, variables), *bits(second, variables)]

    want = body(MirroredStrategy(3))
    for got in sharded(run, 3, body):
        assert got == want


@few
@pytest.mark.parametrize("make", [tf.keras.optimizers.AdamW, tf.keras.optimizers.Muon])
def test_averages_of_variables_that_no_step_has_had_yet_go_on_in_every_process(run: Run, make: Any) -> None:
    def body(strategy: Strategy) -> list[bytes]:
        with strategy.scope():
            variables = [tf.Variable(np.full((5, 3), 0.5).astype(dtype)) for dtype in DTYPES]
        optimizer = make(0.1, use_ema=True, gradient_accumulation_steps=2, weight_decay=0.01)
        optimizer.build(variables)
        for variable in variables:
            variable.assign_add(np.ones((5, 3), variable.dtype))
        for step in range(4):
            apply(strategy, optimizer, variables[1 + step // 2 :], step)
        return bits(optimizer, variables)

    want = body(MirroredStrategy(3))
    for got in sharded(run, 3, body):
        assert got == want


@few
def test_constraints_are_applied_by_the_owner_of_the_whole_variable(run: Run) -> None:
    def body(strategy: Strategy) -> list[bytes]:
        with strategy.scope():
            variables = [
                tf.Variable(np.full(9000, 0.5, np.float32), constraint=lambda w: w / tf.norm(w)) for _ in range(3)
            ]
        optimizer = sgd()
        for step in range(3):
            apply(strategy, optimizer, variables, step)
        return bits(optimizer, variables)

    want = body(MirroredStrategy(3))
    for got in sharded(run, 3, body):
        assert got == want


@few
def test_assignments_and_restored_weights_are_made_once(run: Run) -> None:
    def body(strategy: Strategy) -> list[bytes]:
        with strategy.scope():
            variables = [tf.Variable(np.full(300, 0.5, np.float32))]
        optimizer = adam()
        apply(strategy, optimizer, variables, 0)
        weights, state = optimizer.get_weights(), optimizer.state()
        variables[0].assign(variables[0] * 0.5)
        variables[0].assign_add(np.ones(300, np.float32))
        apply(strategy, optimizer, variables, 1)
        optimizer.set_weights(weights)
        apply(strategy, optimizer, variables, 2)
        optimizer.load_state(state)
        apply(strategy, optimizer, variables, 3)
        return bits(optimizer, variables)

    want = body(MirroredStrategy(2))
    for got in sharded(run, 2, body):
        assert got == want


def test_every_process_maps_the_same_variables_and_slots(run: Run) -> None:
    def worker(comm: Communicator) -> tuple[bool, list[float]]:
        strategy = MultiWorkerMirroredStrategy(replicas=2, communicator=comm, placement="sharded")
        variable = tf.Variable(np.zeros(10, np.float32))
        optimizer = adam()
        apply(strategy, optimizer, [variable], 0)
        group = comm.host_group
        for rank in range(comm.size):
            if rank == comm.rank:
                variable.storage[rank] = rank + 1.0
                optimizer.get_slot(variable, "m").storage[rank] = rank + 2.0
            group.exchange("turn")
        found = [*variable.numpy()[: comm.size], *optimizer.get_slot(variable, "m").numpy()[: comm.size]]
        group.exchange("seen")
        return strategy.placement == "sharded", [float(x) for x in found]

    size = run.size
    for is_sharded, found in run(worker):
        assert is_sharded
        assert found == [rank + 1.0 for rank in range(size)] + [rank + 2.0 for rank in range(size)]


@few
@pytest.mark.parametrize("name", REFUSED)
def test_hooks_over_whole_gradients_are_refused_by_name_before_anything_changes(run: Run, name: str) -> None:
    def body(strategy: Strategy) -> tuple[str, int, Array]:
        optimizer = OPTIMIZERS[name]()
        variable = tf.Variable(np.ones((4, 3), np.float32))
        with pytest.raises(PlacementError) as raised:
            apply(strategy, optimizer, [variable], 0)
        return str(raised.value), int(optimizer.iterations.numpy()), variable.numpy()

    for message, iterations, value in sharded(run, 3, body):
        assert "needs whole gradients, but with placement 'sharded'" in message
        assert iterations == 0
        np.testing.assert_array_equal(value, np.ones((4, 3)))


def test_values_of_single_replicas_are_refused(run: Run) -> None:
    def body(strategy: Strategy) -> None:
        variable = tf.Variable(np.ones(3, np.float32))
        with pytest.raises(UnaggregatedGradientsError, match="share one value"):
            strategy.run(lambda: sgd().apply_gradients([(np.ones(3, np.float32), variable)], None, False))
        with pytest.raises(PlacementError, match="would give each replica a value of its own"):
            strategy.run(lambda: variable.assign(np.zeros(3, np.float32)))

    sharded(run, run.size + 1, body)


def rows_begin_on_replica_0(strategy: Strategy) -> list[bytes]:
    """Return the bits after four steps; in the last two the gradient of replica 0, and of no other, is row-sparse."""
    with strategy.scope():
        table = tf.Variable(np.ones((6, 3), np.float32))
    optimizer = adam()

    def replica(step: int) -> None:
        context = tf.distribute.get_replica_context()
        assert context is not None
        slices = rows(step, context.replica_id_in_sync_group)
        has_rows = step > 1 and context.replica_id_in_sync_group == 0
        optimizer.apply_gradients([(slices if has_rows else tf.Tensor(slices.to_dense()), table)])

    for step in range(4):
        strategy.run(replica, args=(step,))
    return bits(optimizer, [table])


@few
def test_rows_that_begin_in_one_process_alone_have_the_bits_of_one_process(run: Run) -> None:
    want = rows_begin_on_replica_0(MirroredStrategy(3))
    for got in sharded(run, 3, rows_begin_on_replica_0):
        assert got == want


@few
def test_gradients_written_into_the_arrays_given_for_it_have_the_bits_of_one_process(run: Run) -> None:
    shapes = ((70, 90), (), (5000,), *[(3, 5), (7,)] * 10)

    def body(strategy: Strategy) -> list[bytes]:
        with strategy.scope():
            variables = [tf.Variable(np.full(shape, 0.5, np.float32)) for shape in shapes]
        optimizer = adam(global_clipnorm=0.3)
        arrays = strategy.extended.gradient_arrays(optimizer, variables)
        for array, variable in zip(arrays, variables, strict=True):
            assert (array.shape, array.dtype) == (variable.shape, variable.dtype)

        def replica(step: int) -> None:
            context = tf.distribute.get_replica_context()
            assert context is not None
            values = [gradient(step, context.replica_id_in_sync_group, shape).numpy() for shape in shapes]
            if strategy.extended.num_hosted == 1:
                for array, value in zip(arrays, values, strict=True):
                    array[...] = value
                values = arrays
            given = (tf.Tensor if step % 2 else np.asarray, tf.Tensor if step < 4 else np.copy)
            gradients = [given[position % 2](value) for position, value in enumerate(values)]
            optimizer.apply_gradients(zip(gradients, variables, strict=True))

        for step in range(5):
            strategy.run(replica, args=(step,))
        return bits(optimizer, variables)

    replicas = run.size
    want = body(MirroredStrategy(replicas))
    for got in sharded(run, replicas, body):
        assert got == want


@few
def test_too_little_memory_is_an_error_on_every_process_before_anything_changes(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "available_bytes", lambda *_: 5_000)

    def body(strategy: Strategy) -> tuple[str, int, float]:
        with strategy.scope():
            variable = tf.Variable(np.ones(3000, np.float32))
        optimizer = adam()
        with pytest.raises(SharedMemoryError) as raised:
            apply(strategy, optimizer, [variable], 0)
        return str(raised.value), int(optimizer.iterations.numpy()), float(variable.numpy().sum())

    for message, iterations, total in sharded(run, run.size, body):
        assert "rank 0: 48,128 bytes of shared memory are needed, 5,000 are available" in message
        assert (iterations, total) == (0, 3000.0)


@few
def test_each_process_takes_the_pages_of_what_it_owns(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    page, size = segments.HUGE_PAGE, 2_000_000  # elements: 3.8 huge pages for each array
    begins = [4 * size * array for array in range(4)]  # the variable, and three slots
    end = 4 * size * 4
    take, taken = segments.take, threading.local()

    def take_and_note(descriptor: int, start: int, stop: int) -> None:
        take(descriptor, start, stop)
        if os.fstat(descriptor).st_size == end:
            taken.parts.append((start, stop))

    monkeypatch.setattr(segments, "take", take_and_note)

    def body(comm: Communicator) -> tuple[list[tuple[int, int]], tuple[int, int]]:
        taken.parts = []
        strategy = MultiWorkerMirroredStrategy(communicator=comm, placement="sharded")
        with strategy.scope():
            variable = tf.Variable(np.ones(size, np.float32))
        optimizer = adam()
        apply(strategy, optimizer, [variable], 0)
        (span,) = optimizer.layout([variable]).divide(comm.size)[comm.rank]
        return taken.parts, (span.start * 4, span.stop * 4)

    results = run(body)
    for parts, (start, stop) in results:
        for first, last in parts:
            assert any(
                0 <= first - (begin + start) < page and (0 <= last - (begin + stop) < page or last == end)
                for begin in begins
            )
    if MPI_WORLD_SIZE == 1:
        every = sorted(part for parts, _ in results for part in parts)
        assert [start for start, _ in every] == [0, *(stop for _, stop in every[:-1])]
        assert every[-1][1] == end


@few
@pytest.mark.parametrize("compression", [Int8(), TopK(0.1)], ids=repr)
def test_compressed_contributions_have_the_bits_of_one_process(run: Run, compression: Compression) -> None:
    def make() -> Any:
        return adam(gradient_aggregator=Sum().compressed(compression))

    want = expected(3, make)
    for got in sharded(run, 3, lambda strategy: trace(strategy, make)):
        assert got == want


@few
def test_shared_variable_is_not_updated_by_one_process_alone(run: Run) -> None:
    def body(strategy: Strategy) -> float:
        with strategy.scope():
            variable = tf.Variable(np.ones(10, np.float32))
        apply(strategy, sgd(), [variable], 0)
        before = variable.numpy()
        with pytest.raises(ForeignVariableError, match="memory that several processes share"):
            sgd().apply_gradients([(np.ones(10, np.float32), variable)])
        return float(np.abs(variable.numpy() - before).sum())

    assert set(sharded(run, 2, body)) == {0.0}


@few
@pytest.mark.parametrize("kind", [tf.keras.optimizers.LossScaleOptimizer, LossScaleOptimizerV3])
def test_what_a_compression_leaves_over_counts_once_where_gradients_are_looked_at_before(run: Run, kind: Any) -> None:
    """A scaled loss has gradients combined twice where owners update; also in a step that is left out."""

    def body(strategy: Strategy) -> list[bytes]:
        with strategy.scope():
            variable = tf.Variable(np.ones(700, np.float32))
            inner = adam(gradient_aggregator=Sum().compressed(Int8()))
            optimizer = kind(inner, initial_scale=4.0)

        def step(number: int) -> None:
            replica = int(tf.distribute.get_replica_context().replica_id_in_sync_group)
            gradient = np.random.default_rng([number, replica]).standard_normal(700).astype(np.float32)
            gradient[0] = np.inf if number == 1 and replica == 2 else 0.5
            optimizer.apply_gradients([(gradient, variable)])

        for number in range(4):
            strategy.run(step, args=(number,))
        return [variable.numpy().tobytes(), *(value.numpy().tobytes() for value in inner.variables())]

    want = body(MirroredStrategy(5))
    for got in sharded(run, 5, body):
        assert got == want


@few
@pytest.mark.parametrize("kind", [tf.keras.optimizers.LossScaleOptimizer, LossScaleOptimizerV3])
def test_rows_of_a_scaled_loss_are_added_before_the_mean_is_taken_also_where_it_is_looked_at(
    run: Run, kind: Any
) -> None:
    def body(strategy: Strategy) -> list[bytes]:
        with strategy.scope():
            table = tf.Variable(np.ones((6, 3), np.float32))
            inner = tf.keras.optimizers.SGD(0.1, 0.9, gradient_aggregator=Mean())
            optimizer = kind(inner, initial_scale=4.0)

        def step(number: int) -> None:
            replica = int(tf.distribute.get_replica_context().replica_id_in_sync_group)
            optimizer.apply_gradients([(rows(number, replica), table)])

        for number in range(3):
            strategy.run(step, args=(number,))
        return bits(inner, [table])

    want = body(MirroredStrategy(5))
    for got in sharded(run, 5, body):
        assert got == want


@few
def test_rows_beside_a_variable_listed_twice_are_added_before_the_mean_is_taken(run: Run) -> None:
    def body(strategy: Strategy) -> list[bytes]:
        with strategy.scope():
            table, other = tf.Variable(np.ones((6, 3), np.float32)), tf.Variable(np.ones(5, np.float32))
        optimizer = tf.keras.optimizers.SGD(0.1, 0.9, gradient_aggregator=Mean())

        def step(number: int) -> None:
            replica = int(tf.distribute.get_replica_context().replica_id_in_sync_group)
            twice = [(gradient(number, replica, (5,)), other)] * 2
            optimizer.apply_gradients([(rows(number, replica), table), *twice])

        for number in range(3):
            strategy.run(step, args=(number,))
        return bits(optimizer, [table, other])

    want = body(MirroredStrategy(5))
    for got in sharded(run, 5, body):
        assert got == want


INNER: dict[str, Callable[[], Any]] = {
    "scaled": lambda: adam(loss_scale_factor=128.0),
    "clipped before the sum": lambda: tf.keras.optimizers.AdamW(0.1, clipnorm=0.02),
}


@few
@pytest.mark.parametrize("kind", [tf.keras.optimizers.LossScaleOptimizer, LossScaleOptimizerV3])
@pytest.mark.parametrize("inner", INNER)
def test_what_replicas_do_to_their_gradients_comes_before_the_sum_also_where_it_is_looked_at(
    run: Run, inner: str, kind: Any
) -> None:
    def body(strategy: Strategy) -> list[bytes]:
        with strategy.scope():
            variable = tf.Variable(np.ones(700, np.float16))
            optimizer = kind(INNER[inner](), initial_scale=4.0)

        def step(number: int) -> None:
            replica = int(tf.distribute.get_replica_context().replica_id_in_sync_group)
            gradient = np.random.default_rng([number, replica]).standard_normal(700) * 10.0 ** -(number + 1)
            optimizer.apply_gradients([(gradient.astype(np.float16), variable)])

        for number in range(3):
            strategy.run(step, args=(number,))
        return [
            variable.numpy().tobytes(),
            *(value.numpy().tobytes() for value in optimizer.inner_optimizer.variables()),
        ]

    want = body(MirroredStrategy(5))
    for got in sharded(run, 5, body):
        assert got == want
