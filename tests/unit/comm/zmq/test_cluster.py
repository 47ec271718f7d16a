"""Whole jobs over the loopback: the same bits as one process, whoever hosts and owns what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from distopt.aggregation import Aggregator, Mean, Sum
from distopt.arena import Span
from distopt.canonical_sum import Node, add_nodes, add_rows
from distopt.comm.communicator import Contribution, Hosting
from distopt.comm.zmq import ServerCommunicator
from distopt.distribute.served import OwnerState
from distopt.distribute.served_rows import Contributed
from distopt.types import Array, ReduceOp
from tests.loopback_servers import joined
from tests.unit.comm.zmq.cluster import LENGTH, Cluster, GradientDescent

pytestmark = pytest.mark.timeout(60)

WHOLE = Span(0, 0, LENGTH)
STEPS = 4
DEPLOYMENTS = [(w, s) for w in (1, 2, 3) for s in (1, 2)]


def gradient(step: int, replica: int) -> Array:
    return np.random.default_rng([step, replica]).standard_normal(LENGTH).astype(np.float32)


def contributions(comm: ServerCommunicator, step: int, *, summed: bool = True) -> list[Contribution]:
    hosting = comm.hosting
    leaves = {Node(r, r + 1): gradient(step, r) for r in hosting.hosted[comm.rank]}
    if not summed:
        return [Contribution(node, (array,)) for node, array in leaves.items()]
    return [Contribution(node, (add_nodes(hosting.tree, leaves, node),)) for node in hosting.covers[comm.rank]]


def descend(comm: ServerCommunicator, *, summed: bool = True) -> Array:
    """Make some steps of gradient descent on the servers; return the variables."""
    value = np.zeros(LENGTH, np.float32)
    for step in range(STEPS):
        comm.step = step
        hypers = {"learning_rate": 0.1 / (step + 1)} if 0 in comm.hosting.hosted[comm.rank] else None
        comm.update(contributions(comm, step, summed=summed), comm.hosting, hypers, [(WHOLE, value)])
    return value


def descended(num_replicas: int, *, norm: bool = False, mean: bool = False) -> Array:
    """Return what one process computes."""
    owner = GradientDescent([WHOLE], norm=norm)
    for step in range(STEPS):
        total = add_rows(np.stack([gradient(step, r) for r in range(num_replicas)]))
        if mean:
            total = Mean().finish(total, num_replicas)
        hypers = {"learning_rate": 0.1 / (step + 1)}
        owner.apply(step, [total], hypers, joined([owner.partials([total], hypers)]))
    return owner.variables()[0]


@pytest.mark.parametrize(("num_workers", "num_servers"), DEPLOYMENTS)
def test_update_on_any_deployment_has_the_bits_of_one_process(num_workers: int, num_servers: int) -> None:
    cluster = Cluster(num_workers, num_servers, descend)
    for value in cluster.results():
        np.testing.assert_array_equal(value, descended(8))
    assert [len(owner.variables()) for owner in cluster.owners.values()] == [1] * num_servers


@pytest.mark.parametrize("num_servers", [1, 2, 3])
def test_update_with_norms_gives_every_server_all_partials_in_block_order(num_servers: int) -> None:
    cluster = Cluster(2, num_servers, descend, owner=lambda spans: GradientDescent(spans, norm=True))
    for value in cluster.results():
        np.testing.assert_array_equal(value, descended(8, norm=True))
    totals = [add_rows(np.stack([gradient(step, r) for r in range(8)])) for step in range(STEPS)]
    for owner in cluster.owners.values():
        for seen, total in zip(owner.seen_partials, totals, strict=True):
            np.testing.assert_array_equal(seen, np.square(total).reshape(-1, 100).sum(1))


def test_update_with_more_servers_than_blocks_leaves_some_without_spans() -> None:
    cluster = Cluster(2, 12, descend, owner=lambda spans: GradientDescent(spans, norm=True))
    for value in cluster.results():
        np.testing.assert_array_equal(value, descended(8, norm=True))
    assert sum(1 for owner in cluster.owners.values() if not owner.spans) == 2


def test_update_with_more_workers_than_replicas_reaches_all_of_them() -> None:
    for value in Cluster(3, 2, descend, num_replicas=2).results():
        np.testing.assert_array_equal(value, descended(2))


def test_update_with_mean_divides_by_the_number_of_replicas() -> None:
    cluster = Cluster(2, 2, descend, owner=lambda spans: GradientDescent(spans, aggregator=Mean()))
    for value in cluster.results():
        np.testing.assert_array_equal(value, descended(8, mean=True))


class Median(Aggregator):
    """Not a function of the sum."""

    name = "median"

    def combine(self, contributions: Array) -> Array:
        return np.median(contributions, axis=0).astype(contributions.dtype)


def test_update_with_an_aggregator_beyond_sums_gets_every_replica() -> None:
    cluster = Cluster(
        2,
        2,
        lambda comm: descend(comm, summed=False),
        owner=lambda spans: GradientDescent(spans, aggregator=Median()),
    )
    expected = np.zeros(LENGTH, np.float32)
    for step in range(STEPS):
        median = Median().combine(np.stack([gradient(step, r) for r in range(8)]))
        expected -= np.float32(0.1 / (step + 1)) * median
    for value in cluster.results():
        np.testing.assert_array_equal(value, expected)


class Replayed:
    """An owner that is given each replica's own gradients."""

    def __init__(self, spans: Sequence[Span]) -> None:
        self.seen: list[tuple[int, list[int]]] = []
        self._value = np.zeros(LENGTH, np.float32)

    def check_rows(self, node: Node, contributed: Contributed) -> None:
        raise AssertionError("no rows are pushed here")

    def apply_replicas(self, step: int, gradients: Mapping[int, Contributed], hypers: Mapping[str, float]) -> None:
        self.seen.append((step, list(gradients)))
        for replica, (_, (array,)) in gradients.items():
            np.testing.assert_array_equal(array, gradient(step, replica))
            self._value += np.float32(replica) * array

    def variables(self) -> Sequence[Array]:
        return [self._value]

    def state(self) -> OwnerState:
        return OwnerState((), ())


