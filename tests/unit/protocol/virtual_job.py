"""A job in virtual time: the coordinator's state machine, and what its commands say."""

from __future__ import annotations

from distopt.protocol.commands import Command, EndJob, Send
from distopt.protocol.manifest import Manifest, VariableSpec
from distopt.protocol.membership import Membership, MembershipConfig, Phase
from distopt.protocol.messages import (
    Abort,
    Heartbeat,
    Join,
    Message,
    Ready,
    Role,
)

CONFIG = MembershipConfig(
    num_replicas=8, num_workers=2, num_servers=1, join_timeout_s=60, peer_timeout_s=5, step_timeout_s=100
)
MANIFEST = Manifest(job="seed = 1", variables=(VariableSpec("w:0", (2,), "float32"),), numerics={"blas": "a"})
SERVER, FIRST, SECOND = b"s", b"w0", b"w1"
EVERYONE = (SERVER, FIRST, SECOND)


def join(role: Role, *, pid: int = 7, index: int | None = None, manifest: Manifest = MANIFEST) -> Join:
    return Join(role=role, pid=pid, host="h", incarnation=pid, manifest=manifest, endpoint="tcp://e", index=index)


class Job:
    """A machine, its clock, and what it commanded last."""

    def __init__(self, config: MembershipConfig = CONFIG, *, resumes: bool = False) -> None:
        self.now_s = 1000.0
        self.machine = Membership(config, MANIFEST, self.now_s, resumes=resumes)

    def hear(self, identity: bytes, message: Message) -> list[Command]:
        return self.machine.receive(identity, message, self.now_s)

    def gathered(self) -> Job:
        self.hear(SERVER, join(Role.SERVER, pid=1))
        self.hear(FIRST, join(Role.WORKER, pid=2))
        self.assignments = sent(self.hear(SECOND, join(Role.WORKER, pid=3)))
        return self

    def running(self) -> Job:
        self.gathered()
        for identity in EVERYONE:
            self.hear(identity, Ready())
        assert self.machine.phase is Phase.RUNNING
        return self

    def after(self, seconds: float, *alive: bytes) -> list[Command]:
        """Let time pass; those ``alive`` are heard just before the end."""
        self.now_s += seconds
        for identity in alive:
            member = next(s for i, s in zip(EVERYONE, self.machine._members.values(), strict=False) if i == identity)
            self.hear(identity, Heartbeat(step=member.step, phase=member.phase, waiting_for=member.waiting_for))
        return self.machine.tick(self.now_s)


def sent(commands: list[Command]) -> dict[bytes, Message]:
    return {command.identity: command.message for command in commands if isinstance(command, Send)}


def ending(commands: list[Command]) -> EndJob:
    """Return how the job ended; everyone who joined must have been told the same."""
    (end,) = [command for command in commands if isinstance(command, EndJob)]
    for message in sent(commands).values():
        assert isinstance(message, Abort)
        assert (message.reason, message.code) == (end.reason, end.code)
    return end
