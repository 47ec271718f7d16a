"""What the coordinator's state machine asks its shell to do."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from distopt.protocol.messages import Message, Peer, Report


class Send(NamedTuple):
    """Send ``message``; an Assignment that resumes goes with the checkpoint's bytes."""

    identity: bytes
    message: Message


class Started(NamedTuple):
    """Everyone is ready; step 0 begins."""

    peers: tuple[Peer, ...]


class Deliver(NamedTuple):
    """Hand a report, with the buffers it came with, to the run's record."""

    sender: Peer
    report: Report


class Note(NamedTuple):
    """Tell the user something that does not end the job."""

    text: str


class EndJob(NamedTuple):
    """The job is over; ``code`` names the error class where ``status`` is not 0."""

    status: int
    reason: str
    code: str = ""


Command: TypeAlias = Send | Started | Deliver | Note | EndJob