def test_update_at_a_replica_owner_gets_each_replica_in_order() -> None:
    cluster = Cluster(3, 1, lambda comm: descend(comm, summed=False), owner=Replayed)
    values = cluster.results()
    assert cluster.owners[0].seen == [(step, list(range(8))) for step in range(STEPS)]
    for value in values:
        np.testing.assert_array_equal(value, cluster.owners[0].variables()[0])


@pytest.mark.parametrize(("num_workers", "num_servers"), DEPLOYMENTS)
@pytest.mark.parametrize("aggregator", [Sum(), Mean(), Median()], ids=lambda a: a.name)
def test_combine_on_any_deployment_has_the_bits_of_one_process(
    num_workers: int, num_servers: int, aggregator: Aggregator
) -> None:
    def body(comm: ServerCommunicator) -> list[Array]:
        parts = contributions(comm, 0, summed=aggregator.sums)
        like = [np.empty(LENGTH, np.float32)]
        return [comm.combine(parts, comm.hosting, aggregator, like)[0] for _ in range(2)]

    expected = aggregator.combine(np.stack([gradient(0, r) for r in range(8)]))
    for first, second in Cluster(num_workers, num_servers, body, aggregators=[Median()]).results():
        np.testing.assert_array_equal(first, expected)
        np.testing.assert_array_equal(second, expected)


@pytest.mark.parametrize(("num_workers", "num_servers"), DEPLOYMENTS)
def test_gather_on_any_deployment_returns_every_replicas_arrays(num_workers: int, num_servers: int) -> None:
    def body(comm: ServerCommunicator) -> list[Array]:
        parts = contributions(comm, 0, summed=False)
        found = comm.gather(parts, comm.hosting, [np.empty(LENGTH, np.float32)])
        return [array for _, (array,) in sorted(found.items())]

    for result in Cluster(num_workers, num_servers, body).results():
        np.testing.assert_array_equal(result, [gradient(0, r) for r in range(8)])


