"""Row-sparse gradients where processes share memory, on one and several hosts: the bits of one process.

Hosts are emulated; see ``test_several_hosts``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

import distopt as tf
from distopt.comm.communicator import Communicator
from distopt.comm.shared_memory import segments
from distopt.distribute import MirroredStrategy, Strategy
from distopt.errors import SharedMemoryError
from distopt.optimizers import set_default_engine
from tests.conformance.conftest import HOSTS
from tests.conformance.hosts import on_hosts
from tests.conftest import GROUPS, MPI_WORLD_SIZE, Run
from tests.row_sparse import OPTIMIZERS, partly_dense, rows_later, trace

keras = tf.keras.optimizers
MAKERS: dict[str, Callable[[], Any]] = OPTIMIZERS | {
    "adamw-averaged": lambda: keras.AdamW(0.01, weight_decay=0.1, use_ema=True, ema_overwrite_frequency=2),
    "accumulated": lambda: keras.SGD(0.1, 0.9, gradient_accumulation_steps=2),
    "lamb": lambda: keras.Lamb(0.01),
    "lamb-clipped": lambda: keras.Lamb(0.01, clipvalue=0.1),
    "ftrl": lambda: keras.Ftrl(0.1),
}
FEW = ("momentum", "adagrad-clipnorm", "adam-global-clipnorm", "adamw-averaged")

few = pytest.mark.parametrize("run", GROUPS if MPI_WORLD_SIZE > 1 else ["in_process-2", "in_process-5"], indirect=True)


@pytest.fixture(autouse=True)
def _engine() -> Iterator[None]:
    yield
    set_default_engine("compiled")


def traces(strategy: Strategy, names: Sequence[str], gradients: Any = None) -> list[bytes]:
    return [trace(strategy, MAKERS[name], gradients) for name in names]


@few
@pytest.mark.parametrize("placement", ["sharded", "replica"])
def test_rows_have_the_bits_of_one_process_on_one_host(run: Run, placement: str) -> None:
    names = tuple(MAKERS)
    for few_names in (names[i : i + 4] for i in range(0, len(names), 4)):  # a run has a limit of time
        want = traces(MirroredStrategy(5), few_names)
        for got in on_hosts(run, "0" * run.size, 5, lambda strategy, own=few_names: traces(strategy, own), placement):
            assert dict(zip(few_names, got, strict=True)) == dict(zip(few_names, want, strict=True))


@pytest.mark.parametrize("placement", ["sharded", "replica"])
def test_rows_have_the_bits_of_one_process_on_several_hosts(run: Run, host_of: str, placement: str) -> None:
    want = traces(MirroredStrategy(8), FEW)
    for got in on_hosts(run, host_of, 8, lambda strategy: traces(strategy, FEW), placement):
        assert dict(zip(FEW, got, strict=True)) == dict(zip(FEW, want, strict=True))


@pytest.mark.parametrize("run", GROUPS if MPI_WORLD_SIZE > 1 else ["in_process-3"], indirect=True)
@pytest.mark.parametrize("gradients", [partly_dense, rows_later])
@pytest.mark.parametrize("placement", ["sharded", "replica"])
def test_gradients_that_are_dense_on_some_replicas_or_steps_have_the_bits_of_one_process(
    run: Run, host_of: str, placement: str, gradients: Any
) -> None:
    names = ("momentum", "adam-global-clipnorm")
    want = traces(MirroredStrategy(5), names, gradients)
    for got in on_hosts(run, host_of, 5, lambda strategy: traces(strategy, names, gradients), placement):
        assert got == want


@few
@pytest.mark.parametrize("placement", ["sharded", "replica"])
@pytest.mark.parametrize("replicas", [1, 2, 3, 8])
def test_rows_have_the_bits_of_one_process_for_any_number_of_replicas(run: Run, placement: str, replicas: int) -> None:
    names = ("momentum", "adagrad-clipnorm")
    want = traces(MirroredStrategy(replicas), names)
    for hosts in ("0" * run.size, HOSTS[run.size][0]) if run.size in HOSTS else ("0" * run.size,):
        for got in on_hosts(run, hosts, replicas, lambda strategy: traces(strategy, names), placement):
            assert got == want


@few
@pytest.mark.parametrize("placement", ["sharded", "replica"])
def test_negative_zeros_and_what_is_not_finite_have_the_bits_of_one_process(run: Run, placement: str) -> None:
    def body(strategy: Strategy) -> list[bytes]:
        with strategy.scope():
            table = tf.Variable(np.zeros((40, 3), np.float32))
        optimizer = keras.SGD(0.5, 0.5)

        def step(number: int) -> None:
            context = tf.distribute.get_replica_context()
            assert context is not None
            rng = np.random.default_rng([number, context.replica_id_in_sync_group])
            values = rng.choice(np.float32([0.0, -0.0, -0.0, 1.0, -1.0, np.inf]), (30, 3))
            optimizer.apply_gradients([(tf.IndexedSlices(values, rng.integers(0, 40, 30)), table)])

        for number in range(3):
            strategy.run(step, args=(number,))
        return [table.numpy().tobytes(), *(w.tobytes() for w in optimizer.get_weights())]

    want = body(MirroredStrategy(5))
    for hosts in ("0" * run.size, *HOSTS.get(run.size, ())):
        for got in on_hosts(run, hosts, 5, body, placement):
            assert got == want


@few
@pytest.mark.parametrize("placement", ["sharded", "replica"])
def test_rows_that_come_once_have_the_bits_of_one_process_wherever_their_values_lie(run: Run, placement: str) -> None:
    """In arrays that others read, in parts of these, in arrays of somebody else's, in turns; on one host and more."""
    width, most = 7, 60

    def body(strategy: Strategy) -> list[bytes]:
        with strategy.scope():
            tables = [tf.Variable(np.full((n, width), 0.5, dtype)) for n, dtype in ((90, np.float32), (40, np.float64))]
        made = [keras.SGD(0.5), keras.Adagrad(0.1), keras.SGD(0.5, clipnorm=1.0), keras.Adam(0.01)]
        places = [strategy.extended.gradient_rows(table, most) for table in tables]
        for place, table in zip(places, tables, strict=True):
            assert (place.shape, place.dtype) == ((most, width), table.dtype)

        def step(number: int) -> None:
            context = tf.distribute.get_replica_context()
            assert context is not None
            replica = context.replica_id_in_sync_group
            pairs = []
            for k, (table, place) in enumerate(zip(tables, places, strict=True)):
                rng = np.random.default_rng([number, replica, k])
                count = 0 if (number + replica) % 4 == 3 else 10 + 3 * replica
                indices = rng.permutation(table.shape[0])[:count]
                if number % 2:
                    indices.sort()
                values = rng.standard_normal((count, width)).astype(table.dtype)
                if strategy.extended.num_hosted == 1 and (number + replica) % 3:
                    first = replica % 2 * 5
                    place[first : first + count] = values
                    values = place[first : first + count]
                pairs.append((tf.IndexedSlices(values, indices, table.shape), table))
            made[number % 4].apply_gradients(pairs)

        for number in range(12):
            if number == 8:  # another array instead of the first one, which is no place any more
                places[0] = strategy.extended.gradient_rows(tables[0], most)
            strategy.run(step, args=(number,))
        slots = [w.tobytes() for optimizer in made for w in optimizer.get_weights()]
        return [*(table.numpy().tobytes() for table in tables), *slots]

    want = body(MirroredStrategy(run.size))
    for hosts in ("0" * run.size, *HOSTS.get(run.size, ())):
        for got in on_hosts(run, hosts, run.size, body, placement):
            assert got == want


