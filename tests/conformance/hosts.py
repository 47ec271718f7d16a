"""Hosts that are emulated: ranks of one machine that form groups as if each group were a host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from distopt.comm.communicator import Communicator
from distopt.comm.shared_memory import meet_on_host
from distopt.distribute import CommunicationOptions, MultiWorkerMirroredStrategy, Strategy
from distopt.errors import PeerLostError
from distopt.testing import FaultPlan, run_replicas
from tests.conftest import MPI_WORLD_SIZE, Run


def on_hosts(
    run: Run,
    host_of: str,
    replicas: int,
    body: Callable[[Strategy], Any],
    placement: str = "sharded",
    chunk_bytes: int = 4096,
    overlap: bool = False,
) -> list[Any]:
    """Return what ``body`` returns on each rank; ``host_of`` has the host of each rank, one digit each."""

    def worker(comm: Communicator) -> Any:
        if comm._host_group is not None:
            comm._host_group.close()
        comm._host_group = meet_on_host(comm, namespace=f"host {host_of[comm.rank]}")
        comm.shares_memory, comm.exchange_cost_bytes, comm.meeting_cost_bytes = True, 0, 0
        options = CommunicationOptions(bytes_per_pack=chunk_bytes, overlap=overlap)
        strategy = MultiWorkerMirroredStrategy(None, options, replicas=replicas, communicator=comm, placement=placement)
        found = body(strategy)
        comm._host_group.close()
        comm._host_group = None
        return found

    return run(worker)


def refused_by_all(run: Run, options_of: Callable[[Communicator], CommunicationOptions], match: str) -> list[str]:
    """Return what each rank says of options that are not the same on all; skips where there is one rank."""
    if run.size < 2:
        pytest.skip("there is no other rank")

    def worker(comm: Communicator) -> str:
        shared, comm.shares_memory = comm.shares_memory, True
        with pytest.raises(ValueError, match=match) as raised:
            MultiWorkerMirroredStrategy(None, options_of(comm), communicator=comm)
        comm.shares_memory = shared
        return str(raised.value)

    return run(worker)


def count_deaths(run: Run, train: Callable[[Communicator], None], most: int) -> int:
    """Return in how many exchanges a rank can die, of two hosts with one rank and two; each death must be named.

    Skips but once, where ``run`` has as many ranks.
    """
    if run.size != 3 or MPI_WORLD_SIZE > 1:
        pytest.skip("threads of one process, of which one host has two")

    def worker(comm: Communicator) -> None:
        comm._host_group = meet_on_host(comm, namespace=f"host {comm.rank > 0}")
        try:
            train(comm)
        finally:
            comm._host_group.close()

    killed = 0
    for number in range(most):
        try:
            found = run_replicas(worker, 3, faults=FaultPlan().kill(rank=1, exchange=number))
        except PeerLostError as error:
            assert "rank 1" in str(error)  # noqa: PT017 - the last ones end in peace
            killed += 1
        else:
            assert found == [None] * 3
            break
    return killed
