"""A parameter server's loop: rounds of contributions in, updated variables out.

Theory of operation. A round is opened by its first message and is complete when all contributions are in and all
workers have asked (:mod:`distopt.protocol.rounds`); then its result is computed, and goes to all workers at once. So
there is at most one round, nothing is kept after it, and memory that was sent may be reused by the next. A gradient
clip by norm needs the sums of squares of all servers' spans: those travel from server to server in between.

What a worker sends against the rules is answered with an Error, which ends that worker and through it the job. Two
workers that computed different bytes for the same replicas end it here, with both named.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import zmq

from distopt.aggregation import Aggregator, Mean, Sum
from distopt.canonical_sum import Node
from distopt.comm import combining
from distopt.comm.communicator import Hosting
from distopt.comm.zmq.control import ControlLink
from distopt.comm.zmq.link import Link, Listener, data_identity
from distopt.distribute.served_rows import Contributed
from distopt.errors import (
    CollectiveTimeoutError,
    MistakeError,
    NondeterministicReplicaError,
    PeerLostError,
    RemoteProtocolError,
    StaleGradientError,
)
from distopt.protocol.messages import (
    Assignment,
    NormPartials,
    Pull,
    Pulled,
    Push,
    Role,
    RoundHead,
    RoundKind,
    State,
    StateRequest,
)
from distopt.protocol.rounds import Round
from distopt.protocol.wire import Received
from distopt.runtime.served_owners import Owner, ReplicaOwner, SpanOwner
from distopt.types import Array

_IDLE_MS = 250
"""After so long without a message the heartbeats say whom the server waits for."""


class _Update(NamedTuple):
    """An update that waits for the other servers' sums of squares; ``finish`` makes it, and returns what goes back."""

    round: Round
    finish: Callable[[Array], Contributed]


