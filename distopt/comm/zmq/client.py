"""A worker's side of the parameter servers: the collectives, and the update of the variables that servers own.

Every call is one round with each server that takes part: push what this worker hosts, ask for the result, wait. The
waits end at once when the job ends, and by themselves after ``round_timeout_s``.

A collective's arrays are cut into equal parts, one a server, which adds its part up along the canonical tree. An
update goes by the spans of the assignment. In both cases the bits are those of one process.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import zmq

from distopt.aggregation import Aggregator
from distopt.arena import Span
from distopt.canonical_sum import Node
from distopt.comm import combining
from distopt.comm.communicator import Communicator, Contribution, Hosting, Receive, Send, Traffic, Withdrawn
from distopt.comm.early import Batch
from distopt.comm.hosting import Answer, Parcel
from distopt.comm.zmq.control import ControlLink
from distopt.comm.zmq.link import Link, LinkConfig, data_identity
from distopt.errors import (
    CollectiveTimeoutError,
    LocalProtocolError,
    RemoteProtocolError,
    VariableListChangedError,
)
from distopt.protocol.messages import (
    Assignment,
    Message,
    Pull,
    Pulled,
    Push,
    RoundHead,
    RoundKind,
    State,
    StateRequest,
)
from distopt.protocol.wire import Received
from distopt.types import Array

_IDLE_MS = 500
_DIGEST_BYTES = 16

M = TypeVar("M", bound=Message)


class OwnedState(NamedTuple):
    """What one server owns: ``arrays`` by ``names``, in the owner's order, and whatever else it keeps in ``extra``."""

    server: int
    spans: tuple[Span, ...]
    names: tuple[str, ...]
    arrays: tuple[Array, ...]
    extra: bytes


