"""Run code under a strategy of several processes, in one: for tests of hooks, losses and tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from distopt.comm.communicator import Communicator
from distopt.distribute import MultiWorkerMirroredStrategy, Strategy
from distopt.testing.replicas import run_replicas

Result = TypeVar("Result")


def run_strategy(
    function: Callable[[Strategy], Result], num_replicas: int, num_workers: int = 1, *, timeout_s: float = 30.0
) -> list[Result]:
    """Return what ``function(strategy)`` returns on each of ``num_workers`` workers, all run at the same time.

    The strategy is a MultiWorkerMirroredStrategy of ``num_replicas`` replicas, spread over the workers as under
    ``mpirun``; the workers are threads. What must not depend on the deployment is compared over ``num_workers``.

    Units: ``timeout_s`` limits the whole run. Raises: as :func:`run_replicas`.

    >>> import numpy as np
    >>> import distopt as tf
    >>> def sum_of_ids(strategy):
    ...     def replica():
    ...         context = tf.distribute.get_replica_context()
    ...         return context.all_reduce("SUM", np.float32(context.replica_id_in_sync_group))
    ...     return float(strategy.experimental_local_results(strategy.run(replica))[0])
    >>> run_strategy(sum_of_ids, num_replicas=5, num_workers=2)
    [10.0, 10.0]
    """

    def worker(communicator: Communicator) -> Result:
        return function(MultiWorkerMirroredStrategy(replicas=num_replicas, communicator=communicator))

    return run_replicas(worker, num_workers, timeout_s=timeout_s)
