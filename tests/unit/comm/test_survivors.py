"""Those who are left when a rank is lost make a communicator of themselves; and all end together, or nobody does."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from distopt.comm.communicator import Communicator
from distopt.errors import LocalProtocolError, PeerLostError
from distopt.testing import FaultPlan, run_replicas


def total(comm: Communicator, value: float) -> float:
    return float(comm.all_reduce("SUM", [np.array([value])])[0][0])


def meet_often(comm: Communicator) -> None:
    for _ in range(9):
        comm.barrier()


@pytest.mark.parametrize("size", [2, 3, 5, 8])
@pytest.mark.parametrize("victim", [0, 1])
def test_survivors_keep_their_order_and_can_reduce(size: int, victim: int) -> None:
    def replica(comm: Communicator) -> tuple[int, int, float]:
        first = comm.rank
        with pytest.raises(PeerLostError, match=f"rank {victim} was killed"):
            meet_often(comm)
        others = comm.survivors()
        return others.rank, others.size, total(others, 2.0**first)

    results = run_replicas(replica, size, faults=FaultPlan().kill(rank=victim, exchange=3), survives_losses=True)
    left = [rank for rank in range(size) if rank != victim]
    want = sum(2.0**rank for rank in left)
    assert [results[rank] for rank in left] == [(i, size - 1, want) for i in range(size - 1)]
    assert results[victim] is None


def test_survivors_of_survivors_go_on_counting_exchanges() -> None:
    def replica(comm: Communicator) -> int:
        while True:
            try:
                meet_often(comm)
                comm.finish()
                return comm.size
            except PeerLostError:
                comm = comm.survivors()

    plan = FaultPlan().kill(rank=3, exchange=2).kill(rank=0, exchange=7).kill(rank=2, exchange=13)
    assert run_replicas(replica, 4, faults=plan, survives_losses=True)[1] == 1


def test_all_finish_or_all_miss_the_one_that_is_lost_before_it_does() -> None:
    all_have_met = threading.Barrier(3)

    def replica(comm: Communicator) -> str:
        comm.barrier()
        all_have_met.wait(30.0)  # one that is killed earlier would be missed in the barrier of the others
        if comm.rank == 2:
            comm.barrier()  # where it is killed
        with pytest.raises(PeerLostError, match="before all had finished"):
            comm.finish()
        others = comm.survivors()
        others.finish()
        return f"{others.rank} of {others.size}"

    plan = FaultPlan().kill(rank=2, exchange=1)
    assert run_replicas(replica, 3, faults=plan, survives_losses=True) == ["0 of 2", "1 of 2", None]


def test_communicator_that_survives_no_loss_says_so() -> None:
    with pytest.raises(LocalProtocolError, match="InProcessCommunicator survives none"):
        run_replicas(lambda comm: comm.survivors(), 1)