class ServerCommunicator(Communicator):
    """The ranks are the workers of ``assignment``; the servers carry what they exchange.

    ``exchange`` is not offered: workers do not talk to each other.
    """

    step_is_told = True

    def __init__(self, control: ControlLink, assignment: Assignment, config: LinkConfig | None = None) -> None:
        self.control = control
        self.rank = assignment.rank
        self.size = len(assignment.workers)
        self.num_servers = len(assignment.servers)
        self.hosting = Hosting(assignment.num_replicas, assignment.hosting)
        self.traffic = Traffic()
        self.stop_requested = False
        """Whether the job should end now; true for all workers after the same round."""
        self._config = config or control.config
        self.spans = tuple(tuple(Span(*span) for span in spans) for spans in assignment.spans)
        """What each server owns, with segments numbered within the layout."""
        self._servers = assignment.servers
        identity = data_identity(assignment.session, assignment.role, assignment.rank)
        self._links = [Link(peer.endpoint, self._config, identity) for peer in assignment.servers]
        self._server_of = {link.socket: server for server, link in enumerate(self._links)}
        self._numbers = [0] * self.num_servers
        self._cuts: dict[tuple[Span, ...], list[list[tuple[int, slice]]]] = {}
        self._poller = zmq.Poller()
        for socket in (*self._server_of, control.wakeup):
            self._poller.register(socket, zmq.POLLIN)

    # ------------------------------------------------------------------------------------------------- updates

    def update(
        self,
        contributions: Sequence[Contribution],
        hosting: Hosting,
        hypers: Mapping[str, float] | None,
        into: Sequence[tuple[Span, Array]],
        label: bytes = b"",
    ) -> list[Answer]:
        """Push the gradients of the hosted replicas; return when ``into`` holds the updated variables.

        ``into``: the runs that the apply call covers, each with its flat array; the j-th array of each contribution is
        of the j-th run. ``hypers``: of this step, on the host of replica 0; elsewhere None.

        Where others pushed rows, servers may answer by rows: then nothing is written, and their answers come back.

        Raises: VariableListChangedError if the runs do not cover what the servers own; and as the other collectives.
        """
        parcels = [
            [Parcel(node, [arrays[run][part] for run, part in of_server]) for node, arrays in contributions]
            for of_server in self._cuts_of([span for span, _ in into])
        ]
        return self.update_parcels(parcels, hosting, hypers, into, label)

    def update_parcels(
        self,
        parcels: Sequence[Sequence[Parcel]],
        hosting: Hosting,
        hypers: Mapping[str, float] | None,
        into: Sequence[tuple[Span, Array]],
        label: bytes = b"",
    ) -> list[Answer]:
        """Do the same with what each server gets, for gradients of which some are row-sparse."""
        cuts = self._cuts_of([span for span, _ in into])
        answers = self._round(RoundKind.UPDATE, hosting.num_replicas, parcels, hypers=hypers, label=label)
        if any(answer.with_rows for answer in answers):
            return answers
        for of_server, (_, arrays) in zip(cuts, answers, strict=True):
            for (run, part), array in zip(of_server, arrays, strict=True):
                _checked_copy(into[run][1][part], array)
        return []

    def _cuts_of(self, spans_of_runs: Sequence[Span]) -> list[list[tuple[int, slice]]]:
        """Return for each server which parts of the runs it owns."""
        runs = tuple(spans_of_runs)
        cuts = self._cuts.get(runs)
        if cuts is None:
            cuts = [_cut(spans, runs, server) for server, spans in enumerate(self.spans)]
            _check_nothing_is_left(self.spans, runs)
            self._cuts[runs] = cuts
        return cuts

    def fetch_state(self) -> list[OwnedState]:
        """Return what each server owns, as of the last round of this worker.

        Shapes: whatever the owner keeps; the arrays are read-only. The rounds of other workers cannot pass this one,
        so all servers answer for the same step.
        """
        for link in self._links:
            link.send(StateRequest(sender=self.rank))
        states = []
        for server, received in enumerate(self._await(range(self.num_servers), "state", State)):
            state, arrays = received
            if state.rounds != self._numbers[server]:
                raise RemoteProtocolError(
                    f"{self._servers[server]} is at round {state.rounds}, worker {self.rank} at {self._numbers[server]}"
                )
            states.append(OwnedState(server, self.spans[server], state.names, arrays, state.extra))
        return states

    # --------------------------------------------------------------------------------------------- collectives

    def exchange(
        self,
        sends: Iterable[Send],  # noqa: ARG002
        receives: Sequence[Receive],  # noqa: ARG002
        what: str,
        label: bytes = b"",  # noqa: ARG002
        *,
        withdraws: bool = False,  # noqa: ARG002
        batch: Batch | None = None,  # noqa: ARG002
    ) -> bool:
        """Raise LocalProtocolError: workers do not talk to each other."""
        raise LocalProtocolError(f"{what}: workers of parameter servers cannot exchange buffers with each other")

    def combine(
        self,
        contributions: Sequence[Contribution],
        hosting: Hosting,
        aggregator: Aggregator,
        like: Sequence[Array],
        label: bytes = b"",
        *,
        withdraws: bool = False,
        what: str = RoundKind.REDUCE.value,
    ) -> list[Array]:
        """See :meth:`Communicator.combine`; server i combines the i-th part of each array."""
        combining.check(contributions, hosting, aggregator, like, self.rank, self.size)
        parts = combining.even_parts(like, self.num_servers)
        parcels = [
            [Parcel(node, [a[part] for a, part in zip(arrays, cut, strict=True)]) for node, arrays in contributions]
            for cut in parts
        ]
        results = [np.empty(len(array), array.dtype) for array in like]
        answers = self._round(
            RoundKind.REDUCE,
            hosting.num_replicas,
            parcels,
            aggregator.name,
            label=label,
            withdraws=withdraws,
            what=what,
        )
        for cut, (_, arrays) in zip(parts, answers, strict=True):
            for result, part, array in zip(results, cut, arrays, strict=True):
                _checked_copy(result[part], array)
        return results

    def gather(
        self, contributions: Sequence[Contribution], hosting: Hosting, like: Sequence[Array], label: bytes = b""
    ) -> combining.Sums:
        """See :meth:`Communicator.gather`; goes through server 0."""
        combining.check_leaves(contributions, hosting, like, self.rank, self.size)
        payload = b"".join(array.tobytes() for _, arrays in sorted(contributions, key=_node_of) for array in arrays)
        parcel = Parcel(Node(self.rank, self.rank + 1), [np.frombuffer(payload, np.uint8)])
        ((_, buffers),) = self._round(RoundKind.GATHER, self.size, [[parcel]], label=label)
        found: combining.Sums = {}
        for rank, (leaves, buffer) in enumerate(zip(hosting.leaves, buffers, strict=True)):
            if buffer.nbytes != len(leaves) * sum(array.nbytes for array in like):
                raise RemoteProtocolError(f"worker {rank} gathered {buffer.nbytes} bytes for {len(leaves)} replicas")
            start = 0
            for leaf in leaves:
                arrays = []
                for array in like:
                    arrays.append(buffer[start : start + array.nbytes].view(array.dtype))
                    start += array.nbytes
                found[leaf] = tuple(arrays)
        return found

    def all_gather_bytes(self, payload: bytes, label: bytes = b"", what: str = RoundKind.GATHER.value) -> list[bytes]:
        """See :meth:`Communicator.all_gather_bytes`; goes through server 0."""
        parcel = Parcel(Node(self.rank, self.rank + 1), [np.frombuffer(payload, np.uint8)])
        ((_, arrays),) = self._round(RoundKind.GATHER, self.size, [[parcel]], label=label, what=what)
        if len(arrays) != self.size:
            raise RemoteProtocolError(f"{self._servers[0]} gathered {len(arrays)} payloads from {self.size} workers")
        return [array.tobytes() for array in arrays]

    def broadcast_bytes(self, payload: bytes | None, root: int = 0) -> bytes:
        """See :meth:`Communicator.broadcast_bytes`."""
        self._check_root(root)
        if self.rank == root and payload is None:
            raise ValueError(f"rank {root} is the root of a broadcast and has nothing to send")
        own = payload if self.rank == root and payload is not None else b""
        return self.all_gather_bytes(own)[root]

    def broadcast_array(self, array: Array, root: int = 0) -> None:
        """See :meth:`Communicator.broadcast_array`."""
        received = self.broadcast_bytes(array.tobytes() if self.rank == root else b"", root)
        if self.rank != root:
            array[...] = np.frombuffer(received, array.dtype).reshape(array.shape)

    def barrier(self) -> None:
        """See :meth:`Communicator.barrier`."""
        self.all_gather_bytes(b"")

    def close(self) -> None:
        """See :meth:`Communicator.close`; the control link stays open."""
        for link in self._links:
            link.close()

    # ------------------------------------------------------------------------------------------------- a round

    def _round(
        self,
        kind: RoundKind,
        width: int,
        parcels: Sequence[Sequence[Parcel]],
        aggregator: str = "",
        hypers: Mapping[str, float] | None = None,
        label: bytes = b"",
        *,
        withdraws: bool = False,
        what: str = "",
    ) -> list[Answer]:
        """Push ``parcels[s]`` to server s; return what each of these servers answers. ``what`` names it in errors.

        Raises: Withdrawn where a worker withdraws, once the round is over.
        """
        withdrawn = False
        started_s = time.perf_counter()
        for server, of_server in enumerate(parcels):
            link = self._links[server]
            head = RoundHead(self._numbers[server], kind, self.step, width, aggregator, label)
            for left, (node, arrays, with_rows) in enumerate(of_server, start=1 - len(of_server)):
                push = Push(
                    head=head,
                    sender=self.rank,
                    node=node,
                    digest=_digest(arrays),
                    hypers=dict(hypers) if hypers is not None and node.start == 0 else None,
                    asks=left == 0,
                    with_rows=with_rows,
                    withdraws=withdraws,
                )
                link.send(push, arrays)
                self.traffic.bytes_sent += sum(array.nbytes for array in arrays)
            if not of_server:
                link.send(Pull(head=head, sender=self.rank, withdraws=withdraws))
        sent_s = time.perf_counter()
        results = []
        for server, (pulled, arrays) in enumerate(self._await(range(len(parcels)), what or kind.value, Pulled)):
            if pulled.number != self._numbers[server]:
                raise RemoteProtocolError(
                    f"{self._servers[server]} answered round {pulled.number}, not {self._numbers[server]}"
                )
            self._numbers[server] += 1
            withdrawn |= pulled.withdrawn
            if server == 0:
                self.stop_requested = self.stop_requested or pulled.stop
            self.traffic.bytes_received += sum(array.nbytes for array in arrays)
            results.append(Answer(pulled.with_rows, arrays))
        self.traffic.send_s += sent_s - started_s
        self.traffic.wait_s += time.perf_counter() - sent_s
        if withdrawn:
            raise Withdrawn
        return results

    def _await(self, servers: Sequence[int], what: str, kind: type[M]) -> list[tuple[M, tuple[Array, ...]]]:
        """Return one message of ``kind`` from each of ``servers``."""
        control = self.control
        answers: dict[int, tuple[M, tuple[Array, ...]]] = {}
        waiting_for = ", ".join(f"server {server}" for server in servers)
        control.set_progress(self.step, what, waiting_for)
        deadline_s = time.monotonic() + self._config.round_timeout_s
        while len(answers) < len(servers):
            control.raise_if_aborted()
            ready = self._poller.poll(_IDLE_MS)
            for socket, _ in ready:
                server = self._server_of.get(socket)
                if server is None:
                    control.drain_wakeup()
                elif (received := self._links[server].receive()) is not None:
                    answers[server] = self._checked(received, kind, server)
            if ready or len(answers) == len(servers):
                continue
            waiting_for = ", ".join(f"server {server}" for server in servers if server not in answers)
            control.set_progress(self.step, what, waiting_for)
            if time.monotonic() > deadline_s:
                raise CollectiveTimeoutError(
                    f"worker {self.rank} waited {self._config.round_timeout_s:.1f} s in step {self.step} "
                    f"for {waiting_for}: {what}"
                )
        control.set_progress(self.step, "compute")
        return [answers[server] for server in servers]

    def _checked(self, received: Received, kind: type[M], server: int) -> tuple[M, tuple[Array, ...]]:
        if not isinstance(received.message, kind):
            raise RemoteProtocolError(
                f"{self._servers[server]} answered with {type(received.message).__name__}, not {kind.__name__}"
            )
        return received.message, received.buffers