@pytest.mark.parametrize(("num_workers", "num_servers"), DEPLOYMENTS)
def test_collectives_of_ranks_return_what_all_ranks_gave(num_workers: int, num_servers: int) -> None:
    def body(comm: ServerCommunicator) -> tuple[list[bytes], bytes, Array, Array]:
        gathered = comm.all_gather_bytes(b"x" * comm.rank)
        told = comm.broadcast_bytes(b"root" if comm.rank == comm.size - 1 else None, root=comm.size - 1)
        comm.barrier()
        (total,) = comm.all_reduce(ReduceOp.SUM, [np.full((2, 3), comm.rank + 1.0)])
        (mean,) = comm.all_reduce("mean", [np.asarray(comm.rank + 1.0)])
        return gathered, told, total, mean

    for gathered, told, total, mean in Cluster(num_workers, num_servers, body).results():
        assert gathered == [b"x" * rank for rank in range(num_workers)]
        assert told == b"root"
        np.testing.assert_array_equal(total, np.full((2, 3), num_workers * (num_workers + 1) / 2))
        np.testing.assert_array_equal(mean, (num_workers + 1) / 2)


def test_collectives_between_updates_keep_the_rounds_apart() -> None:
    def body(comm: ServerCommunicator) -> Array:
        comm.all_gather_bytes(b"before")
        value = descend(comm)
        comm.barrier()
        comm.combine(contributions(comm, 0), comm.hosting, Sum(), [value])
        return value

    for value in Cluster(2, 2, body).results():
        np.testing.assert_array_equal(value, descended(8))


def test_fetch_state_returns_what_each_server_owns() -> None:
    def body(comm: ServerCommunicator) -> list[Array]:
        descend(comm)
        if comm.rank != 0:
            return []
        states = comm.fetch_state()
        assert [state.extra for state in states] == [b"extra", b"extra"]
        assert [name for state in states for name in state.names] == [
            "value segment 0[0:500]",
            "value segment 0[500:1000]",
        ]
        return [np.array(array) for state in states for array in state.arrays]

    fetched = Cluster(2, 2, body).results()[0]
    np.testing.assert_array_equal(np.concatenate(fetched), descended(8))


def test_traffic_counts_the_payload_of_an_update() -> None:
    def body(comm: ServerCommunicator) -> tuple[int, int, int]:
        descend(comm)
        return len(comm.hosting.covers[comm.rank]), comm.traffic.bytes_sent, comm.traffic.bytes_received

    for nodes, sent, received in Cluster(3, 2, body).results():
        assert sent == nodes * STEPS * LENGTH * 4
        assert received == STEPS * LENGTH * 4


def test_stop_request_is_seen_by_all_workers_after_the_same_round() -> None:
    cluster: Cluster

    def body(comm: ServerCommunicator) -> int:
        rounds = 0
        while not comm.stop_requested:
            comm.step = rounds
            if rounds == 5 and comm.rank == 0:
                cluster.loop.request_stop()
            comm.barrier()
            rounds += 1
        return rounds

    cluster = Cluster(3, 2, body)
    rounds = cluster.results()
    assert len(set(rounds)) == 1
    assert rounds[0] > 5
    assert cluster.ending().reason == "stopped on request"


def test_reports_reach_the_record_with_their_buffers_before_the_end() -> None:
    def body(comm: ServerCommunicator) -> None:
        comm.control.report("epoch", b"0.96", [np.arange(3.0) + comm.rank, np.zeros((0, 2), np.float32)])

    cluster = Cluster(2, 1, body)
    cluster.results()
    assert cluster.record.ending == (0, "finished")
    assert sorted(sender.rank for sender, *_ in cluster.record.reports) == [0, 1]
    for sender, kind, body_bytes, buffers in cluster.record.reports:
        assert (kind, body_bytes) == ("epoch", b"0.96")
        np.testing.assert_array_equal(buffers[0], np.arange(3.0) + sender.rank)
        assert buffers[1].shape == (0, 2)


def test_resume_bytes_reach_every_process() -> None:
    def body(comm: ServerCommunicator) -> bytes:
        return comm.control.resume

    assert Cluster(2, 1, body, resume=b"checkpoint" * 1000).results() == [b"checkpoint" * 1000] * 2


def test_ranks_follow_the_requested_index() -> None:
    def body(comm: ServerCommunicator) -> tuple[int, tuple[int, ...]]:
        return comm.rank, comm.hosting.hosted[comm.rank]

    assert Cluster(3, 1, body).results() == [(0, (0, 1, 2)), (1, (3, 4, 5)), (2, (6, 7))]
    assert Hosting.contiguous(8, 3).hosted[2] == (6, 7)
