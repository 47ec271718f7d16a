from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from distopt.comm.communicator import Communicator, Receive, Send
from distopt.errors import (
    CollectiveTimeoutError,
    LocalProtocolError,
    MergeOrderError,
    PeerLostError,
    RemoteProtocolError,
)
from distopt.testing import FakeClock, FaultPlan, run_replicas


@pytest.mark.parametrize("num_replicas", [1, 2, 3, 5, 8])
def test_run_replicas_results_are_in_rank_order(num_replicas: int) -> None:
    assert run_replicas(lambda comm: (comm.rank, comm.size), num_replicas) == [
        (rank, num_replicas) for rank in range(num_replicas)
    ]


def test_run_replicas_without_replicas_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 member, not 0"):
        run_replicas(lambda comm: None, 0)


def test_run_replicas_raises_the_first_error_with_its_replica_and_ends_the_others() -> None:
    def replica(comm: Communicator) -> None:
        if comm.rank == 2:
            raise KeyError("mine")
        comm.barrier()

    with pytest.raises(KeyError, match="mine") as caught:
        run_replicas(replica, 5)
    assert caught.value.__notes__ == ["on replica 2 of 5"]


def test_replica_that_waits_for_a_failed_one_learns_who_and_why() -> None:
    seen: dict[int, str] = {}

    def replica(comm: Communicator) -> None:
        comm.step = 7
        if comm.rank == 1:
            raise KeyError("mine")
        try:
            comm.barrier()
        except PeerLostError as error:
            seen[comm.rank] = str(error)
            raise

    with pytest.raises(KeyError):
        run_replicas(replica, 3)
    assert seen.keys() == {0, 2}
    for rank, message in seen.items():
        assert message.startswith("rank 1 failed with KeyError: 'mine'; ")
        assert f"rank {rank} waited 0.0 s in step 7 for rank" in message
        assert message.endswith(": barrier")


def test_replica_that_waits_for_one_that_returned_learns_that_it_left() -> None:
    def replica(comm: Communicator) -> None:
        if comm.rank != 1:
            comm.barrier()

    with pytest.raises(PeerLostError, match=r"rank 1 left; rank [02] waited 0\.0 s in step 0 for ranks? 1.*: barrier"):
        run_replicas(replica, 3)


def test_replicas_that_call_different_collectives_fail_at_once() -> None:
    def replica(comm: Communicator) -> None:
        if comm.rank == 0:
            comm.broadcast_bytes(None, root=1)
        else:
            comm.broadcast_bytes(None, root=0)

    started_s = time.monotonic()
    calls = "rank 0 comes to 'broadcast_bytes from rank 1' where rank 1 comes to 'broadcast_bytes from rank 0'"
    with pytest.raises(MergeOrderError, match=calls):
        run_replicas(replica, 2)
    assert time.monotonic() - started_s < 10.0


def test_replica_that_never_returns_is_named_after_the_limit() -> None:
    release = threading.Event()

    def replica(comm: Communicator) -> None:
        if comm.rank == 1:
            release.wait()
        comm.barrier()

    with pytest.raises(
        CollectiveTimeoutError, match=r"rank 1 did not finish within 0\.2 s|waited 0\.\d s .* for rank 1"
    ):
        run_replicas(replica, 2, timeout_s=0.2)
    release.set()


def test_fault_kill_ends_the_others_with_its_name_and_leaves_no_result() -> None:
    survivors: dict[int, str] = {}

    def replica(comm: Communicator) -> int:
        for _ in range(3):
            try:
                comm.barrier()
            except PeerLostError as error:
                survivors[comm.rank] = str(error)
                return -comm.rank
        return comm.rank

    assert run_replicas(replica, 3, faults=FaultPlan().kill(rank=1, exchange=2)) == [0, None, -2]
    assert survivors.keys() == {0, 2}
    for message in survivors.values():
        assert message.startswith("rank 1 was killed by the fault plan in its exchange 2; rank")


def test_fault_drop_is_a_timeout_of_the_receiver_in_no_time() -> None:
    clock = FakeClock()
    with pytest.raises(CollectiveTimeoutError, match=r"rank 2 waited 30\.0 s in step 0 for rank 0: barrier"):
        run_replicas(
            lambda comm: comm.barrier(), 3, clock=clock, faults=FaultPlan().drop(source=0, destination=2, exchange=0)
        )
    assert clock.now_s == 30.0


