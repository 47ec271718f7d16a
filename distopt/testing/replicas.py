"""Running one function as several replicas, each a thread of this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar, cast

from distopt.comm.communicator import Communicator, name_ranks
from distopt.comm.in_process import InProcessGroup
from distopt.comm.in_process_faults import Clock, Faults, KilledByPlan
from distopt.errors import CollectiveTimeoutError, JobAbortedError

Result = TypeVar("Result")


def run_replicas(
    function: Callable[[Communicator], Result],
    num_replicas: int,
    *,
    timeout_s: float = 30.0,
    clock: Clock | None = None,
    faults: Faults | None = None,
    survives_losses: bool = False,
) -> list[Result]:
    """Return ``[function(comm_0), ..., function(comm_n-1)]``, all run at the same time, one rank each.

    Units: ``timeout_s`` limits the whole run in real time, and each wait for other replicas in the time of ``clock``
        (default: real time). Where all replicas wait for each other and nothing is under way, that time is skipped.
    ``faults``, e.g. a :class:`~distopt.testing.FaultPlan`, say what goes wrong; a replica that it kills has no result
        (``None``). ``survives_losses``: the others may go on, with ``communicator.survivors()``.

    Raises: the first error that ``function`` raised on any replica, with a note that names the replica;
        PeerLostError if a killed replica was missed; CollectiveTimeoutError if the replicas do not agree on what they
        call, or if the run takes longer than ``timeout_s``.

    >>> import numpy as np
    >>> def replica(comm):
    ...     (total,) = comm.all_reduce("SUM", [np.array([comm.rank + 1.0])])
    ...     return float(total[0])
    >>> run_replicas(replica, 3)
    [6.0, 6.0, 6.0]
    """
    group = InProcessGroup(
        num_replicas, timeout_s=timeout_s, clock=clock, faults=faults, survives_losses=survives_losses
    )
    return _Run(function, group).results(timeout_s)


class _Run(Generic[Result]):
    """Threads, their results and the first error."""

    def __init__(self, function: Callable[[Communicator], Result], group: InProcessGroup) -> None:
        self._function = function
        self._group = group
        self._results: list[Result | None] = [None] * group.size
        self._lock = threading.Lock()
        self._first_error: BaseException | None = None

    def results(self, timeout_s: float) -> list[Result]:
        threads = [
            threading.Thread(target=self._run, args=(rank,), name=f"replica {rank}", daemon=True)
            for rank in range(self._group.size)
        ]
        deadline_s = time.monotonic() + timeout_s
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(max(0.0, deadline_s - time.monotonic()))
        except BaseException:
            self._group.abort(JobAbortedError("the run of replicas was interrupted"))
            raise
        running = [rank for rank, thread in enumerate(threads) if thread.is_alive()]
        if running:
            waiting = self._group.waiting()
            stuck = [rank for rank in running if rank not in waiting] or running
            error = CollectiveTimeoutError(f"{name_ranks(stuck)} did not finish within {timeout_s:g} s")
            self._group.abort(error)
            raise self._first_error or error
        if self._first_error is not None:
            raise self._first_error
        return cast("list[Result]", self._results)

    def _run(self, rank: int) -> None:
        comm = self._group.communicators[rank]
        try:
            self._results[rank] = self._function(comm)
        except KilledByPlan as error:
            self._group.fail(rank, error)
        except BaseException as error:  # noqa: BLE001 - it is raised again in the caller's thread
            with self._lock:
                if self._first_error is None:
                    error.add_note(f"on replica {rank} of {self._group.size}")
                    self._first_error = error
            self._group.fail(rank, error)
        finally:
            comm.close()
