"""What every communicator does, whatever carries the bytes; see ``tests/conftest.py`` for where the bodies run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import ml_dtypes
import numpy as np
import pytest

from distopt.aggregation import Aggregator, Mean, Sum
from distopt.agreement import Label
from distopt.canonical_sum import Node, add_rows
from distopt.comm.communicator import Communicator, Contribution, Hosting, Receive, Send, Withdrawn
from distopt.errors import MergeOrderError, UnequalHypersError, UnequalStepsError
from distopt.testing import run_replicas
from distopt.types import Array, ReduceOp
from tests.conftest import Run

NUM_REPLICAS = [1, 2, 3, 5, 8, 13]
LENGTHS = [0, 1, 7, 5000]
"""Empty; fewer elements than ranks; fewer than some; so many that parts are exchanged."""

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64, np.int64]


class Median(Aggregator):
    """An aggregate that is no function of the sum."""

    name: ClassVar[str] = "median"

    def combine(self, contributions: Array) -> Array:
        median: Array = np.median(contributions, axis=0).astype(contributions.dtype)
        return median


def gradients(num_replicas: int, length: int) -> Array:
    """Return ``[replicas, length]`` float32 whose sum depends on the order: magnitudes from 1e-6 to 1e6."""
    generator = np.random.default_rng([num_replicas, length])
    magnitudes = 10.0 ** generator.integers(-6, 7, (num_replicas, length))
    return np.asarray(generator.standard_normal((num_replicas, length)) * magnitudes, np.float32)


def contributions_of(rank: int, hosting: Hosting, aggregator: Aggregator, rows: list[Array]) -> list[Contribution]:
    """Return what ``rank`` contributes, ``rows[j][r]`` being replica r's j-th array."""
    nodes = hosting.contributed(summed=aggregator.sums)[rank]
    return [
        Contribution(node, tuple(np.ascontiguousarray(add_rows_of(array, node)) for array in rows)) for node in nodes
    ]


def add_rows_of(array: Array, node: Node) -> Array:
    """Return the sum of a node's replicas; a subtree has the shape of the tree over as many replicas."""
    return add_rows(array[node.start : node.stop])


@contextmanager
def cost_of_an_exchange(comm: Communicator, num_bytes: int) -> Iterator[None]:
    """Let ``comm`` choose for a while how a combination goes by another cost; on all ranks alike."""
    before = comm.exchange_cost_bytes
    comm.exchange_cost_bytes = num_bytes
    yield
    comm.exchange_cost_bytes = before


def combine(comm: Communicator, aggregator: Aggregator, rows: list[Array]) -> list[Array]:
    hosting = Hosting.contiguous(len(rows[0]), comm.size)
    like = [np.empty(array.shape[1:], array.dtype) for array in rows]
    return comm.combine(contributions_of(comm.rank, hosting, aggregator, rows), hosting, aggregator, like)


@pytest.fixture(params=[0, 1 << 30], ids=["in_parts", "as_a_whole"])
def exchange_cost_bytes(request: pytest.FixtureRequest) -> int:
    """Both ways in which a combination can go, whatever its size."""
    return int(request.param)


@pytest.mark.parametrize("num_replicas", NUM_REPLICAS)
@pytest.mark.parametrize("aggregator", [Sum(), Mean(), Median()], ids=lambda a: a.name)
def test_combine_of_several_arrays_has_the_bits_of_one_process(
    run: Run, aggregator: Aggregator, num_replicas: int, exchange_cost_bytes: int
) -> None:
    rows = [gradients(num_replicas, length) for length in LENGTHS]
    expected = [aggregator.combine(array) for array in rows]

    def body(comm: Communicator) -> list[Array]:
        with cost_of_an_exchange(comm, exchange_cost_bytes):
            return combine(comm, aggregator, rows)

    for results in run(body):
        for result, one in zip(results, expected, strict=True):
            assert result.dtype == one.dtype
            np.testing.assert_array_equal(result.view(np.uint32), one.view(np.uint32))


def test_combine_of_few_elements_has_the_bits_of_one_process(run: Run) -> None:
    rows = [gradients(5, 3), gradients(5, 0)]
    for results in run(lambda comm: combine(comm, Sum(), rows)):
        np.testing.assert_array_equal(results[0].view(np.uint32), add_rows(rows[0]).view(np.uint32))
        assert results[1].shape == (0,)


