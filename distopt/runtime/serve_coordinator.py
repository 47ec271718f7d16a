"""The coordinator's loop: a socket, a clock and the run's record around the membership state machine."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import zmq

from distopt.comm.zmq.link import LinkConfig, Listener
from distopt.errors import PeerLostError, RemoteProtocolError
from distopt.protocol.commands import Command, Deliver, EndJob, Note, Started
from distopt.protocol.manifest import Manifest
from distopt.protocol.members import MemberStatus
from distopt.protocol.membership import Membership, MembershipConfig
from distopt.protocol.messages import Assignment, Peer, Report
from distopt.types import Array

_POLL_MS = 50
"""How soon a request to stop is seen."""


class Recorder(Protocol):
    """Who keeps the run's record and shows it; called in the coordinator's thread."""

    def started(self, peers: Sequence[Peer]) -> None:
        """Step 0 begins, with these servers and workers."""
        ...

    def report(self, sender: Peer, kind: str, body: bytes, buffers: Sequence[Array]) -> None:
        """``sender`` reported; the buffers are read-only."""
        ...

    def status(self, members: Sequence[MemberStatus]) -> None:
        """Called every heartbeat interval with what is known of every process, from the first one that joins."""
        ...

    def note(self, text: str) -> None:
        """Something the user should know that does not end the job."""
        ...

    def finished(self, status: int, reason: str) -> None:
        """The job is over; 0 is success."""
        ...


class Ending(NamedTuple):
    """How a job ended; ``code`` names an error class where ``status`` is not 0."""

    status: int
    reason: str
    code: str = ""


class CoordinatorLoop:
    """Listen at ``endpoint`` (port 0: any free one; then see :attr:`endpoint`) and run one job.

    ``resume``: the checkpoint that goes out with every assignment.

    Raises: EndpointError if the address cannot be bound.
    """

    def __init__(
        self,
        membership: MembershipConfig,
        manifest: Manifest,
        recorder: Recorder,
        endpoint: str = "tcp://127.0.0.1:0",
        config: LinkConfig | None = None,
        resume: bytes | None = None,
    ) -> None:
        self._config = config or LinkConfig()
        self._listener = Listener(endpoint, self._config)
        self.endpoint = self._listener.endpoint
        self._membership = membership
        self._manifest = manifest
        self._recorder = recorder
        self._resumes = resume is not None
        self._resume = [] if resume is None else [np.frombuffer(resume, np.uint8)]
        self._stop = False
        self._ended: deque[tuple[int, str]] = deque()
        self._failure = ""
        self._ending: Ending | None = None

    def request_stop(self) -> None:
        """End the job in order, after the round under way; may be called in a signal handler or another thread."""
        self._stop = True

    def process_ended(self, pid: int, how: str) -> None:
        """Take in that a process of this machine ended, in words that name it; may be called in another thread."""
        self._ended.append((pid, how))

    def fail(self, reason: str) -> None:
        """End the job with an error; may be called in another thread."""
        self._failure = reason

    def run(self) -> Ending:
        """Run the job; return how it ended. What the recorder raises ends the job everywhere and is raised again."""
        machine = Membership(self._membership, self._manifest, time.monotonic(), resumes=self._resumes)
        try:
            while self._ending is None:
                self._turn(machine)
            self._tell_latecomers(machine)
        except BaseException as error:
            self._carry_out(machine.fail(f"the coordinator failed: {type(error).__name__}: {error}"), ())
            raise
        finally:
            self._listener.close()
        return self._ending

    def _turn(self, machine: Membership) -> None:
        """Take in what has come, then look at the clock, in this order: a message in the queue is no silence."""
        next_status_s = time.monotonic() + self._config.heartbeat_interval_s
        while self._ending is None and time.monotonic() < next_status_s:
            self._listener.socket.poll(_POLL_MS, zmq.POLLIN)
            self._hear(machine)
            if self._stop:
                self._carry_out(machine.request_stop(), ())
            while self._ended:
                self._carry_out(machine.process_ended(*self._ended.popleft(), time.monotonic()), ())
            if self._failure:
                self._carry_out(machine.fail(self._failure), ())
            self._carry_out(machine.tick(time.monotonic()), ())
        if status := machine.status(time.monotonic()):
            self._recorder.status(status)

    def _tell_latecomers(self, machine: Membership) -> None:
        """After a failure, give those that are still on their way to join a moment to hear of it."""
        deadline_s = time.monotonic() + self._config.grace_s
        while machine.latecomers and time.monotonic() < deadline_s:
            self._listener.socket.poll(_POLL_MS, zmq.POLLIN)
            self._hear(machine)

    def _hear(self, machine: Membership) -> None:
        """Take in all messages that have come."""
        while (incoming := self._listener.receive()) is not None:
            identity, frames = incoming
            try:
                message, buffers = self._listener.decode(frames)
            except RemoteProtocolError as error:
                self._listener.refuse(identity, error)
                continue
            self._carry_out(machine.receive(identity, message, time.monotonic()), buffers)

    def _carry_out(self, commands: Sequence[Command], buffers: Sequence[Array]) -> None:
        for command in commands:
            if isinstance(command, Deliver):
                report: Report = command.report
                self._recorder.report(command.sender, report.kind, report.body, buffers)
            elif isinstance(command, Started):
                self._recorder.started(command.peers)
            elif isinstance(command, Note):
                self._recorder.note(command.text)
            elif isinstance(command, EndJob):
                self._ending = Ending(*command)
                self._recorder.finished(command.status, command.reason)
            else:
                try:
                    blob = self._resume if isinstance(command.message, Assignment) else ()
                    self._listener.send(command.identity, command.message, blob)
                except PeerLostError:
                    # Its silence will be noticed; the others must not go without their messages for it.
                    continue
