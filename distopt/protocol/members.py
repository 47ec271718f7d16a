"""One process as the coordinator knows it, and how it is named in reasons."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from distopt.protocol.messages import Join, Peer


class MemberStatus(NamedTuple):
    """What is known of a process, for a display."""

    peer: Peer
    step: int
    phase: str
    waiting_for: str
    silent_s: float
    has_finished: bool


class Member:
    """A process that has joined."""

    def __init__(self, identity: bytes, join: Join, order: int, now_s: float) -> None:
        self.identity = identity
        self.join = join
        self.order = order
        self.peer = Peer(join.role, 0, join.pid, join.host, join.endpoint)
        self.last_heard_s = now_s
        self.progress_s = now_s
        """When the process was first heard at its step and in its phase."""
        self.step = 0
        self.phase = "joining"
        self.waiting_for = ""
        self.is_ranked = False
        self.is_ready = False
        self.has_finished = False
        self.has_left = False
        self.ended = ""
        """How the process ended, if its parent saw that; ``ended_s``: when."""
        self.ended_s = 0.0

    def __str__(self) -> str:
        if self.is_ranked:
            return str(self.peer)
        index = "" if self.join.index is None else f" of index {self.join.index}"
        return f"a {self.join.role}{index} (pid {self.join.pid} on {self.join.host})"

    def where(self) -> str:
        """Return at which step the process was when it was last heard, and in which phase."""
        return f"at step {self.step} in phase {self.phase!r}"

    def silent_s(self, now_s: float) -> float:
        """Return for how long nothing came."""
        return now_s - self.last_heard_s

    def status(self, now_s: float) -> MemberStatus:
        """Return a snapshot."""
        return MemberStatus(self.peer, self.step, self.phase, self.waiting_for, self.silent_s(now_s), self.has_finished)


def named(members: Iterable[Member]) -> str:
    """Return a list of names for a sentence."""
    return ", ".join(map(str, members)) or "nobody"


def members_waiting(members: Iterable[Member]) -> list[str]:
    """Return a sentence for each member that waits: who, at which step, for whom."""
    return [f"{m} at step {m.step} was waiting for {m.waiting_for}" for m in members if m.waiting_for]