def test_combine_of_nothing_returns_nothing(run: Run) -> None:
    def body(comm: Communicator) -> list[Array]:
        hosting = Hosting.contiguous(1, comm.size)
        return comm.combine([Contribution(node, ()) for node in hosting.covers[comm.rank]], hosting, Sum(), [])

    assert all(results == [] for results in run(body))


@pytest.mark.parametrize("num_replicas", NUM_REPLICAS)
def test_gather_returns_every_replicas_arrays_on_every_rank(run: Run, num_replicas: int) -> None:
    rows = [gradients(num_replicas, length) for length in LENGTHS]

    def body(comm: Communicator) -> list[tuple[Node, list[bytes]]]:
        hosting = Hosting.contiguous(num_replicas, comm.size)
        mine = [Contribution(leaf, tuple(array[leaf.start] for array in rows)) for leaf in hosting.leaves[comm.rank]]
        found = comm.gather(mine, hosting, [array[0] for array in rows])
        return [(node, [array.tobytes() for array in arrays]) for node, arrays in sorted(found.items())]

    expected = [(Node(r, r + 1), [array[r].tobytes() for array in rows]) for r in range(num_replicas)]
    for result in run(body):
        assert result == expected


def test_combine_where_the_last_rank_hosts_all_replicas_has_the_bits_of_one_process(
    run: Run, exchange_cost_bytes: int
) -> None:
    rows = [gradients(3, 4000)]
    hosting = Hosting(3, (*((),) * (run.size - 1), (0, 1, 2)))

    def body(comm: Communicator) -> list[Array]:
        with cost_of_an_exchange(comm, exchange_cost_bytes):
            return comm.combine(contributions_of(comm.rank, hosting, Sum(), rows), hosting, Sum(), [rows[0][0]])

    for (result,) in run(body):
        np.testing.assert_array_equal(result.view(np.uint32), add_rows(rows[0]).view(np.uint32))


def test_combine_of_interleaved_replicas_has_the_bits_of_one_process(run: Run, exchange_cost_bytes: int) -> None:
    rows = [gradients(13, 4000)]
    hosting = Hosting(13, tuple(tuple(range(rank, 13, run.size)) for rank in range(run.size)))

    def body(comm: Communicator) -> list[Array]:
        with cost_of_an_exchange(comm, exchange_cost_bytes):
            return comm.combine(contributions_of(comm.rank, hosting, Sum(), rows), hosting, Sum(), [rows[0][0]])

    for (result,) in run(body):
        np.testing.assert_array_equal(result.view(np.uint32), add_rows(rows[0]).view(np.uint32))


def test_combine_results_outlive_the_next_combine(run: Run, exchange_cost_bytes: int) -> None:
    def body(comm: Communicator) -> list[float]:
        hosting = Hosting(1, ((0,), *((),) * (comm.size - 1)))
        with cost_of_an_exchange(comm, exchange_cost_bytes):
            totals = [
                comm.combine(
                    [Contribution(node, (np.full(3, value),)) for node in hosting.covers[comm.rank]],
                    hosting,
                    Sum(),
                    [np.empty(3)],
                )[0]
                for value in (1.0, 2.0)
            ]
        return [float(total[0]) for total in totals]

    assert all(totals == [1.0, 2.0] for totals in run(body))


def test_combine_does_not_write_to_contributions(run: Run) -> None:
    def body(comm: Communicator) -> None:
        rows = [gradients(8, 4000)]
        hosting = Hosting.contiguous(8, comm.size)
        mine = contributions_of(comm.rank, hosting, Mean(), rows)
        before = [contribution.arrays[0].copy() for contribution in mine]
        comm.combine(mine, hosting, Mean(), [rows[0][0]])
        for contribution, copy in zip(mine, before, strict=True):
            np.testing.assert_array_equal(contribution.arrays[0], copy)

    run(body)


def test_combine_counts_the_bytes_that_cross(run: Run) -> None:
    length = 100_000 * run.size  # so long that parts are exchanged, where there are more than 2 ranks

    def body(comm: Communicator) -> tuple[int, int]:
        sent, received = comm.traffic.bytes_sent, comm.traffic.bytes_received
        combine(comm, Sum(), [np.ones((comm.size, length))])
        return comm.traffic.bytes_sent - sent, comm.traffic.bytes_received - received

    expected = 2 * (run.size - 1) * 800_000
    assert all(counts == (expected, expected) for counts in run(body))