def test_fault_drop_lets_nothing_that_follows_arrive() -> None:
    def replica(comm: Communicator) -> None:
        if comm.rank == 1:
            comm.exchange([], [Receive(0, np.zeros(1))], "any of them")
        else:
            comm.exchange([Send(1, np.zeros(1))], [], "the first")
            comm.exchange([Send(1, np.zeros(1))], [], "the second")

    with pytest.raises(CollectiveTimeoutError, match=r"rank 1 waited 30\.0 s in step 0 for rank 0: any of them"):
        run_replicas(replica, 2, clock=FakeClock(), faults=FaultPlan().drop(source=0, destination=1, exchange=0))


def test_fault_delay_passes_in_virtual_time() -> None:
    clock = FakeClock()
    plan = (
        FaultPlan()
        .delay(source=0, destination=1, exchange=0, seconds=20.0)
        .delay(source=1, destination=0, exchange=1, seconds=5.0)
    )

    def replica(comm: Communicator) -> list[bytes]:
        return comm.all_gather_bytes(bytes([comm.rank])) + comm.all_gather_bytes(b"second")

    expected = [b"\0", b"\1", b"\2", *[b"second"] * 3]
    assert run_replicas(replica, 3, clock=clock, faults=plan) == [expected] * 3
    assert clock.now_s == 25.0


def test_fault_delay_in_real_time_is_skipped() -> None:
    started_s = time.monotonic()
    run_replicas(
        lambda comm: comm.barrier(), 2, faults=FaultPlan().delay(source=0, destination=1, exchange=0, seconds=20.0)
    )
    assert time.monotonic() - started_s < 10.0


def test_fault_delay_beyond_patience_is_a_timeout() -> None:
    with pytest.raises(CollectiveTimeoutError, match=r"rank 1 waited 30\.0 s"):
        run_replicas(
            lambda comm: comm.barrier(),
            2,
            clock=FakeClock(),
            faults=FaultPlan().delay(source=0, destination=1, exchange=0, seconds=31.0),
        )


def test_fault_delay_keeps_the_order_of_messages() -> None:
    def replica(comm: Communicator) -> list[int]:
        other = 1 - comm.rank
        received = [np.empty(1, np.int64) for _ in range(2)]
        for index, array in enumerate(received):
            comm.exchange([Send(other, np.array([10 * comm.rank + index]))], [], "two messages")
            del array
        comm.exchange([], [Receive(other, array) for array in received], "two messages")
        return [int(array[0]) for array in received]

    plan = FaultPlan().delay(source=0, destination=1, exchange=0, seconds=3.0)
    assert run_replicas(replica, 2, clock=FakeClock(), faults=plan) == [[10, 11], [0, 1]]


def test_exchange_of_another_length_is_refused_with_both() -> None:
    def replica(comm: Communicator) -> None:
        other = 1 - comm.rank
        comm.exchange([Send(other, np.zeros(comm.rank + 1))], [Receive(other, np.zeros(1))], "lengths")

    with pytest.raises(RemoteProtocolError, match="rank 0 expected 8 bytes from rank 1 at step 0 and got 16: lengths"):
        run_replicas(replica, 2)


def test_exchange_of_an_array_with_gaps_is_refused() -> None:
    def replica(comm: Communicator) -> None:
        comm.exchange([Send(comm.rank, np.zeros(4)[::2])], [], "gaps")

    with pytest.raises(ValueError, match="only contiguous arrays"):
        run_replicas(replica, 1)


def test_exchange_after_close_is_refused() -> None:
    def replica(comm: Communicator) -> None:
        comm.close()
        comm.close()
        comm.barrier()

    with pytest.raises(LocalProtocolError, match="rank 0 used a communicator that is closed: barrier"):
        run_replicas(replica, 1)


@pytest.mark.parametrize("root", [-1, 2])
def test_broadcast_from_a_rank_that_does_not_exist_is_refused(root: int) -> None:
    with pytest.raises(ValueError, match=f"root must be a rank below 2, not {root}"):
        run_replicas(lambda comm: comm.broadcast_bytes(b"", root), 2)


def test_broadcast_of_nothing_by_the_root_is_refused() -> None:
    with pytest.raises(ValueError, match="rank 0 is the root of a broadcast and has nothing to send"):
        run_replicas(lambda comm: comm.broadcast_bytes(None), 2)


def test_all_reduce_of_booleans_is_refused() -> None:
    with pytest.raises(TypeError, match="cannot add booleans"):
        run_replicas(lambda comm: comm.all_reduce("SUM", [np.array([True])]), 2)


def test_fake_clock_advances_only_when_told() -> None:
    clock = FakeClock(5.0)
    clock.advance(1.5)
    assert clock() == clock.now_s == 6.5
    with pytest.raises(ValueError, match=r"cannot go back by 1\.0 s"):
        clock.advance(-1.0)


def test_fault_delay_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match=r"cannot arrive 2\.0 s before it is sent"):
        FaultPlan().delay(source=0, destination=1, exchange=0, seconds=-2.0)
