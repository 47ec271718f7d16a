"""What one process of a job does, in each deployment: alone, as an MPI rank, as coordinator, server or worker.

Each builds the job from the same configuration and runs the same train loop, or serves it; they differ in what
connects them.
"""

from __future__ import annotations

import logging
import os
import platform
import socket
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from distopt import checkpoint
from distopt.aggregation import Aggregator, LocalSteps
from distopt.checkpoint.collect import restore_state
from distopt.comm.communicator import Hosting
from distopt.comm.zmq.client import ServerCommunicator
from distopt.comm.zmq.control import ControlLink
from distopt.comm.zmq.link import LinkConfig, Listener, remote_error
from distopt.distribute import MirroredStrategy, SyncParameterServerStrategy
from distopt.distribute.served import ServedReplicas, ServedSpans, relative_division, served
from distopt.errors import ProtocolError
from distopt.observe import LocalRecorder, RunFolder, Summary, make_display, set_step
from distopt.protocol.membership import MembershipConfig
from distopt.protocol.messages import Assignment, Join, Role
from distopt.runtime import report
from distopt.runtime.config import JobConfig
from distopt.runtime.job import Job, check_placement, manifest
from distopt.runtime.lifeline import Lifeline
from distopt.runtime.prepare import load_last, prepare
from distopt.runtime.remote_record import CoordinatorRecord, RemoteRecorder
from distopt.runtime.serve_coordinator import CoordinatorLoop
from distopt.runtime.serve_server import ServerLoop
from distopt.runtime.signals import INTERRUPTED, stop_on_signals
from distopt.runtime.train import Hooks, TrainLoop

logger = logging.getLogger(__name__)


def run_process(config: JobConfig, folder: RunFolder | None, resume: Path | None) -> int:
    """Train the job in this process alone, every replica hosted here; return the exit status."""
    job = prepare(config)
    strategy = MirroredStrategy(config.strategy.replicas)
    recorder = LocalRecorder(folder, make_display(sys.stderr), sys.stdout)
    try:
        with stop_on_signals() as stop:
            hooks = Hooks(recorder=recorder, deployment="process", progress=_log_step)
            hooks.stop_requested = lambda: stop.requested
            summary = TrainLoop(job, strategy, hooks).run(load_last(config, resume))
    finally:
        recorder.close()
    return _status(summary)


def run_coordinator(
    config: JobConfig,
    folder: RunFolder,
    resume: Path | None,
    on_ready: Callable[[str], None],
    lifeline: Lifeline,
) -> int:
    """Gather servers and workers, watch over them, keep the run's record; return the exit status.

    ``on_ready`` gets the address to join at.

    Raises: the error that ended the job.
    """
    job = prepare(config)
    deployment = config.deployment
    placement = _placement(config)
    check_placement(job, placement, deployment.servers)
    layout = job.optimizer.layout(tuple(job.variables))
    spans = relative_division(layout, deployment.servers) if placement == "server" else ()
    membership = MembershipConfig(
        num_replicas=config.strategy.replicas,
        num_workers=deployment.workers,
        num_servers=deployment.servers,
        spans=spans,
        session=uuid.uuid4().hex,
        join_timeout_s=deployment.join_timeout_s,
        peer_timeout_s=deployment.peer_timeout_s,
        step_timeout_s=deployment.round_timeout_s,
        settle_s=2.5 * deployment.heartbeat_interval_s,
        require_equal_numerics=not config.numerics.allow_different_fingerprints,
    )
    state = load_last(config, resume)
    record = CoordinatorRecord(LocalRecorder(folder, make_display(sys.stderr), sys.stdout))
    try:
        loop = CoordinatorLoop(
            membership,
            manifest(job),
            record,
            deployment.address,
            _links(config),
            None if state is None else checkpoint.to_bytes(state),
        )
        lifeline.subscribe(
            on_lost=lambda reason: loop.fail(f"{reason}, at step {record.step}"),
            on_stop=loop.request_stop,
            on_child_lost=lambda child: loop.process_ended(child.pid, str(child)),
        )
        on_ready(deployment.advertise or loop.endpoint)
        ending = loop.run()
    finally:
        record.close()
    if ending.status != 0:
        if lifeline.is_lost:
            report.speak_from_now_on()
        # JobAbortedError is for those who only hear of the end; here it is met, and must be reported.
        raise remote_error(ending.code.replace("JobAbortedError", "PeerLostError"), ending.reason)
    return _status(record.summary)