def _cut(spans: Sequence[Span], runs: Sequence[Span], server: int) -> list[tuple[int, slice]]:
    """Return for each span of a server the run it lies in, and where in that run's array."""
    parts = []
    for span in spans:
        for index, run in enumerate(runs):
            if run.segment_index == span.segment_index and run.start <= span.start and span.stop <= run.stop:
                parts.append((index, slice(span.start - run.start, span.stop - run.start)))
                break
        else:
            raise VariableListChangedError(
                f"server {server} owns {span}, but the apply call covers {', '.join(map(str, runs)) or 'nothing'}; "
                "with placement 'server' every apply call needs gradients of all variables"
            )
    return parts


def _check_nothing_is_left(spans_of: Sequence[Sequence[Span]], runs: Sequence[Span]) -> None:
    owned = sum(span.stop - span.start for spans in spans_of for span in spans)
    covered = sum(run.stop - run.start for run in runs)
    if owned != covered:
        raise VariableListChangedError(
            f"the apply call covers {covered} elements, of which the servers own {owned}; with placement 'server' all "
            "variables are created before the job begins"
        )


def _node_of(contribution: Contribution) -> Node:
    return contribution.node


def _digest(arrays: Sequence[Array]) -> bytes:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(array.view(np.uint8).data)
    return digest.digest()[:_DIGEST_BYTES]


def _checked_copy(target: Array, source: Array) -> None:
    if target.shape != source.shape or target.dtype != source.dtype:
        raise RemoteProtocolError(
            f"a server answered with {source.dtype}{list(source.shape)} for {target.dtype}{list(target.shape)}"
        )
    target[...] = source