@pytest.mark.parametrize("length", [1, 5000])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
def test_all_reduce_sum_of_rank_valued_data_is_closed_form(run: Run, dtype: type, length: int) -> None:
    total = run.size * (run.size + 1) // 2
    for (result,) in run(lambda comm: comm.all_reduce(ReduceOp.SUM, [np.full(length, comm.rank + 1, dtype)])):
        assert result.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(result, np.full(length, total, dtype))


def test_all_reduce_of_mixed_dtypes_and_shapes_keeps_them(run: Run) -> None:
    shapes = [(2, 3), (), (0, 4), (3000,), (1, 1, 5)]

    def body(comm: Communicator) -> list[Array]:
        return comm.all_reduce(
            "sum", [np.full(shape, comm.rank + 1, dtype) for shape, dtype in zip(shapes, DTYPES, strict=True)]
        )

    total = run.size * (run.size + 1) // 2
    for results in run(body):
        for result, shape, dtype in zip(results, shapes, DTYPES, strict=True):
            assert result.dtype == np.dtype(dtype)
            np.testing.assert_array_equal(result, np.full(shape, total, dtype))


def test_all_reduce_mean_of_rank_valued_data_is_closed_form(run: Run) -> None:
    def body(comm: Communicator) -> list[Array]:
        return comm.all_reduce("mean", [np.full(3, comm.rank, np.float32), np.full(2, comm.rank, np.int64)])

    for floats, integers in run(body):
        assert [floats.dtype, integers.dtype] == [np.dtype(np.float32), np.dtype(np.float64)]
        np.testing.assert_array_equal(floats, np.full(3, (run.size - 1) / 2, np.float32))
        np.testing.assert_array_equal(integers, np.full(2, (run.size - 1) / 2))


def test_all_reduce_is_the_canonical_sum_over_ranks(run: Run) -> None:
    rows = gradients(run.size, 4000)
    for (result,) in run(lambda comm: comm.all_reduce("SUM", [rows[comm.rank]])):
        np.testing.assert_array_equal(result.view(np.uint32), add_rows(rows).view(np.uint32))


def test_all_reduce_result_can_be_written_without_changing_the_input(run: Run) -> None:
    def body(comm: Communicator) -> float:
        value = np.ones(3)
        (total,) = comm.all_reduce("SUM", [value])
        total += 5.0
        return float(value.sum())

    assert run(body) == [3.0] * len(run(body))


def test_all_gather_bytes_of_uneven_payloads_is_in_rank_order(run: Run) -> None:
    def payload(rank: int) -> bytes:
        return bytes([65 + rank]) * (rank * rank * 300)

    for gathered in run(lambda comm: comm.all_gather_bytes(payload(comm.rank))):
        assert gathered == [payload(rank) for rank in range(run.size)]


@pytest.mark.parametrize("length", [0, 1, 503, 504, 505, 100_000])
def test_broadcast_bytes_from_each_root_arrives_everywhere(run: Run, length: int) -> None:
    def body(comm: Communicator) -> list[bytes]:
        return [
            comm.broadcast_bytes(bytes([root]) * length if comm.rank == root else None, root)
            for root in range(comm.size)
        ]

    for received in run(body):
        assert received == [bytes([root]) * length for root in range(run.size)]


@pytest.mark.parametrize("shape", [(), (0,), (3, 5), (100_003,)])
def test_broadcast_array_from_each_root_arrives_in_place(run: Run, shape: tuple[int, ...]) -> None:
    def body(comm: Communicator) -> list[bool]:
        arrived = []
        for root in range(comm.size):
            array = np.full(shape, comm.rank + 0.5, np.float32)
            comm.broadcast_array(array, root)
            arrived.append(bool((array == root + 0.5).all()))
        return arrived

    assert all(found == [True] * run.size for found in run(body))


def test_barrier_returns_on_every_rank(run: Run) -> None:
    assert all(result is None for result in run(lambda comm: comm.barrier()))


def test_exchange_of_several_buffers_keeps_their_order(run: Run) -> None:
    def body(comm: Communicator) -> list[list[int]]:
        right, left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
        received = [np.empty(length, np.int32) for length in (2, 0, 3)]
        comm.exchange(
            [Send(right, np.full(length, 10 * comm.rank + length, np.int32)) for length in (2, 0, 3)],
            [Receive(left, array) for array in received],
            "ring",
        )
        return [[left], *(array.tolist() for array in received)]

    for (left,), *received in run(body):
        assert received == [[10 * left + 2] * 2, [], [10 * left + 3] * 3]


