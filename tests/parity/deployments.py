"""Where a recorded case is run again: two replicas in one process, several servers, the ranks of an MPI job.

A *case* is what ``golden.json`` holds. ``run_case`` applies its dense gradients, divided among two replicas, under a
strategy; ``InProcessServers`` is the communicator of a worker whose servers live in the same process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import distopt as tf
from distopt.arena import Span
from distopt.comm import combining
from distopt.comm.communicator import Contribution, Hosting, Traffic
from distopt.distribute import MirroredStrategy, Strategy, SyncParameterServerStrategy
from distopt.distribute.served import ServedSpans, load_named_arrays, relative_division
from distopt.types import Array
from distopt.variable import Variable
from tests.loopback_servers import joined

REPLICAS = 2


class Job(NamedTuple):
    """The variables of one process and the optimizer that updates them."""

    variables: dict[str, Variable]
    optimizer: Any


class InProcessServers:
    """A worker's link to ``num_servers`` servers, each of which has made ``job`` for itself, as a process would."""

    rank = 0
    size = 1
    step_is_told = True

    def __init__(self, make_job: Callable[[], Job], num_servers: int) -> None:
        self.num_servers = num_servers
        self.traffic = Traffic()
        self._jobs = [make_job() for _ in range(num_servers)]
        self._layouts = [job.optimizer.layout(tuple(job.variables.values())) for job in self._jobs]
        self._spans = relative_division(self._layouts[0], num_servers)
        self._servers = [
            ServedSpans(job.optimizer, layout, spans)
            for job, layout, spans in zip(self._jobs, self._layouts, self._spans, strict=True)
        ]

    def update(
        self,
        contributions: Sequence[Contribution],
        hosting: Hosting,
        hypers: dict[str, float] | None,
        into: Sequence[tuple[Span, Array]],
        label: str = "",
    ) -> None:
        """Have every server update its spans, and copy what comes back ``into`` the worker's variables."""
        assert hypers is not None
        like = contributions[0].arrays
        sums = {part.node: part.arrays for part in contributions}
        total = combining.aggregate(sums, hosting, self._servers[0].aggregator, like=like)
        taken = [_parts(into, total, spans) for spans in self._spans]
        of_all = joined(server.partials(flat, hypers) for server, flat in zip(self._servers, taken, strict=True))
        for server, flat in zip(self._servers, taken, strict=True):
            server.apply(0, flat, hypers, of_all)
        runs = [array for _, array in into]
        for server, spans in zip(self._servers, self._spans, strict=True):
            for target, value in zip(_parts(into, runs, spans), server.variables(), strict=True):
                target[...] = value

    def fetch_slots(self, job: Job) -> None:
        """Write the servers' variables and slots into ``job``, as the chief does before it saves."""
        layout = job.optimizer.layout(tuple(job.variables.values()))
        for server, spans in zip(self._servers, self._spans, strict=True):
            state = server.state()
            load_named_arrays(job.optimizer, layout, spans, dict(zip(state.names, state.arrays, strict=True)))


def _parts(into: Sequence[tuple[Span, Array]], arrays: Sequence[Array], spans: Sequence[Span]) -> list[Array]:
    """Return the views of ``arrays``, one for each run of ``into``, that ``spans`` cover."""
    found = []
    for segment, start, stop in spans:
        (index,) = [
            i for i, (run, _) in enumerate(into) if run.segment_index == segment and run.start <= start < run.stop
        ]
        begin = into[index][0].start
        found.append(arrays[index][start - begin : stop - begin])
    return found


def run_steps(
    strategy: Strategy, job: Job, gradients_of: Callable[[int, int], list[Any]], steps: int, seen: Callable[[int], None]
) -> None:
    """Apply ``gradients_of(step, replica)`` under ``strategy``, and call ``seen(step)`` after each step."""

    def replica_step(step: int) -> None:
        context = tf.distribute.get_replica_context()
        assert context is not None
        gradients = gradients_of(step, context.replica_id_in_sync_group)
        job.optimizer.apply_gradients(zip(gradients, job.variables.values(), strict=True))

    for step in range(steps):
        strategy.run(replica_step, args=(step,))
        seen(step)


def share_of(replica: int, gradient: Array, *, all_of_it: bool) -> Array:
    """Return what ``replica`` of two contributes, so that the sum is exactly ``gradient``.

    ``all_of_it``: replica 0 has the whole gradient, as it must where replicas clip their own; else they differ in sign
    and size.
    """
    if all_of_it:
        return gradient if replica == 0 else 0 * gradient
    return 2 * gradient if replica == 0 else -gradient


def mirrored(make_job: Callable[[], Job]) -> tuple[Strategy, Job, Callable[[], None]]:
    """Return two replicas in this process, their job, and what brings its slots here: nothing."""
    strategy = MirroredStrategy(REPLICAS)
    with strategy.scope():
        return strategy, make_job(), lambda: None


def served(num_servers: int) -> Callable[[Callable[[], Job]], tuple[Strategy, Job, Callable[[], None]]]:
    """Return what makes a worker with two replicas and so many servers, its job, and what fetches its slots."""

    def make(make_job: Callable[[], Job]) -> tuple[Strategy, Job, Callable[[], None]]:
        servers = InProcessServers(make_job, num_servers)
        job = make_job()
        strategy = SyncParameterServerStrategy(servers, replicas=REPLICAS)
        return strategy, job, lambda: servers.fetch_slots(job)

    return make


DEPLOYMENTS: dict[str, Callable[[Callable[[], Job]], tuple[Strategy, Job, Callable[[], None]]]] = {
    "mirrored": mirrored,
    **{f"{n}-servers": served(n) for n in (1, 2, 3)},
}
