"""What the processes of a parameter-server job say to each other.

Frozen structs, nouns, each with a number of its own on the wire (``tag``). Arrays never stand in a struct: they
travel as raw buffers behind it, in the order that the struct's docstring gives.

::

    control link (everyone to and from the coordinator)          data link (worker to server, server to server)
      Join ->                 <- Welcome                           Push ->
      Heartbeat ->            <- Alive                             Pull ->            <- Pulled
                              <- Assignment                        StateRequest ->    <- State
      Ready ->                <- Start                             NormPartials <->
      Report ->               <- Stop
      Finished ->             <- Release
                              <- Abort                             (any)              <- Error
"""

from __future__ import annotations

import enum
from typing import Annotated, TypeAlias

import msgspec

from distopt.agreement import LABEL_BYTES
from distopt.arena import Span
from distopt.canonical_sum import Node
from distopt.protocol.manifest import Manifest

Text: TypeAlias = Annotated[str, msgspec.Meta(max_length=65536)]
Name: TypeAlias = Annotated[str, msgspec.Meta(max_length=1024)]
Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
Index: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Digest: TypeAlias = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]


class Role(enum.StrEnum):
    """What a process of the job is for."""

    COORDINATOR = "coordinator"
    SERVER = "server"
    WORKER = "worker"


class RoundKind(enum.StrEnum):
    """What a round does with its contributions."""

    UPDATE = "update"
    """Combine them and update the variables that the servers own; the variables come back."""
    REDUCE = "reduce"
    """Combine them; the result comes back."""
    GATHER = "gather"
    """Keep them apart; all of them come back, in rank order."""


class Message(msgspec.Struct, frozen=True, array_like=True, kw_only=True, forbid_unknown_fields=True):
    """Base of everything that travels."""


# ------------------------------------------------------------------------------------------------ control link


class Join(Message, frozen=True, tag=1):
    """A process wants to take part; ``endpoint`` is where a server's data link listens, empty for a worker.

    ``incarnation`` is a number that no other start of this process has. ``index`` asks for a rank.
    """

    role: Role
    pid: Count
    host: Name
    incarnation: Count
    manifest: Manifest
    endpoint: Name = ""
    index: Index | None = None


class Welcome(Message, frozen=True, tag=2):
    """The coordinator knows the process and waits for ``waiting_for``."""

    waiting_for: Text


class Peer(msgspec.Struct, frozen=True, array_like=True):
    """One server or worker as the others know it."""

    role: Role
    rank: Index
    pid: Count
    host: Name
    endpoint: Name = ""

    def __str__(self) -> str:
        return f"{self.role} {self.rank} (pid {self.pid} on {self.host})"


class Assignment(Message, frozen=True, tag=3):
    """Who is who and who does what; the same for all but ``rank``.

    ``hosting[w]``: the replicas of worker w. ``spans[s]``: what server s owns. ``session``: a random word that
    keeps processes of other jobs out. Buffer, where ``resumes``: the checkpoint's bytes.
    """

    role: Role
    rank: Index
    session: Name
    num_replicas: Count
    hosting: tuple[tuple[Index, ...], ...]
    spans: tuple[tuple[Span, ...], ...]
    servers: tuple[Peer, ...]
    workers: tuple[Peer, ...]
    resumes: bool = False


class Ready(Message, frozen=True, tag=4):
    """The process has built and restored what its assignment asks for."""


class Start(Message, frozen=True, tag=5):
    """Everyone is ready: step 0 may begin."""


class Heartbeat(Message, frozen=True, tag=6):
    """The process lives; what it does at which step, and whom it waits for (empty: nobody)."""

    step: Count
    phase: Name
    waiting_for: Text = ""


class Alive(Message, frozen=True, tag=7):
    """The coordinator's answer to each heartbeat."""


class Stop(Message, frozen=True, tag=8):
    """End after the round under way, in order."""