def test_exchange_with_oneself_copies(run: Run) -> None:
    def body(comm: Communicator) -> float:
        received = np.zeros(4)
        comm.exchange([Send(comm.rank, np.full(4, comm.rank + 0.5))], [Receive(comm.rank, received)], "self")
        return float(received.sum()) - 4 * comm.rank

    assert all(result == 2.0 for result in run(body))


def test_exchange_of_large_buffers_brings_each_whole_and_in_order(run: Run) -> None:
    lengths = [61_441, 0, 5_000_003, 61_440, 1, 122_880, 61_439]  # about multiples of what MPI sends at once

    def numbers(rank: int, length: int) -> Array:
        return np.arange(length, dtype=np.uint32).astype(np.uint8) * np.uint8(2 * rank + 3) + np.uint8(length % 251)

    def body(comm: Communicator) -> bool:
        peers = sorted({(comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size})
        received = {(peer, length): np.empty(length, np.uint8) for peer in peers for length in lengths}
        comm.exchange(
            (Send(peer, numbers(comm.rank, length)) for length in lengths for peer in peers),
            [Receive(peer, array) for (peer, _), array in received.items()],
            "buffers of 5 MB",
        )
        return all(np.array_equal(array, numbers(peer, length)) for (peer, length), array in received.items())

    assert all(run(body))


@pytest.mark.parametrize("num_replicas", [2, 8])
def test_labels_that_differ_are_refused_by_every_rank_and_named(
    run: Run, num_replicas: int, exchange_cost_bytes: int
) -> None:
    """Also by ranks that host no replica; and the ranks can go on after it."""
    odd = run.size - 1

    def body(comm: Communicator) -> list[Array]:
        hosting, rows = Hosting.contiguous(num_replicas, comm.size), [gradients(num_replicas, 1000)]
        mine = contributions_of(comm.rank, hosting, Sum(), rows)
        with cost_of_an_exchange(comm, exchange_cost_bytes):
            for error, label in (
                (MergeOrderError, Label(what=1 + (comm.rank == odd))),
                (UnequalStepsError, Label(what=1, step=7 + (comm.rank == odd))),
                (UnequalHypersError, Label(what=1, hypers=5 + (comm.rank == odd), step=7)),
            ):
                if comm.size == 1:
                    break
                with pytest.raises(
                    error, match=rf"rank {comm.rank} (and|is at step .*) (where )?rank {odd}|rank {odd}"
                ):
                    comm.combine(mine, hosting, Sum(), [rows[0][0]], label.encode())
            return comm.combine(mine, hosting, Sum(), [rows[0][0]], Label(what=1, step=8).encode())

    for (total,) in run(body):
        np.testing.assert_array_equal(total, add_rows(gradients(num_replicas, 1000)))


def test_calls_without_labels_that_differ_are_told_apart_by_their_names() -> None:
    """Also where their messages are equally long."""

    def body(comm: Communicator) -> str:
        with pytest.raises(MergeOrderError) as raised:
            comm.all_gather_bytes(b"the same", what="reading" if comm.rank == 2 else "writing")
        return str(raised.value)

    for message in run_replicas(body, 3):
        assert message.startswith("rank 0 (as 2 of 3) comes to 'writing' where rank 2 comes to 'reading';")


@pytest.mark.parametrize("num_replicas", [1, 5])
def test_combine_from_which_a_rank_withdraws_comes_to_nothing_on_all(
    run: Run, num_replicas: int, exchange_cost_bytes: int
) -> None:
    def body(comm: Communicator) -> list[Array]:
        hosting, rows = Hosting.contiguous(num_replicas, comm.size), [gradients(num_replicas, 1000)]
        mine = contributions_of(comm.rank, hosting, Sum(), rows)
        label = Label(what=3).encode()
        with cost_of_an_exchange(comm, exchange_cost_bytes):
            for who in {0, comm.size // 2, comm.size - 1}:
                with pytest.raises(Withdrawn):
                    comm.combine(mine, hosting, Sum(), [rows[0][0]], label, withdraws=comm.rank == who)
            return comm.combine(mine, hosting, Sum(), [rows[0][0]], label)

    for (total,) in run(body):
        np.testing.assert_array_equal(total, add_rows(gradients(num_replicas, 1000)))
