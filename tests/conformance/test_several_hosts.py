"""Several hosts: the bits of one process; see ``tests/conftest.py`` for where the bodies run.

Hosts are emulated: ranks whose group was made with another namespace share no memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import distopt as tf
from distopt.aggregation import Int8, Mean, Sum
from distopt.comm.communicator import Communicator
from distopt.distribute import CommunicationOptions, MirroredStrategy, MultiWorkerMirroredStrategy, Strategy
from distopt.errors import UnequalHypersError
from distopt.nans import with_one_nan
from distopt.optimizers import set_default_engine
from tests.conformance.hosts import count_deaths, on_hosts, refused_by_all
from tests.conformance.test_sharded import DTYPES, REFUSED, apply, bits, rows_begin_on_replica_0
from tests.conformance.test_strategies import OPTIMIZERS, adam, expected, sgd, trace
from tests.conftest import Run


@pytest.mark.parametrize("placement", ["sharded", "replica"])
def test_training_has_the_bits_of_one_process(run: Run, host_of: str, placement: str) -> None:
    makers = [OPTIMIZERS[name] for name in OPTIMIZERS if placement == "replica" or name not in REFUSED]

    def body(strategy: Strategy) -> list[Any]:
        return [trace(strategy, make) for make in makers]

    want = [expected(8, make) for make in makers]
    for got in on_hosts(run, host_of, 8, body, placement):
        assert got == want


def test_any_bytes_per_pack_mixed_dtypes_and_subsets_have_the_bits_of_one_process(run: Run, host_of: str) -> None:
    def body(strategy: Strategy) -> list[bytes]:
        with strategy.scope():
            shapes = ((9000,), (), (0, 3), (33, 7))
            variables = [tf.Variable(np.full(shape, 0.5).astype(dtype)) for dtype in DTYPES for shape in shapes]
        optimizer = adam(global_clipnorm=0.7)
        apply(strategy, optimizer, variables[::2], 0)
        apply(strategy, optimizer, variables, 1)
        with strategy.scope():
            variables.append(tf.Variable(np.ones(9000, np.float32)))
        apply(strategy, optimizer, variables[::-1], 2)
        apply(strategy, optimizer, variables[5:], 3)
        apply(strategy, optimizer, variables, 4)
        return bits(optimizer, variables)

    want = body(MirroredStrategy(5))
    for placement, chunk_bytes in (("sharded", 1), ("sharded", 1 << 16), ("replica", 1)):
        for got in on_hosts(run, host_of, 5, body, placement, chunk_bytes):
            assert got == want


def test_two_optimizers_averages_and_constraints_have_the_bits_of_one_process(run: Run, host_of: str) -> None:
    def body(strategy: Strategy) -> list[bytes]:
        with strategy.scope():
            variables = [tf.Variable(np.full(shape, 0.5, np.float32)) for shape in ((9000,), (3,), (17, 400))]
            variables.append(tf.Variable(np.full(9000, 0.5, np.float32), constraint=lambda w: w / tf.norm(w)))
        first = adam(use_ema=True, ema_overwrite_frequency=3, weight_decay=0.01)
        second = sgd(clipnorm=0.5, gradient_accumulation_steps=2)
        for step in range(4):
            apply(strategy, first, variables[step % 2 :], step)
            apply(strategy, second, variables[:2], 10 + step)
        weights, state = first.get_weights(), second.state()
        variables[0].assign(variables[0] * 0.5)
        apply(strategy, first, variables, 20)
        apply(strategy, second, variables[:2], 21)
        first.set_weights(weights)
        second.load_state(state)
        apply(strategy, first, variables, 22)
        apply(strategy, second, variables[:2], 23)
        first.finalize_variable_values(variables)
        return [*bits(first, variables), *bits(second, variables)]

    want = body(MirroredStrategy(3))
    for got in on_hosts(run, host_of, 3, body):
        assert got == want


NOT_NUMBERS = np.array([0x7F800000, 0xFF800000, 0x7FC00001, 0xFFC00002, 0x7FC12345, 0xFFC00000], np.uint32).view(
    np.float32
)
"""Infinities, and NaNs of both signs with several payloads."""


@pytest.mark.parametrize("placement", ["sharded", "replica"])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_gradients_that_are_no_numbers_have_the_bits_of_one_process_but_for_those_of_a_nan(
    run: Run, host_of: str, placement: str
) -> None:
    makers: list[Any] = [
        lambda: sgd(gradient_aggregator=Sum().compressed(Int8())),
        lambda: sgd(gradient_aggregator=Mean(), clipvalue=0.5),
        lambda: sgd(clipnorm=0.5),
        lambda: adam(global_clipnorm=0.5),
    ]

    def body(strategy: Strategy) -> list[bytes]:
        found: list[bytes] = []
        for number, make in enumerate(makers):
            with strategy.scope():
                variables = [tf.Variable(np.full(shape, 0.5, np.float32)) for shape in ((4099,), (3,), (37, 5))]
            optimizer = make()

            def replica(number: int = number, variables: list[Any] = variables, optimizer: Any = optimizer) -> None:
                context = tf.distribute.get_replica_context()
                assert context is not None
                rng = np.random.default_rng([number, context.replica_id_in_sync_group])
                pairs = []
                for variable in variables:
                    values = rng.standard_normal(variable.shape).astype(np.float32)
                    some = rng.random(variable.shape) < 0.3
                    values[some] = rng.choice(NOT_NUMBERS, np.count_nonzero(some))
                    pairs.append((tf.Tensor(values), variable))
                optimizer.apply_gradients(pairs)

            for _ in range(2):
                strategy.run(replica)
            arrays = [*(variable.numpy() for variable in variables), *optimizer.get_weights()]
            found += [with_one_nan(array).tobytes() for array in arrays]
        return found

    set_default_engine("numpy")  # whose additions pass on either NaN, by the number of elements
    try:
        want = body(MirroredStrategy(5))
        for got in on_hosts(run, host_of, 5, body, placement):
            assert got == want
    finally:
        set_default_engine("compiled")


def test_bytes_per_pack_of_another_rank_is_refused_by_all(run: Run) -> None:
    def options_of(comm: Communicator) -> CommunicationOptions:
        return CommunicationOptions(bytes_per_pack=4096 + (comm.rank == comm.size - 1))

    found = refused_by_all(run, options_of, "bytes_per_pack")
    assert len(set(found)) == 1
    assert {"4096", "4097"} < set(found[0].replace(";", " ").split())


@pytest.mark.parametrize("placement", ["sharded", "replica"])
def test_rows_that_begin_in_one_process_alone_have_the_bits_of_one_process(
    run: Run, host_of: str, placement: str
) -> None:
    want = rows_begin_on_replica_0(MirroredStrategy(3))
    for got in on_hosts(run, host_of, 3, rows_begin_on_replica_0, placement):
        assert got == want


@pytest.mark.parametrize(
    ("placement", "replicas", "most"), [("sharded", 3, 1.05), ("replica", 3, 1.05), ("sharded", 8, 1.5 * 1.05)]
)
def test_a_host_sends_little_more_than_it_must(run: Run, placement: str, replicas: int, most: float) -> None:
    if run.size != 3:
        pytest.skip("three hosts of one rank each")
    size = 300_000

    def body(strategy: Strategy) -> int:
        variable = tf.Variable(np.zeros(size, np.float32))
        optimizer = adam(global_clipnorm=0.7)
        traffic = strategy.extended.communicator.traffic
        apply(strategy, optimizer, [variable], 0)
        before = traffic.bytes_sent
        apply(strategy, optimizer, [variable], 1)
        return int(traffic.bytes_sent - before)

    # Of 8 replicas two hosts have three, which are two subtrees: they send two partial sums of each span.
    for sent in on_hosts(run, "012", replicas, body, placement, 1 << 16):
        assert sent <= most * 2 * (2 / 3) * 4 * size


def test_hypers_that_differ_between_hosts_are_one_error_on_all_before_anything_changes(run: Run, host_of: str) -> None:
    def body(strategy: Strategy) -> tuple[str, list[bytes]]:
        variables = [tf.Variable(np.full(9000, 0.5, np.float32))]
        optimizer = sgd()
        apply(strategy, optimizer, variables, 0)
        before = bits(optimizer, variables)
        rank = strategy.extended.rank
        if host_of[rank] == host_of[-1]:
            optimizer.learning_rate = 0.7
        with pytest.raises(UnequalHypersError) as raised:
            apply(strategy, optimizer, variables, 1)
        assert [variables[0].numpy().tobytes()] == before[:1]
        return str(raised.value), before

    for message, _ in on_hosts(run, host_of, 8, body):
        assert "have different hypers at step 1" in message


def test_a_rank_that_dies_in_any_exchange_ends_the_others_with_an_error_that_names_it(run: Run) -> None:
    def train(comm: Communicator) -> None:
        strategy = MultiWorkerMirroredStrategy(communicator=comm, placement="sharded")
        variables = [tf.Variable(np.full(9000, 0.5, np.float32))]
        optimizer = adam(global_clipnorm=0.7)
        for step in range(2):
            apply(strategy, optimizer, variables, step)
        optimizer.get_weights()

    assert 8 < count_deaths(run, train, 40) < 40
