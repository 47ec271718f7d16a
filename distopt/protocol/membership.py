"""The coordinator's view of a job: who takes part, who lives, when it starts, stops or fails.

Rules of this file: no socket, no clock, no thread. Events come in with ``now_s``; commands go out. What is not in
the two tables below is an error.

::

    GATHERING --all joined--> STARTING --all ready--> RUNNING --all workers finished--> STOPPING --servers left--> DONE
        any of them --lost, failed, mismatched, stalled, out of time--> FAILED

Theory of operation. Everyone joins, in any order, and gets a rank; workers that ask for an index are sorted by it.
From its Join on a process must be heard every ``peer_timeout_s``. Each heartbeat says at which step the process is, in
which phase, and whom it waits for; so when one is lost, the reason can say who was waiting for what. One that built
another job than most is judged when all have joined, or ``settle_s`` after it was seen; it may be the coordinator.
Whatever goes wrong becomes one reason, which goes to all as Abort, and status 1. A second failure changes nothing.
"""

from __future__ import annotations

import enum
import statistics
from collections.abc import Sequence
from typing import Annotated

import msgspec

from distopt.arena import Span
from distopt.canonical_sum import contiguous_ranges
from distopt.errors import LocalProtocolError
from distopt.protocol.commands import Command, Deliver, EndJob, Note, Send, Started
from distopt.protocol.manifest import Diff, Manifest, content_diff, numerics_diff
from distopt.protocol.members import Member, MemberStatus, members_waiting, named
from distopt.protocol.messages import (
    Abort,
    Alive,
    Assignment,
    Error,
    Finished,
    Heartbeat,
    Join,
    Message,
    Peer,
    Ready,
    Release,
    Report,
    Role,
    Start,
    Stop,
    Welcome,
)

Positive = Annotated[int, msgspec.Meta(ge=1)]
Seconds = Annotated[float, msgspec.Meta(gt=0)]


class Phase(enum.StrEnum):
    """Where a job is; see the drawing above."""

    GATHERING = "gathering"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    DONE = "done"
    FAILED = "failed"


_MOVES: dict[Phase, frozenset[Phase]] = {
    Phase.GATHERING: frozenset({Phase.STARTING, Phase.FAILED}),
    Phase.STARTING: frozenset({Phase.RUNNING, Phase.FAILED}),
    Phase.RUNNING: frozenset({Phase.STOPPING, Phase.FAILED}),
    Phase.STOPPING: frozenset({Phase.DONE, Phase.FAILED}),
    Phase.DONE: frozenset(),
    Phase.FAILED: frozenset(),
}
_ALLOWED: dict[Phase, frozenset[type[Message]]] = {
    Phase.GATHERING: frozenset({Join, Heartbeat, Finished}),
    Phase.STARTING: frozenset({Join, Heartbeat, Finished, Ready, Report}),
    Phase.RUNNING: frozenset({Join, Heartbeat, Finished, Report}),
    Phase.STOPPING: frozenset({Join, Heartbeat, Finished, Report}),
    Phase.DONE: frozenset(),
    Phase.FAILED: frozenset(),
}


class MembershipConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a job waits for, and for how long.

    ``join_timeout_s`` bounds GATHERING, and once more STARTING. ``step_timeout_s``: how long nobody may get on.
    ``settle_s``: after the news of an ended process, to hear who waits for it; two heartbeats.
    ``spans[s]``: what server s owns. ``session``: a random word of this job.
    """

    num_replicas: Positive
    num_workers: Positive
    num_servers: Annotated[int, msgspec.Meta(ge=0)] = 1
    spans: tuple[tuple[Span, ...], ...] = ()
    session: str = "job"
    join_timeout_s: Seconds = 60.0
    peer_timeout_s: Seconds = 5.0
    step_timeout_s: Seconds = 120.0
    settle_s: Seconds = 1.2
    require_equal_numerics: bool = True


class Membership:
    """The state machine; every public method returns the commands to carry out, in order.

    ``manifest``: the job as the coordinator built it. ``resumes``: a checkpoint goes out with the assignments.
    """

    def __init__(self, config: MembershipConfig, manifest: Manifest, now_s: float, *, resumes: bool = False) -> None:
        if config.spans and len(config.spans) != config.num_servers:
            raise ValueError(f"spans for {len(config.spans)} servers, but the job has {config.num_servers}")
        self.config = config
        self.phase = Phase.GATHERING
        self.stop_requested = False
        self._manifest = manifest
        self._resumes = resumes
        self._members: dict[bytes, Member] = {}
        self._phase_since_s = now_s
        self._progress_s = now_s
        self._abort: Abort | None = None
        self._told: set[bytes] = set()
        self._mismatch_since_s: float | None = None

    # ------------------------------------------------------------------------------------------------- events

    def receive(self, identity: bytes, message: Message, now_s: float) -> list[Command]:
        """Take in one message of the process that the transport knows as ``identity``."""
        if self._abort is not None:
            self._told.add(identity)
            return [Send(identity, self._abort)]
        member = self._members.get(identity)
        if isinstance(message, Join):
            return self._joined(identity, message, now_s)
        if member is None:
            return [Send(identity, Error(code="RemoteProtocolError", text="you have not joined this job"))]
        member.last_heard_s = now_s
        if type(message) not in _ALLOWED[self.phase]:
            return self._fail(f"{member} sent {type(message).__name__} while the job was {self.phase}", member)
        if isinstance(message, Heartbeat):
            self._beat(member, message, now_s)
            return [Send(identity, Alive())]
        if isinstance(message, Report):
            return [Deliver(member.peer, message)]
        if isinstance(message, Ready):
            member.is_ready = True
            return self._start(now_s) if all(m.is_ready for m in self._members.values()) else []
        assert isinstance(message, Finished)
        return self._finished(member, message, now_s)

    def tick(self, now_s: float) -> list[Command]:
        """Look at the clock; call this several times in ``peer_timeout_s``, after all waiting messages."""
        if self.phase in (Phase.DONE, Phase.FAILED):
            return []
        if ended := [m for m in self._members.values() if m.ended and now_s - m.ended_s >= self.config.settle_s]:
            sentences = [f"{m.ended}, last heard {m.where()}" for m in ended]
            sentences += members_waiting(m for m in self._members.values() if m not in ended)
            return self._fail("; ".join(sentences), ended[0], "PeerLostError")
        if self._mismatch_since_s is not None and now_s - self._mismatch_since_s >= self.config.settle_s:
            return self._fail_if_mismatched()
        if lost := [
            m for m in self._members.values() if m.silent_s(now_s) > self.config.peer_timeout_s and not m.has_left
        ]:
            return self._lost(lost, now_s)
        waited_s = now_s - self._phase_since_s
        if self.phase in (Phase.GATHERING, Phase.STARTING) and waited_s > self.config.join_timeout_s:
            return self._fail(
                f"after {waited_s:.1f} s of {self.phase} the job still waits for {self._absent()}",
                code="CollectiveTimeoutError",
            )
        if self.phase in (Phase.RUNNING, Phase.STOPPING) and now_s - self._progress_s > self.config.step_timeout_s:
            return self._stalled(now_s)
        return []

    def request_stop(self) -> list[Command]:
        """End in order, after the round under way; before everyone has joined, end at once."""
        if self.stop_requested or self.phase in (Phase.DONE, Phase.FAILED):
            return []
        self.stop_requested = True
        if self.phase is Phase.GATHERING:
            return self._fail(f"the job was stopped before it began; it waited for {self._absent()}")
        return [Send(identity, Stop()) for identity in self._members]

    def fail(self, reason: str) -> list[Command]:
        """End the job because the coordinator cannot go on."""
        return self._fail(reason)

    def process_ended(self, pid: int, how: str, now_s: float) -> list[Command]:
        """Take in that a process of the job ended, as its parent saw; ``how`` names it and says what happened.

        The job fails ``settle_s`` later, when heartbeats have told who waits for it; or at once, if the process gave a
        reason of its own, which is then under way, or had not joined.
        """
        member = next((m for m in self._members.values() if m.join.pid == pid), None)
        if member is None:
            return self._fail(f"{how} before it joined", code="PeerLostError")
        if not member.has_left and not member.ended:
            member.ended, member.ended_s = how, now_s
        return []

    @property
    def latecomers(self) -> int:
        """How many processes of a failed job have never been heard, and so do not know."""
        expected = self.config.num_servers + self.config.num_workers
        return max(0, expected - len(self._told)) if self.phase is Phase.FAILED else 0

    def status(self, now_s: float) -> tuple[MemberStatus, ...]:
        """Return what is known of every member, servers first, by rank."""
        ordered = sorted(self._members.values(), key=lambda m: (m.peer.role, m.peer.rank))
        return tuple(member.status(now_s) for member in ordered)

    # -------------------------------------------------------------------------------------------- one for each

    def _joined(self, identity: bytes, join: Join, now_s: float) -> list[Command]:
        earlier = self._members.get(identity)
        if earlier is not None and earlier.join == join:
            earlier.last_heard_s = now_s
            return [Send(identity, Welcome(waiting_for=self._absent()))]
        newcomer = Member(identity, join, order=len(self._members), now_s=now_s)
        if refusal := self._refusal(newcomer, earlier):
            return [Send(identity, Error(code="RemoteProtocolError", text=refusal))]
        self._members[identity] = newcomer
        if self._mismatch_since_s is None and self._content_diff() is not None:
            self._mismatch_since_s = now_s
        welcome = Send(identity, Welcome(waiting_for=self._absent()))
        if len(self._members) < self.config.num_servers + self.config.num_workers:
            return [welcome]
        return [welcome, *self._all_joined(now_s)]

    def _refusal(self, newcomer: Member, earlier: Member | None) -> str:
        role = newcomer.join.role
        present = self._of(role)
        wanted = self.config.num_servers if role is Role.SERVER else self.config.num_workers
        if role is Role.COORDINATOR:
            return f"{newcomer} is a second coordinator"
        if earlier is not None:
            return f"{newcomer} joined a second time, as someone else than {earlier}"
        if self.phase is not Phase.GATHERING:
            return f"{newcomer} comes late: the job is {self.phase} with {named(self._members.values())}"
        if len(present) >= wanted:
            return f"{newcomer} is one too many: the job has its {wanted} {role}s, {named(present)}"
        if newcomer.join.index is not None and any(m.join.index == newcomer.join.index for m in present):
            return f"{newcomer} asks for an index that is taken: {named(present)}"
        return ""

    def _content_diff(self) -> Diff[bytes] | None:
        """Return how the processes that are there, the coordinator (identity ``b""``) among them, differ."""
        manifests = {b"": self._manifest, **{i: member.join.manifest for i, member in self._members.items()}}
        return content_diff(manifests, lambda identity: str(self._members[identity]) if identity else "the coordinator")

    def _fail_if_mismatched(self) -> list[Command]:
        found = self._content_diff()
        if found is None:
            return []
        return self._fail(found.text, self._members.get(found.odd[0]), "ManifestMismatchError")

    def _all_joined(self, now_s: float) -> list[Command]:
        if failed := self._fail_if_mismatched():
            return failed
        commands: list[Command] = []
        manifests = {identity: member.join.manifest for identity, member in self._members.items()}
        if found := numerics_diff(manifests, lambda identity: str(self._members[identity])):
            if self.config.require_equal_numerics:
                return self._fail(found.text, self._members[found.odd[0]], "ManifestMismatchError")
            commands.append(Note(found.text))
        servers, workers = self._ranked(Role.SERVER), self._ranked(Role.WORKER)
        self._move(Phase.STARTING, now_s)
        ranges = contiguous_ranges(self.config.num_replicas, self.config.num_workers)
        for member in (*servers, *workers):
            assignment = Assignment(
                role=member.join.role,
                rank=member.peer.rank,
                session=self.config.session,
                num_replicas=self.config.num_replicas,
                hosting=tuple(map(tuple, ranges)),
                spans=self.config.spans or ((),) * self.config.num_servers,
                servers=tuple(m.peer for m in servers),
                workers=tuple(m.peer for m in workers),
                resumes=self._resumes,
            )
            commands.append(Send(member.identity, assignment))
        return commands

    def _start(self, now_s: float) -> list[Command]:
        self._move(Phase.RUNNING, now_s)
        peers = [m.peer for role in (Role.SERVER, Role.WORKER) for m in self._of(role)]
        return [Started(tuple(peers)), *(Send(identity, Start()) for identity in self._members)]

    def _beat(self, member: Member, beat: Heartbeat, now_s: float) -> None:
        if (beat.step, beat.phase) != (member.step, member.phase):
            self._progress_s = member.progress_s = now_s
        member.step, member.phase, member.waiting_for = beat.step, beat.phase, beat.waiting_for

    def _finished(self, member: Member, message: Finished, now_s: float) -> list[Command]:
        if message.status != 0:
            return self._fail(f"{member} failed {member.where()}: {message.reason}", member)
        if self.phase in (Phase.GATHERING, Phase.STARTING) or (
            member.join.role is Role.SERVER and self.phase is not Phase.STOPPING
        ):
            return self._fail(f"{member} left while the job was {self.phase}", member)
        member.has_finished = True
        self._progress_s = now_s
        commands: list[Command] = []
        if self.phase is Phase.RUNNING and all(m.has_finished for m in self._of(Role.WORKER)):
            self._move(Phase.STOPPING, now_s)
            for worker in self._of(Role.WORKER):
                worker.has_left = True
            commands += [Send(identity, Release()) for identity in self._members]
        if self.phase is Phase.STOPPING:
            member.has_left = True
            if all(m.has_left for m in self._members.values()):
                self._move(Phase.DONE, now_s)
                commands.append(EndJob(0, "stopped on request" if self.stop_requested else "finished"))
        return commands

    # ------------------------------------------------------------------------------------------------ failures

    def _lost(self, lost: Sequence[Member], now_s: float) -> list[Command]:
        sentences = [f"{m} was lost: silent for {m.silent_s(now_s):.1f} s, last heard {m.where()}" for m in lost]
        sentences += members_waiting(m for m in self._members.values() if m not in lost)
        return self._fail("; ".join(sentences), lost[0], "PeerLostError")

    def _stalled(self, now_s: float) -> list[Command]:
        running = [m for m in self._members.values() if not m.has_finished]
        slowest = min(running, key=lambda m: (bool(m.waiting_for), m.step))
        sentences = [f"no progress for {now_s - self._progress_s:.1f} s; the slowest is {slowest} {slowest.where()}"]
        if others := [m.progress_s for m in running if m is not slowest]:
            sentences[0] += f", {now_s - statistics.median(others):.1f} s later than the median of the others"
        sentences += members_waiting(running)
        return self._fail("; ".join(sentences), slowest, "CollectiveTimeoutError")

    def _fail(self, reason: str, culprit: Member | None = None, code: str = "JobAbortedError") -> list[Command]:
        if self.phase in (Phase.DONE, Phase.FAILED):
            return []
        self._move(Phase.FAILED, self._phase_since_s)
        self._told.update(self._members)
        self._abort = Abort(reason=reason[:65536], culprit=str(culprit or ""), code=code)
        return [*(Send(identity, self._abort) for identity in self._members), EndJob(1, reason, code)]

    # ------------------------------------------------------------------------------------------------- helpers

    def _move(self, phase: Phase, now_s: float) -> None:
        if phase not in _MOVES[self.phase]:
            raise LocalProtocolError(f"a job cannot go from {self.phase} to {phase}")
        self.phase = phase
        self._phase_since_s = self._progress_s = now_s

    def _of(self, role: Role) -> list[Member]:
        return [member for member in self._members.values() if member.join.role is role]

    def _ranked(self, role: Role) -> list[Member]:
        members = sorted(self._of(role), key=lambda m: (m.join.index is None, m.join.index or 0, m.order))
        for rank, member in enumerate(members):
            member.peer = Peer(role, rank, member.join.pid, member.join.host, member.join.endpoint)
            member.is_ranked = True
        return members

    def _absent(self) -> str:
        """Return who has not joined, or is not ready."""
        if self.phase is not Phase.GATHERING:
            return named(m for m in self._members.values() if not m.is_ready)
        absent = []
        for role, wanted in ((Role.SERVER, self.config.num_servers), (Role.WORKER, self.config.num_workers)):
            present = self._of(role)
            if len(present) < wanted:
                here = f" (joined: {named(present)})" if present else ""
                absent.append(f"{wanted - len(present)} of {wanted} {role}s{here}")
        return " and ".join(absent) or "nobody"