class Abort(Message, frozen=True, tag=9):
    """End now; ``reason`` names who, at which step, and who was waiting for what; ``code``: the error's class."""

    reason: Text
    culprit: Name = ""
    code: Name = "JobAbortedError"


class Finished(Message, frozen=True, tag=10):
    """The process has done its part (status 0), or failed by itself and says why."""

    status: Annotated[int, msgspec.Meta(ge=0, le=255)]
    reason: Text = ""


class Release(Message, frozen=True, tag=11):
    """All workers have finished: nobody needs the process any more."""


class Report(Message, frozen=True, tag=12):
    """Something for the run's record, such as an epoch's metrics or a checkpoint, with any buffers."""

    kind: Name
    body: bytes = b""


class Error(Message, frozen=True, tag=13):
    """A message was refused. ``code`` is the name of an error class; see :mod:`distopt.errors`."""

    code: Name
    text: Text


# --------------------------------------------------------------------------------------------------- data link


class RoundHead(msgspec.Struct, frozen=True, array_like=True):
    """What all messages of one round agree on. ``number`` counts the rounds of one server from 0.

    ``width``: how many leaves the sum tree has: replicas, or ranks. ``label``: what the sender takes the round to be
    of, a :class:`~distopt.agreement.Label`.
    """

    number: Count
    kind: RoundKind
    step: Count
    width: Annotated[int, msgspec.Meta(ge=1, le=2**20)]
    aggregator: Name = ""
    label: Annotated[bytes, msgspec.Meta(max_length=LABEL_BYTES)] = b""

    def __str__(self) -> str:
        return f"{self.kind} round {self.number} of step {self.step}"


class Push(Message, frozen=True, tag=20):
    """The contribution of one node of the sum tree, from the worker of rank ``sender``.

    Buffers: one for each of the receiving server's spans (UPDATE), one for each array (REDUCE), one (GATHER).
    ``with_rows``: the variables, by position, of which an UPDATE holds rows of a row-sparse gradient; if there are any,
    the buffers are indices, numbers of rows a replica, and rows of these, and flat parts of the others, by variable.
    ``digest``: of their bytes. ``hypers``: of this step, given by the host of replica 0. ``asks``: this is all that
    the worker hosts, and it wants the result. ``withdraws``: what a REDUCE then returns is not to be used.
    """

    head: RoundHead
    sender: Index
    node: Node
    digest: Digest
    hypers: dict[Name, float] | None = None
    asks: bool = False
    with_rows: tuple[Index, ...] = ()
    withdraws: bool = False


class Pull(Message, frozen=True, tag=21):
    """The worker of rank ``sender`` wants the round's result and has nothing to push, or nothing more."""

    head: RoundHead
    sender: Index
    withdraws: bool = False


class Pulled(Message, frozen=True, tag=22):
    """A round's result; ``stop``: every worker ends after this round. Buffers: as in :class:`Push`, or one a rank.

    ``with_rows``: the variables of which it holds the rows that were updated: their indices, and the rows.
    ``withdrawn``: a worker has withdrawn, so all do as if the round had not been.
    """

    number: Count
    stop: bool = False
    with_rows: tuple[Index, ...] = ()
    withdrawn: bool = False


class NormPartials(Message, frozen=True, tag=23):
    """Server ``sender``'s sums of squares for the round ``number``; one buffer."""

    number: Count
    step: Count
    sender: Index


class StateRequest(Message, frozen=True, tag=24):
    """A worker asks for what a server owns, between two rounds."""

    sender: Index


class State(Message, frozen=True, tag=25):
    """What server ``sender`` owns after ``rounds`` rounds: buffers named by ``names``; ``extra``: the owner's own."""

    sender: Index
    rounds: Count
    names: tuple[Name, ...]
    extra: bytes = b""


MESSAGE_TYPES: tuple[type[Message], ...] = (
    Join, Welcome, Assignment, Ready, Start, Heartbeat, Alive, Stop, Abort, Finished, Release, Report, Error,
    Push, Pull, Pulled, NormPartials, StateRequest, State,
)  # fmt: skip
