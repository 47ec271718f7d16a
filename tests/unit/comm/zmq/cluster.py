"""A whole parameter-server job in one process: coordinator, servers and workers as threads over the loopback."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from distopt.aggregation import Aggregator, Sum
from distopt.arena import Span
from distopt.canonical_sum import Node
from distopt.comm.zmq import ControlLink, Link, LinkConfig, Listener, ServerCommunicator
from distopt.comm.zmq.link import data_identity
from distopt.distribute.served import OwnerState
from distopt.distribute.served_rows import Contributed
from distopt.errors import RemoteProtocolError
from distopt.protocol.manifest import Manifest
from distopt.protocol.members import MemberStatus
from distopt.protocol.membership import MembershipConfig
from distopt.protocol.messages import Assignment, Join, Message, Peer, Ready, Role, Start
from distopt.runtime.serve_coordinator import CoordinatorLoop, Ending
from distopt.runtime.serve_server import ServerLoop
from distopt.types import Array

M = TypeVar("M", bound=Message)

HARD_LIMIT_S = 20.0
"""No thread of a test runs longer."""

FAST = LinkConfig(heartbeat_interval_s=0.05, peer_timeout_s=5.0, join_timeout_s=10.0, round_timeout_s=10.0, grace_s=1.0)
LENGTH = 1000


def spans_of(num_servers: int) -> tuple[tuple[Span, ...], ...]:
    """Return each server's part of LENGTH elements, cut at whole hundreds."""
    cuts = [100 * (LENGTH // 100 * server // num_servers) for server in range(num_servers + 1)]
    return tuple((Span(0, start, stop),) if start < stop else () for start, stop in itertools.pairwise(cuts))


class GradientDescent:
    """An owner of spans: ``variable -= learning_rate * gradient``, scaled where ``norm`` asks for all partials."""

    def __init__(self, spans: Sequence[Span], *, norm: bool = False, aggregator: Aggregator | None = None) -> None:
        self.aggregator = aggregator or Sum()
        self.spans = spans
        self.norm = norm
        self.seen_partials: list[Array] = []
        self._values = [np.zeros(span.stop - span.start, np.float32) for span in spans]

    code_bytes = None

    def decode(self, code: Array) -> tuple[Array, ...]:
        raise AssertionError("nothing is compressed here")

    def partials(self, flat_spans: Sequence[Array], hypers: Mapping[str, float]) -> Array | None:
        if not self.norm or not flat_spans:
            return None
        return np.concatenate([np.square(flat).reshape(-1, 100).sum(1) for flat in flat_spans])

    def apply(self, step: int, flat_spans: Sequence[Array], hypers: Mapping[str, float], all_partials: Array) -> None:
        scale = np.float32(1.0)
        if self.norm:
            self.seen_partials.append(np.array(all_partials))
            scale = np.sqrt(all_partials.sum(), dtype=np.float32) if all_partials.size else scale
        for value, gradient in zip(self._values, flat_spans, strict=True):
            value -= np.float32(hypers["learning_rate"]) * gradient / scale

    def check_rows(self, node: Node, contributed: Contributed) -> None:
        raise RemoteProtocolError(f"{node} has rows of {contributed.with_rows}")

    def variables(self) -> Sequence[Array]:
        return self._values

    def state(self) -> OwnerState:
        return OwnerState(tuple(f"value {span}" for span in self.spans), self._values, b"extra")


@dataclass
class Record:
    """A recorder that remembers."""

    peers: Sequence[Peer] = ()
    reports: list[tuple[Peer, str, bytes, list[Array]]] = field(default_factory=list)
    seen: Sequence[MemberStatus] = ()
    notes: list[str] = field(default_factory=list)
    ending: tuple[int, str] | None = None

    def started(self, peers: Sequence[Peer]) -> None:
        self.peers = peers

    def report(self, sender: Peer, kind: str, body: bytes, buffers: Sequence[Array]) -> None:
        self.reports.append((sender, kind, body, [np.array(b) for b in buffers]))

    def status(self, members: Sequence[MemberStatus]) -> None:
        self.seen = members

    def note(self, text: str) -> None:
        self.notes.append(text)

    def finished(self, status: int, reason: str) -> None:
        self.ending = (status, reason)


class Task:
    """A function in a thread; its result or error is picked up with a limit."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._result: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result = self._function()
        except BaseException as error:  # noqa: BLE001  handed to whoever asks
            self._error = error

    def result(self) -> Any:
        self._thread.join(HARD_LIMIT_S)
        assert not self._thread.is_alive(), "a thread of the cluster hangs"
        if self._error is not None:
            raise self._error
        return self._result

    def error(self) -> BaseException | None:
        self._thread.join(HARD_LIMIT_S)
        assert not self._thread.is_alive(), "a thread of the cluster hangs"
        return self._error


OwnerFactory = Callable[[Sequence[Span]], Any]


class Cluster:
    """``num_workers`` run ``body(communicator)``, but for those that the test plays ``by_hand``; the rest runs the
    real loops."""

    def __init__(
        self,
        num_workers: int,
        num_servers: int,
        body: Callable[[ServerCommunicator], Any],
        *,
        num_replicas: int = 8,
        owner: OwnerFactory = GradientDescent,
        config: LinkConfig = FAST,
        aggregators: Sequence[Aggregator] = (),
        resume: bytes | None = None,
        manifest_of: Callable[[int], Manifest] = lambda worker: Manifest(job="seed = 1"),
        by_hand: Sequence[int] = (),
        spans: tuple[tuple[Span, ...], ...] | None = None,
    ) -> None:
        self.record = Record()
        self.owners: dict[int, Any] = {}
        self.stuck: list[str] = []
        self._config = self.link_config = config
        self._body = body
        self._owner = owner
        self._aggregators = aggregators
        self.manifest = Manifest(job="seed = 1")
        membership = MembershipConfig(
            num_replicas=num_replicas,
            num_workers=num_workers,
            num_servers=num_servers,
            spans=spans_of(num_servers) if spans is None else spans,
            session="test",
            join_timeout_s=config.join_timeout_s,
            peer_timeout_s=config.peer_timeout_s,
            step_timeout_s=5.0,
        )
        self.loop = CoordinatorLoop(membership, self.manifest, self.record, config=config, resume=resume)
        self._coordinator = Task(self.loop.run)
        self.servers = [Task(lambda index=s: self._serve(index)) for s in range(num_servers)]  # type: ignore[misc]  # a default as a capture
        self.workers = [
            Task(lambda index=w: self._work(index, manifest_of(index)))  # type: ignore[misc]  # a default as a capture
            for w in range(num_workers)
            if w not in by_hand
        ]

    def control(self) -> ControlLink:
        return ControlLink(self.loop.endpoint, self._config, on_stuck=self.stuck.append)

    def join(self, role: Role, index: int, endpoint: str = "", manifest: Manifest | None = None) -> Join:
        return Join(
            role=role,
            pid=os.getpid(),
            host="test",
            incarnation=index,
            manifest=manifest or self.manifest,
            endpoint=endpoint,
            index=index,
        )

    def results(self) -> list[Any]:
        """Return what each worker's body returned, once all has ended well."""
        values = [worker.result() for worker in self.workers]
        for server in self.servers:
            server.result()
        assert self.ending().status == 0, self.ending()
        return values

    def ending(self) -> Ending:
        ending = self._coordinator.result()
        assert isinstance(ending, Ending)
        return ending

    def _serve(self, index: int) -> None:
        listener = Listener("tcp://127.0.0.1:0", self._config)
        try:
            with self.control() as control:
                assignment = control.start(self.join(Role.SERVER, index, listener.endpoint))
                owner = self.owners[assignment.rank] = self._owner(assignment.spans[assignment.rank])
                loop = ServerLoop(control, listener, assignment, owner, self._aggregators)
                control.begin()
                loop.run()
        finally:
            listener.close()

    def _work(self, index: int, manifest: Manifest) -> Any:
        with self.control() as control:
            assignment = control.start(self.join(Role.WORKER, index, manifest=manifest))
            communicator = ServerCommunicator(control, assignment)
            try:
                control.begin()
                result = self._body(communicator)
                control.finish()
                return result
            finally:
                communicator.close()


class HandPlayedWorker:
    """A worker that says what the test tells it to, and nothing more."""

    def __init__(self, cluster: Cluster, index: int) -> None:
        self._config = cluster.link_config
        self._control = Link(cluster.loop.endpoint, self._config, identity=f"by hand {index}".encode())
        self._control.send(cluster.join(Role.WORKER, index))
        self.assignment = self.hear(Assignment)
        self._control.send(Ready())
        self.hear(Start)
        identity = data_identity(self.assignment.session, Role.WORKER, self.assignment.rank)
        self.data = [Link(peer.endpoint, self._config, identity) for peer in self.assignment.servers]

    def say(self, message: Message) -> None:
        self._control.send(message)

    def hear(self, kind: type[M]) -> M:
        """Return the next message of ``kind`` from the coordinator."""
        return wait_for(self._control, kind)

    def close(self) -> None:
        for link in (self._control, *self.data):
            link.close()


def wait_for(link: Link, kind: type[M]) -> M:
    """Return the next message of ``kind``; what comes before it is dropped."""
    while link.socket.poll(int(HARD_LIMIT_S * 1000)):
        received = link.receive()
        if received is not None and isinstance(received.message, kind):
            return received.message
    raise AssertionError(f"no {kind.__name__} came")