@few
def test_slots_of_rows_follow_other_owners_and_restored_values(run: Run) -> None:
    """Two optimizers share a table, dense and row-sparse steps take turns, and weights are read and set between."""

    def body(strategy: Strategy) -> list[bytes]:
        with strategy.scope():
            tables = [tf.Variable(np.full((n, 5), 0.5, np.float32)) for n in (90, 2000)]
        first, second = keras.Adagrad(0.1), keras.Adam(0.01, global_clipnorm=0.5)
        kept: list[bytes] = []

        def step(number: int, optimizer: Any, sparse: tuple[bool, ...]) -> None:
            context = tf.distribute.get_replica_context()
            assert context is not None
            pairs: list[Any] = []
            for place, (table, is_sparse) in enumerate(zip(tables, sparse, strict=False)):
                rng = np.random.default_rng([number, context.replica_id_in_sync_group, place])
                values = rng.standard_normal((20, 5)).astype(np.float32)
                rows = tf.IndexedSlices(values, rng.integers(0, table.shape[0], 20), table.shape)
                pairs.append((rows if is_sparse else tf.Tensor(rows.to_dense()), table))
            optimizer.apply_gradients(pairs)

        for number, sparse in enumerate(
            [(True, True), (True, False), (False, False), (False, True), (True,), (True, True)]
        ):
            strategy.run(step, args=(number, first, sparse))
            strategy.run(step, args=(10 + number, second, sparse[::-1]))
            if number == 2:
                weights, state = first.get_weights(), second.state()
            if number == 3:
                kept += [w.tobytes() for w in (*first.get_weights(), *second.get_weights())]
                first.set_weights(weights)
                second.load_state(state)
                tables[0].assign(tables[0] * 0.5)
        return [*kept, *(t.numpy().tobytes() for t in tables), *(w.tobytes() for w in first.get_weights())]

    want = body(MirroredStrategy(5))
    for hosts in ("0" * run.size, *HOSTS.get(run.size, ())):
        for got in on_hosts(run, hosts, 5, body):
            assert got == want