class ServerLoop:
    """Serve the workers of ``assignment`` until they have all finished.

    ``aggregators``: those that a collective may name, beside ``sum`` and ``mean``.
    """

    def __init__(
        self,
        control: ControlLink,
        listener: Listener,
        assignment: Assignment,
        owner: Owner,
        aggregators: Iterable[Aggregator] = (),
    ) -> None:
        self.rank = assignment.rank
        self._control = control
        self._listener = listener
        self._owner: SpanOwner | None = None
        self._replica_owner: ReplicaOwner | None = None
        if isinstance(owner, ReplicaOwner):
            self._replica_owner = owner
            self._takes_leaves = True
        else:
            self._owner = owner
            self._takes_leaves = not owner.aggregator.sums or owner.code_bytes is not None
        self._variables = owner.variables
        self._check_rows = owner.check_rows
        self._state = owner.state
        self._aggregators = {a.name: a for a in (Sum(), Mean(), *aggregators)}
        self._replicas = Hosting(assignment.num_replicas, assignment.hosting)
        self._ranks = Hosting.contiguous(len(assignment.workers), len(assignment.workers))
        self._workers = {
            data_identity(assignment.session, Role.WORKER, peer.rank): peer.rank for peer in assignment.workers
        }
        self._servers = {
            data_identity(assignment.session, Role.SERVER, peer.rank): peer.rank for peer in assignment.servers
        }
        self._owning = [rank for rank, spans in enumerate(assignment.spans) if spans]
        self._own_identity = data_identity(assignment.session, Role.SERVER, self.rank)
        self._other_endpoints = [peer.endpoint for peer in assignment.servers if peer.rank != self.rank]
        self._others: list[Link] = []
        self._takes: list[tuple[Any, np.dtype[Any]]]
        self._takes = [(array.shape, array.dtype) for array in owner.variables()]
        if self._owner is not None and self._owner.code_bytes is not None:
            self._takes = [((self._owner.code_bytes,), np.dtype(np.uint8))]
        self._number = 0
        self._updates = 0
        self._round: Round | None = None
        self._round_since_s = 0.0
        self._waiting_update: _Update | None = None
        self._partials: dict[int, dict[int, Array]] = {}
        self._scratch: dict[tuple[tuple[int, np.dtype[np.generic]], ...], list[Array]] = {}

    def run(self) -> None:
        """Serve; return when all workers have finished.

        Raises: what ended the job. An error of this server or its owner is reported to all first.
        """
        poller = zmq.Poller()
        poller.register(self._listener.socket, zmq.POLLIN)
        poller.register(self._control.wakeup, zmq.POLLIN)
        self._control.set_progress(0, "serving")
        try:
            for endpoint in self._other_endpoints:
                self._others.append(Link(endpoint, self._control.config, self._own_identity))
            while not self._control.released:
                self._control.raise_if_aborted()
                ready = poller.poll(_IDLE_MS)
                if any(socket is self._control.wakeup for socket, _ in ready):
                    self._control.drain_wakeup()
                while (incoming := self._listener.receive()) is not None:
                    self._take_in(incoming.identity, incoming.frames)
                if not ready:
                    self._idle()
            self._control.finish()
        except BaseException as error:
            self._control.fail(f"{type(error).__name__}: {error}")
            raise
        finally:
            for link in self._others:
                link.close()

    # ------------------------------------------------------------------------------------------- messages come

    def _take_in(self, identity: bytes, frames: Sequence[bytes | memoryview]) -> None:
        try:
            self._dispatch(identity, self._listener.decode(frames))
        except NondeterministicReplicaError:
            raise
        except (RemoteProtocolError, MistakeError) as error:
            self._listener.refuse(identity, error)

    def _dispatch(self, identity: bytes, received: Received) -> None:
        message, buffers = received
        sender = self._servers.get(identity) if isinstance(message, NormPartials) else self._workers.get(identity)
        if sender is None:
            raise RemoteProtocolError(f"{identity!r} has no part in this job")
        if not isinstance(message, Push | Pull | NormPartials | StateRequest):
            raise RemoteProtocolError(f"a server has no use for {type(message).__name__}")
        if message.sender != sender:
            raise RemoteProtocolError(f"{identity!r} speaks as {message.sender}")
        if isinstance(message, NormPartials):
            self._take_partials(message, buffers)
        elif isinstance(message, StateRequest):
            self._send_state(identity)
        else:
            round_ = self._round_of(message.head, sender)
            round_.check_head(message.head, sender)
            if isinstance(message, Push):
                self._check_push(round_, message, buffers)
                round_.receive(message, buffers)
            else:
                round_.ask(message)
            if round_.is_complete:
                self._complete(round_)

    def _round_of(self, head: RoundHead, sender: int) -> Round:
        if self._round is not None:
            return self._round
        if head.number < self._number:
            raise StaleGradientError(f"worker {sender} is late with {head}; the server awaits round {self._number}")
        if head.number > self._number:
            raise RemoteProtocolError(f"worker {sender} is at {head}; the server awaits round {self._number}")
        hosting = self._hosting_of(head)
        self._round = Round(head, hosting.hosted, hosting.tree)
        self._round_since_s = time.monotonic()
        self._control.set_progress(head.step, str(head.kind))
        return self._round

    def _hosting_of(self, head: RoundHead) -> Hosting:
        """Return whose leaves a round is over: replicas, or ranks."""
        if head.kind is RoundKind.GATHER or head.width != self._replicas.num_replicas:
            return self._ranks
        return self._replicas

    def _check_push(self, round_: Round, push: Push, buffers: Sequence[Array]) -> None:
        """Refuse what could not be combined, before it is accepted."""
        head = round_.head
        kinds: list[tuple[Any, np.dtype[Any]]] = [(array.shape, array.dtype) for array in buffers]
        expected: list[tuple[Any, np.dtype[Any]]]
        if head.kind is RoundKind.GATHER:
            expected = [((buffers[0].size if buffers else 0,), np.dtype(np.uint8))]
            needs_leaf = True
        elif head.kind is RoundKind.UPDATE:
            expected = kinds if push.with_rows else self._takes
            needs_leaf = self._takes_leaves
        else:
            aggregator = self._aggregators.get(head.aggregator)
            if aggregator is None:
                raise RemoteProtocolError(
                    f"worker {push.sender} asks for the aggregator {head.aggregator!r}; there are "
                    f"{', '.join(self._aggregators)}"
                )
            first = next(iter(round_.contributions.values()), buffers)
            expected = [((array.size,), array.dtype) for array in first]
            needs_leaf = not aggregator.sums
        if kinds != expected:
            raise RemoteProtocolError(
                f"worker {push.sender} pushed {_listed(kinds)} to {head}, which takes {_listed(expected)}"
            )
        if needs_leaf and push.node.stop - push.node.start != 1:
            raise RemoteProtocolError(
                f"worker {push.sender} pushed the sum of {push.node} to {head}, which takes them one by one"
            )
        if push.with_rows:
            if head.kind is not RoundKind.UPDATE:
                raise RemoteProtocolError(f"worker {push.sender} pushed rows to {head}, which takes none")
            self._check_rows(push.node, Contributed(push.with_rows, tuple(buffers)))

    # ----------------------------------------------------------------------------------------- results go back

    def _complete(self, round_: Round) -> None:
        kind = round_.head.kind
        if kind is RoundKind.UPDATE:
            self._update(round_)
        elif kind is RoundKind.GATHER:
            self._answer(round_, [round_.contributions[Node(r, r + 1)][0] for r in range(round_.head.width)])
        else:
            aggregator = self._aggregators[round_.head.aggregator]
            self._answer(round_, self._combined(round_, round_.contributions, aggregator))

    def _combined(
        self, round_: Round, contributions: Mapping[Node, tuple[Array, ...]], aggregator: Aggregator
    ) -> list[Array]:
        like = next(iter(contributions.values()))
        key = tuple((len(array), array.dtype) for array in like)
        out = self._scratch.get(key)
        if out is None:
            out = [np.empty(len(array), array.dtype) for array in like]
            # One set at a time: jobs repeat the same round, and large arrays should not pile up.
            self._scratch = {key: out}
        return combining.aggregate(contributions, self._hosting_of(round_.head), aggregator, like, out)

    def _update(self, round_: Round) -> None:
        contributed = {
            node: Contributed(round_.with_rows.get(node, ()), arrays)
            for node, arrays in sorted(round_.contributions.items())
        }
        if self._replica_owner is not None:
            gradients = {node.start: of_replica for node, of_replica in contributed.items()}
            self._replica_owner.apply_replicas(round_.head.step, gradients, round_.hypers)
            self._updated(round_, Contributed((), tuple(self._variables())))
            return
        assert self._owner is not None
        if round_.with_rows:
            update = self._owner.begin_rows(round_.tree, contributed, round_.hypers)
            partials = update.partials
            self._waiting_update = _Update(round_, update.finish)
        else:
            partials, finish = self._begin_dense(self._owner, round_)
            self._waiting_update = _Update(round_, finish)
        if partials is None:
            # Either no norms are needed, or this server owns nothing: nobody waits for it.
            self._apply(np.empty(0))
            return
        message = NormPartials(number=self._updates, step=round_.head.step, sender=self.rank)
        self._partials.setdefault(self._updates, {})[self.rank] = partials
        for link in self._others:
            link.send(message, [partials])
        self._apply_if_all_partials()

    def _take_partials(self, message: NormPartials, buffers: Sequence[Array]) -> None:
        if message.number < self._updates:
            raise StaleGradientError(f"server {message.sender} is late with the norms of update {message.number}")
        if len(buffers) != 1 or message.number > self._updates + 1:
            raise RemoteProtocolError(f"server {message.sender} sent norms of update {message.number}")
        if self.rank in self._owning:
            self._partials.setdefault(message.number, {})[message.sender] = buffers[0]
            self._apply_if_all_partials()

    def _apply_if_all_partials(self) -> None:
        present = self._partials.get(self._updates, {})
        if self._waiting_update is not None and all(rank in present for rank in self._owning):
            self._apply(np.concatenate([present[rank] for rank in self._owning]))

    def _apply(self, all_partials: Array) -> None:
        assert self._waiting_update is not None
        assert self._owner is not None
        (round_, finish), self._waiting_update = self._waiting_update, None
        answer = finish(all_partials)
        self._partials.pop(self._updates, None)
        self._updated(round_, answer)

    def _begin_dense(self, owner: SpanOwner, round_: Round) -> tuple[Array | None, Callable[[Array], Contributed]]:
        """Begin an update without rows; return the sums of squares for the other servers, if any, and how to end it."""
        contributions: Mapping[Node, tuple[Array, ...]] = round_.contributions
        if owner.code_bytes is not None:
            contributions = {leaf: owner.decode(code) for leaf, (code,) in contributions.items()}
        flat_spans = self._combined(round_, contributions, owner.aggregator)
        partials = owner.partials(flat_spans, round_.hypers)

        def finish(all_partials: Array) -> Contributed:
            owner.apply(round_.head.step, flat_spans, round_.hypers, all_partials)
            return Contributed((), tuple(owner.variables()))

        return partials, finish

    def _updated(self, round_: Round, answer: Contributed) -> None:
        self._updates += 1
        self._answer(round_, answer.buffers, answer.with_rows)

    def _answer(self, round_: Round, arrays: Sequence[Array], with_rows: tuple[int, ...] = ()) -> None:
        """Send the result to all workers. Server 0 decides here whether to stop, so for all of them alike."""
        stop = self.rank == 0 and self._control.stop_requested
        pulled = Pulled(number=round_.head.number, stop=stop, with_rows=with_rows, withdrawn=round_.is_withdrawn)
        self._number += 1
        self._round = None
        self._control.set_progress(round_.head.step, "serving")
        for identity, rank in self._workers.items():
            try:
                self._listener.send(identity, pulled, arrays)
            except PeerLostError as error:
                raise PeerLostError(f"worker {rank} is gone, which waited for {round_.head}") from error

    def _send_state(self, identity: bytes) -> None:
        state = self._state()
        answer = State(sender=self.rank, rounds=self._number, names=state.names, extra=state.extra)
        self._listener.send(identity, answer, state.arrays)

    # ------------------------------------------------------------------------------------------------- waiting

    def _idle(self) -> None:
        round_ = self._round
        if round_ is None:
            return
        missing = round_.missing() or self._missing_partials()
        self._control.set_progress(round_.head.step, str(round_.head.kind), missing)
        waited_s = time.monotonic() - self._round_since_s
        if waited_s > self._control.config.round_timeout_s:
            raise CollectiveTimeoutError(
                f"server {self.rank} waited {waited_s:.1f} s in step {round_.head.step} for {missing}: "
                f"{round_.head.kind}"
            )

    def _missing_partials(self) -> str:
        present = self._partials.get(self._updates, {})
        return ", ".join(f"norms of server {rank}" for rank in self._owning if rank not in present)


def _listed(kinds: Sequence[tuple[tuple[int, ...], np.dtype[np.generic]]]) -> str:
    return ", ".join(f"{dtype}{list(shape)}" for shape, dtype in kinds) or "nothing"
