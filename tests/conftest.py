"""What all tests share: the transport that conformance bodies run over.

The bodies in ``tests/conformance`` take a fixture ``run`` and say what holds on every rank. In one process they run
as threads, at several sizes; started by ``mpirun``, over the MPI world as it is::

    mpirun -n 3 python -m mpi4py -m pytest -x -p no:cacheprovider tests/conformance
"""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import hypothesis
import pytest

from distopt.comm.communicator import Communicator
from distopt.testing import run_replicas

Result = TypeVar("Result")

MPI_WORLD_SIZE = int(os.environ.get("OMPI_COMM_WORLD_SIZE") or os.environ.get("PMI_SIZE") or 1)
GROUPS = [f"mpi-{MPI_WORLD_SIZE}"] if MPI_WORLD_SIZE > 1 else [f"in_process-{n}" for n in (1, 2, 3, 5, 8)]

_UNTIMED = {f"tests/multiprocess/test_{name}.py" for name in ("aggregators", "golden", "row_sparse", "same_bits")}
"""Jobs that only end with the right bits, however long that takes."""

# No test is about time, least of all on a busy machine; which examples are tried depends on the test alone.
hypothesis.settings.register_profile(
    "distopt", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("distopt")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Where several processes share the tests (``-n 2``), let one of them run all jobs that are about time.

    Two of these at once could take longer than what they assert. All that start jobs come early.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):  # type: ignore[misc,unused-ignore]  # xdist is typed in some versions
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return (
                "jobs" if file.startswith(("tests/multiprocess/", "tests/faults/")) and file not in _UNTIMED else file
            )

    config.option.loadscopereorder = False  # files with few tests may take longest
    return Scheduling(config, log)


@pytest.fixture(scope="module", autouse=True)
def _earlier_objects_are_not_looked_at_again() -> None:
    """Keep the collections of garbage short, which jobs make before they begin, too: a process of tests grows."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _log_goes_where_it_did() -> Iterator[None]:
    """Undo what a test has made of the log, which later ones look into."""
    logger = logging.getLogger("distopt")
    level, propagates, handlers = logger.level, logger.propagate, list(logger.handlers)
    yield
    for handler in [handler for handler in logger.handlers if handler not in handlers]:
        logger.removeHandler(handler)
        handler.close()
    logger.setLevel(level)
    logger.propagate = propagates


class Run(Protocol):
    """Run a body on every rank of a group; return the results of the ranks that run in this process."""

    size: int

    def __call__(self, body: Callable[[Communicator], Result]) -> list[Result]: ...


_LIMIT_S = 100.0
"""Of one run: on a machine that compiles every kernel for the first time, and is busy, some take half a minute."""


class _Threads:
    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, body: Callable[[Communicator], Result]) -> list[Result]:
        return run_replicas(body, self.size, timeout_s=_LIMIT_S)


class _ThisRank:
    def __init__(self, comm: Communicator) -> None:
        self.size = comm.size
        self._comm = comm

    def __call__(self, body: Callable[[Communicator], Result]) -> list[Result]:
        return [body(self._comm)]


@pytest.fixture(scope="session")
def mpi_communicator() -> Iterator[Communicator]:
    """The world of an MPI job, for as long as the tests run."""
    from distopt.comm.mpi import MpiCommunicator

    comm = MpiCommunicator(timeout_s=60.0)
    yield comm
    comm.close()


@pytest.fixture(params=GROUPS)
def run(request: pytest.FixtureRequest) -> Run:
    """Run a body on every rank of one group, over one transport."""
    transport, size = request.param.rsplit("-", 1)
    if transport == "mpi":
        return _ThisRank(request.getfixturevalue("mpi_communicator"))
    return _Threads(int(size))


class RunReplicas(Protocol):
    """Run a body on every rank of a group that hosts ``num_replicas`` replicas, as :class:`Run` does."""

    def __call__(self, body: Callable[[Communicator], Result], num_replicas: int) -> list[Result]: ...


@pytest.fixture(params=[*GROUPS, *(["zmq-2"] if MPI_WORLD_SIZE == 1 else [])])
def run_everywhere(request: pytest.FixtureRequest) -> RunReplicas:
    """Run a body on every rank of one group, also with two workers of a parameter server, threads over the loopback."""
    transport, size = request.param.rsplit("-", 1)
    if transport == "mpi":
        this_rank = _ThisRank(request.getfixturevalue("mpi_communicator"))
        return lambda body, _: this_rank(body)
    if transport == "zmq":
        from tests.unit.comm.zmq.cluster import Cluster

        return lambda body, num_replicas: Cluster(int(size), 1, body, num_replicas=num_replicas).results()
    return lambda body, _: run_replicas(body, int(size), timeout_s=_LIMIT_S)