def run_server(config: JobConfig, coordinator: str, index: int, lifeline: Lifeline) -> int:  # noqa: ARG001
    """Own spans of the variables until the workers have finished; return the exit status.

    Raises: the error that ended the job.
    """
    job = prepare(config)
    links = _links(config)
    host = _own_host(coordinator)
    with ControlLink(coordinator, links) as control:
        listener = Listener("tcp://127.0.0.1:0" if host is None else "tcp://0.0.0.0:0", links, host or "")
        try:
            assignment = control.start(_join(Role.SERVER, job, index, listener.endpoint))
            if control.resume:
                restore_state(checkpoint.from_bytes(control.resume, "the coordinator's checkpoint"), job)
            owner = _owner(job, assignment)
            chosen = job.optimizer.gradient_aggregator
            aggregator = chosen.average if isinstance(chosen, LocalSteps) else chosen
            aggregators = [aggregator] if isinstance(aggregator, Aggregator) else []
            loop = ServerLoop(control, listener, assignment, owner, aggregators)
            control.begin()
            loop.run()
        finally:
            listener.close()
    return 0


def run_worker(config: JobConfig, coordinator: str, index: int, lifeline: Lifeline) -> int:  # noqa: ARG001
    """Host a range of the replicas; return the exit status.

    Raises: the error that ended the job.
    """
    job = prepare(config)
    with ControlLink(coordinator, _links(config)) as control:
        assignment = control.start(_join(Role.WORKER, job, index))
        state = checkpoint.from_bytes(control.resume, "the coordinator's checkpoint") if control.resume else None
        communicator = ServerCommunicator(control, assignment)
        strategy = SyncParameterServerStrategy(
            communicator, replicas=assignment.num_replicas, placement=_placement(config)
        )
        hooks = Hooks(
            recorder=RemoteRecorder(control) if assignment.rank == 0 else None,
            deployment="cluster",
            num_servers=len(assignment.servers),
            progress=lambda step, phase: _progress(control, step, phase),
            stop_requested=lambda: communicator.stop_requested,
        )
        try:
            control.begin()
            TrainLoop(job, strategy, hooks).run(state)
            control.finish()
        finally:
            communicator.close()
    return 0


def _placement(config: JobConfig) -> str:
    """Return where the update runs on a cluster."""
    placement = config.deployment.placement
    return "server" if placement == "auto" else placement


def _links(config: JobConfig) -> LinkConfig:
    deployment = config.deployment
    return LinkConfig(
        heartbeat_interval_s=deployment.heartbeat_interval_s,
        peer_timeout_s=deployment.peer_timeout_s,
        join_timeout_s=deployment.join_timeout_s,
        round_timeout_s=deployment.round_timeout_s,
    )


def _join(role: Role, job: Job, index: int, endpoint: str = "") -> Join:
    return Join(
        role=role,
        pid=os.getpid(),
        host=platform.node() or "localhost",
        incarnation=uuid.uuid4().int >> 66,
        manifest=manifest(job),
        endpoint=endpoint,
        index=index,
    )


def _owner(job: Job, assignment: Assignment) -> ServedSpans | ServedReplicas:
    layout = job.optimizer.layout(tuple(job.variables))
    if not any(assignment.spans):
        return ServedSpans(job.optimizer, layout, ())
    hosting = Hosting(assignment.num_replicas, assignment.hosting)
    return served(job.optimizer, layout, assignment.spans[assignment.rank], assignment.num_replicas, hosting)


def _own_host(coordinator: str) -> str | None:
    """Return the address of this machine that the coordinator's network sees, or None on the loopback.

    No packet is sent: connecting a datagram socket only looks up the route.
    """
    where = urlsplit(coordinator)
    if where.scheme != "tcp" or where.hostname is None:
        return None
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((where.hostname, where.port or 1))
            host = str(probe.getsockname()[0])
    except OSError:
        return platform.node()
    return None if host.startswith("127.") else host


def _log_step(step: int, phase: str) -> None:  # noqa: ARG001
    set_step(step)


def _progress(control: ControlLink, step: int, phase: str) -> None:
    set_step(step)
    control.set_progress(step, phase)
    control.raise_if_aborted()


def _status(summary: Summary | None) -> int:
    if summary is None:
        raise ProtocolError("the job ended without a summary")
    return 0 if summary.completed else INTERRUPTED