@few
def test_too_little_memory_for_rows_is_an_error_on_every_process_before_anything_changes(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def body(strategy: Strategy) -> tuple[str, int, float]:
        with strategy.scope():
            table = tf.Variable(np.ones((1000, 8), np.float32))
        optimizer = keras.SGD(0.1)

        def step(count: int) -> None:
            rows = tf.IndexedSlices(np.ones((count, 8), np.float32), np.arange(count))
            optimizer.apply_gradients([(rows, table)])

        strategy.run(step, args=(3,))
        monkeypatch.setattr(segments, "available_bytes", lambda *_: 5_000)
        before = float(table.numpy().sum())
        with pytest.raises(SharedMemoryError) as raised:
            strategy.run(step, args=(240,))
        assert float(table.numpy().sum()) == before
        return str(raised.value), int(optimizer.iterations.numpy()), before

    for placement in ("sharded", "replica"):
        monkeypatch.undo()
        for message, iterations, total in on_hosts(run, "0" * run.size, run.size, body, placement):
            assert "cannot share memory for row-sparse gradients: rank 0:" in message
            assert iterations == 1
            assert total < 8000


# ---------------------------------------------------------------------------------------------------------- bytes


def sent_to_other_hosts(
    run: Run, host_of: str, placement: str, indices_of: Callable[[int], Any], num_rows: int = 20_000
) -> tuple[list[int], int]:
    """Return the bytes that each host sends in a step, and those of the union of the rows that all replicas touch."""
    width = 64

    def body(strategy: Strategy) -> int:
        comm: Communicator = strategy.extended.communicator
        with strategy.scope():
            table = tf.Variable(np.zeros((num_rows, width), np.float32))
        optimizer = keras.Adagrad(0.1)

        def step() -> None:
            context = tf.distribute.get_replica_context()
            assert context is not None
            indices = indices_of(context.replica_id_in_sync_group)
            values = np.full((len(indices), width), 0.1 + context.replica_id_in_sync_group, np.float32)
            optimizer.apply_gradients([(tf.IndexedSlices(values, indices), table)])

        strategy.run(step)
        sent = 0
        exchange = comm.exchange

        def counted(sends: Any, *args: Any, **kwargs: Any) -> bool:
            nonlocal sent
            sends = list(sends)
            for peer, array in sends:
                sent += array.nbytes if host_of[peer] != host_of[comm.rank] else 0
            return exchange(sends, *args, **kwargs)

        comm.exchange = counted  # type: ignore[method-assign]
        strategy.run(step)
        comm.exchange = exchange  # type: ignore[method-assign]
        return sent

    sent_of = on_hosts(run, host_of, run.size, body, placement)
    union = len(np.unique(np.concatenate([indices_of(replica) for replica in range(run.size)])))
    by_host = {host: sum(n for n, h in zip(sent_of, host_of, strict=True) if h == host) for host in host_of}
    return list(by_host.values()), union * (width * 4 + 4)


def one_percent(replica: int) -> Any:
    return np.random.default_rng(replica).choice(20_000, 200, replace=False)


@pytest.mark.skipif(MPI_WORLD_SIZE > 1, reason="looks at all ranks")
@pytest.mark.parametrize("placement", ["sharded", "replica"])
def test_a_host_sends_at_most_the_union_of_the_rows(run: Run, host_of: str, placement: str) -> None:
    sent, union_bytes = sent_to_other_hosts(run, host_of, placement, one_percent)
    small = 1000 * run.size  # labels, numbers of rows
    for num_bytes in sent:
        assert 0.2 * union_bytes < num_bytes <= 1.0 * union_bytes + small
        assert num_bytes <= 1.2 * union_bytes


@pytest.mark.skipif(MPI_WORLD_SIZE > 1, reason="looks at all ranks")
@pytest.mark.parametrize("placement", ["sharded", "replica"])
def test_rows_of_a_host_are_added_up_before_they_leave_it(run: Run, placement: str) -> None:
    if run.size != 5:
        pytest.skip("one host of one rank and one of four, which hold a subtree of the canonical sum")
    sent, union_bytes = sent_to_other_hosts(run, "00001", placement, lambda replica: np.arange(300))
    for num_bytes in sent:
        assert num_bytes <= 1.0 * union_bytes + 5000


@pytest.mark.skipif(MPI_WORLD_SIZE > 1, reason="looks at all ranks")
@pytest.mark.parametrize("placement", ["sharded", "replica"])
def test_rows_that_are_all_there_travel_without_indices(run: Run, placement: str) -> None:
    if run.size != 2:
        pytest.skip("two hosts of one rank each")
    sent, union_bytes = sent_to_other_hosts(run, "01", placement, lambda replica: np.arange(2000), 2000)
    for num_bytes in sent:
        assert num_bytes <= union_bytes * 256 / 260 + 2500
