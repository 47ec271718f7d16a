"""What a transport must offer, and the collectives that follow from it.

A transport implements :meth:`Communicator.exchange` alone: a set of point-to-point buffers, all under way at once,
finished or failed by a deadline. Every collective is written once, on top of it, so the bits cannot depend on the
transport.

How :meth:`Communicator.combine` goes, for one array and three ranks that host replicas 0-1, 2-3 and 4 of five::

    rank 0 has S(0,2)   rank 1 has S(2,4)   rank 2 has S(4,5)
    collect   each rank sends part i of its sums to rank i
    add       rank i adds part i along the tree, S(0,2) + S(2,4), then + S(4,5), and finishes it
    spread    each rank sends its finished part to all

What is small is collected whole by every rank: each adds everything up, alike, and one of the two exchanges is saved.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from distopt.aggregation import Aggregator, Sum
from distopt.canonical_sum import Node
from distopt.comm import combining
from distopt.comm.hosting import Contribution, Hosting
from distopt.comm.transfers import Receive, Send, Traffic, Wait, bytes_of, name_ranks, others_of
from distopt.errors import LocalProtocolError
from distopt.types import Array, ReduceOp

if TYPE_CHECKING:
    from distopt.comm.early import Batch, Channel
    from distopt.comm.shared_memory.host_group import HostGroup

__all__ = [
    "Communicator",
    "Contribution",
    "Hosting",
    "Receive",
    "Send",
    "Traffic",
    "Wait",
    "Withdrawn",
    "bytes_of",
    "name_ranks",
]

_LENGTH_BYTES: Final = 8
_INLINE_BYTES: Final = 504
"""Payloads of up to this length travel with their length, in one exchange."""

_NOTHING: Final = np.empty(0, np.uint8)


class Withdrawn(Exception):
    """Raised by :meth:`Communicator.combine` on every rank where one rank withdrew: nothing was combined."""


class Communicator(abc.ABC):
    """``size`` ranks that call the same collectives in the same order.

    Every call may raise PeerLostError, CollectiveTimeoutError or JobAbortedError; after one of them the communicator
    cannot be used any more. ``step`` and ``phase`` are only read, for messages.
    """

    rank: int
    size: int
    traffic: Traffic
    step: int = 0
    step_is_told: bool = False
    """Whether the program sets ``step``; else it is how many steps the optimizer that is applied had made."""
    phase: str = ""
    """What the program does between its collectives, if it says so: in which phase a rank is late."""

    timeout_s: float = 60.0
    """How long a wait for other ranks lasts at most."""

    num_exchanges: int = 0
    """How many it has begun. All ranks make the same ones, so equal numbers are of one and the same."""

    num_meetings: int = 0
    """How many exchanges the ranks of this host have begun beside it, likewise."""

    has_failed: bool = False
    """Whether a wait ended with an error, so that nothing more can be exchanged."""

    shares_memory: bool = False
    """Whether ranks of one host reduce gradients in memory that they share; else they send each other messages."""

    survives_losses: bool = False
    """Whether the ranks that are left when one is lost can go on, as :meth:`survivors`."""

    _host_group: HostGroup | None = None

    exchange_cost_bytes: int = 1 << 16
    """How many more bytes each rank may receive if that saves an exchange; the same on all ranks."""

    meeting_cost_bytes: int = 1 << 20
    """How many more bytes of its host's memory each rank may read and write if that saves a meeting; likewise.

    With fewer, 3, 4 and 8 ranks on 2 cores took longer for the meeting than to add up everything themselves.
    """

    @functools.cached_property
    def _inbox(self) -> combining.Inbox:
        return combining.Inbox()

    @abc.abstractmethod
    def exchange(
        self,
        sends: Iterable[Send],
        receives: Sequence[Receive],
        what: str,
        label: bytes = b"",
        *,
        withdraws: bool = False,
        batch: Batch | None = None,
    ) -> bool:
        """Carry out all transfers at once; return when all are done: whether a rank heard from ``withdraws``.

        Between two ranks buffers arrive in the order in which they were sent. A rank may send to itself.
        ``sends`` may make each buffer when it is asked for it: those before are on their way meanwhile.
        ``what`` names the collective in errors: "rank 2 waited 8.0 s in step 17 for ranks 0, 3: <what>". Where there is
        no label, it is the same on all ranks, and tells them apart that do something else.

        ``label``: an encoded :class:`~distopt.agreement.Label`, or nothing. It and ``withdraws`` belong to every
        buffer that is sent, and cost no message of their own.

        ``batch``: messages that were begun before, or while ``sends`` is asked; they are done, too, when this returns,
        or raises a MistakeError.

        Raises: the MistakeError of two labels, or calls, that differ, on every rank that hears from one in another
            call, also where the buffers then do not fit; RemoteProtocolError for buffers that do not fit in one call.
        """

    def channel(self) -> Channel:
        """Return a way for messages that are begun before an exchange, always the same one; a collective.

        Raises: LocalProtocolError for a transport that has none.
        """
        raise LocalProtocolError(f"{type(self).__name__} begins no messages before an exchange")

    @abc.abstractmethod
    def close(self) -> None:
        """Release what the transport holds; a second call does nothing."""

    def survivors(self) -> Communicator:
        """Return a communicator of the ranks that are left after a loss, in the same order; this one is closed.

        To be called by each of them after a PeerLostError, which all of them get; a collective of theirs. A loss while
        it goes on, or soon after, is one of the new communicator, or is already left out of it.

        Raises: LocalProtocolError where losses are not survived; CollectiveTimeoutError if a rank does not come.
        """
        raise LocalProtocolError(f"rank {self.rank} cannot go on after a loss: {type(self).__name__} survives none")

    def limit_waits(self, timeout_s: float) -> None:
        """Let waits last ``timeout_s`` at most from now on."""
        self.timeout_s = timeout_s

    def finish(self) -> None:
        """Close; where losses are survived, return when all ranks have called this.

        Raises: PeerLostError, on all survivors or on none; CollectiveTimeoutError.
        """
        self.close()

    @property
    def rank_at_start(self) -> int:
        """The rank that this process had before others were lost as all connected."""
        return self.rank

    @property
    def size_at_start(self) -> int:
        """So many ranks there were before some were lost as all connected."""
        return self.size

    @property
    def host_group(self) -> HostGroup:
        """The ranks of this host, which can share memory; the first use is a collective."""
        if self._host_group is None:
            from distopt.comm.shared_memory.host_group import meet_on_host  # it builds on this module

            self._host_group = meet_on_host(self)
        return self._host_group

    def look(self, missing: Sequence[int], waiting: str) -> None:  # noqa: B027 - a transport may know nothing
        """Raise if it is in vain to wait for the ranks ``missing``, as far as the transport knows.

        For waits that are not the transport's own, which call it a few times a second; ``waiting`` says what for.
        """

    def elsewhere(self, ranks: Sequence[int]) -> str:  # noqa: ARG002 - a transport may know nothing
        """Return what those of ``ranks`` wait for that have said so, as the end of a message; empty for none."""
        return ""

    def begin_wait(self, wait: Wait) -> None:  # noqa: B027 - a transport may have nobody to tell
        """Note that this rank waits for something that is not the transport's own."""

    def end_wait(self) -> None:  # noqa: B027 - as above
        """Note that the wait is over."""

    def fail(self) -> None:
        """Note that this rank cannot go on."""
        self.has_failed = True

    def _close_host_group(self) -> None:
        """For :meth:`close`: leave the group of this host, if there is one."""
        if self._host_group is not None:
            self._host_group.close()

    def combine(
        self,
        contributions: Sequence[Contribution],
        hosting: Hosting,
        aggregator: Aggregator,
        like: Sequence[Array],
        label: bytes = b"",
        *,
        withdraws: bool = False,
        what: str = "combine",
    ) -> list[Array]:
        """Return the aggregate of all replicas' contributions, the same bits on every rank.

        ``contributions`` of this rank are those of ``hosting.contributed(summed=aggregator.sums)[rank]``, in any order.
        A rank that hosts no replica passes none and still takes part, so it needs ``like``: any arrays of the right
        lengths and dtypes; their contents are not read.

        Shapes: all arrays, and the results, are flat; the j-th of each are alike in length and dtype.
        Where there is nothing to add, a result may be a contribution's own array.

        ``label``: an encoded :class:`~distopt.agreement.Label`, or nothing on every rank. It travels in the messages
        of the arrays, so that ranks that combine different things find out. ``withdraws``, which takes a label: this
        rank has nothing in the form that the others expect, which it could not know; then all ranks get Withdrawn, and
        nobody reads what its contributions contain. ``what`` names the call in errors.

        Raises: ValueError for contributions that are not as described, before anything is sent; the MistakeError of
        labels that differ; Withdrawn.
        """
        combining.check(contributions, hosting, aggregator, like, self.rank, self.size)
        mine = {contribution.node: contribution.arrays for contribution in contributions}
        if self.size == 1:
            if withdraws:
                raise Withdrawn
            return combining.aggregate(mine, hosting, aggregator, like)
        nodes = hosting.contributed(summed=aggregator.sums)
        results = [np.empty(len(array), array.dtype) for array in like]
        num_nodes = sum(len(of_rank) for of_rank in nodes)
        num_bytes = sum(array.nbytes for array in like)
        if combining.bytes_saved_by_parts(num_bytes, num_nodes, self.size) <= self.exchange_cost_bytes:
            collected = self._collect(mine, nodes, combining.whole(like, self.size), like, label, what, withdraws)
            return combining.aggregate(collected, hosting, aggregator, like, out=results)
        parts = combining.even_parts(like, self.size)
        collected = self._collect(mine, nodes, parts, like, label, what, withdraws)
        own = [result[part] for result, part in zip(results, parts[self.rank], strict=True)]
        combining.aggregate(collected, hosting, aggregator, own, out=own)
        self._spread(results, parts, what)
        return results

    def gather(
        self, contributions: Sequence[Contribution], hosting: Hosting, like: Sequence[Array], label: bytes = b""
    ) -> combining.Sums:
        """Return the arrays of every replica, by its node, on every rank; valid until the next call of any collective.

        ``contributions``, ``like`` and ``label``: as :meth:`combine` takes them, one contribution a hosted replica.

        Raises: as :meth:`combine`.
        """
        combining.check_leaves(contributions, hosting, like, self.rank, self.size)
        mine = {contribution.node: contribution.arrays for contribution in contributions}
        if self.size == 1:
            return mine
        return self._collect(mine, hosting.leaves, combining.whole(like, self.size), like, label, "gather")

    def all_reduce(self, reduce_op: ReduceOp | str, arrays: Sequence[Array]) -> list[Array]:
        """Return the canonical sum (or mean) over *ranks* of each array; shapes and dtypes are alike everywhere.

        Shapes: those of ``arrays``. The dtype is kept, except that the mean of integers is a float64.

        Raises: TypeError for booleans, whose sum NumPy takes for a logical or.
        """
        operation = ReduceOp.parse(reduce_op)
        arrays = [np.asarray(array) for array in arrays]
        if any(array.dtype == np.bool_ for array in arrays):
            raise TypeError("all_reduce cannot add booleans; convert them to integers")
        packed = combining.Packed(arrays)
        hosting = Hosting.contiguous(self.size, self.size)
        contribution = Contribution(Node(self.rank, self.rank + 1), packed.flat)
        totals = packed.unpack(self.combine([contribution], hosting, Sum(), packed.flat))
        if operation is ReduceOp.SUM:
            return totals
        return [np.asarray(total / total.dtype.type(self.size)) for total in totals]

    def all_gather_bytes(self, payload: bytes, label: bytes = b"", what: str = "all_gather_bytes") -> list[bytes]:
        """Return every rank's payload, in rank order; lengths may differ. ``label``: as in :meth:`combine`.

        ``what`` names the call in errors; with a label, the same call may have another name on each rank.
        """
        return self._all_gather_bytes(payload, what, label)

    def broadcast_bytes(self, payload: bytes | None, root: int = 0) -> bytes:
        """Return ``root``'s payload on every rank; the others' own ``payload`` is not read.

        Raises: ValueError if there is no rank ``root``, or if it passes ``None``.
        """
        self._check_root(root)
        what = f"broadcast_bytes from rank {root}"
        others = [peer for peer in range(self.size) if peer != root]
        if self.rank == root:
            if payload is None:
                raise ValueError(f"rank {root} is the root of a broadcast and has nothing to send")
            frame = _frame(payload)
            self.exchange([Send(peer, frame) for peer in others], [], what)
            if len(payload) > _INLINE_BYTES:
                rest = np.frombuffer(payload, np.uint8)
                self.exchange([Send(peer, rest) for peer in others], [], what)
            return payload
        frame = np.empty(_LENGTH_BYTES + _INLINE_BYTES, np.uint8)
        self.exchange([], [Receive(root, frame)], what)
        length = _length_of(frame)
        if length <= _INLINE_BYTES:
            return _inline_of(frame)
        rest = np.empty(length, np.uint8)
        self.exchange([], [Receive(root, rest)], what)
        return rest.tobytes()

    def broadcast_array(self, array: Array, root: int = 0) -> None:
        """Write ``root``'s ``array`` into that of every rank; it has one shape and dtype everywhere, and is contiguous.

        Raises: ValueError if there is no rank ``root``.
        """
        self._check_root(root)
        what = f"broadcast_array from rank {root}"
        if self.rank == root:
            self.exchange([Send(peer, array) for peer in range(self.size) if peer != root], [], what)
        else:
            self.exchange([], [Receive(root, array)], what)

    def barrier(self) -> None:
        """Return when every rank has called this."""
        self._all_gather_bytes(b"", "barrier")

    def _check_root(self, root: int) -> None:
        if not 0 <= root < self.size:
            raise ValueError(f"root must be a rank below {self.size}, not {root}")

    def _collect(
        self,
        mine: combining.Sums,
        nodes: Sequence[Sequence[Node]],
        parts: combining.Parts,
        like: Sequence[Array],
        label: bytes,
        what: str,
        withdraws: bool = False,
    ) -> combining.Sums:
        """Send each rank its parts of what is mine; return my parts of the contributions of all.

        Raises: as :meth:`exchange`; Withdrawn.
        """
        what = f"{what}: parts of {len(like)} arrays from all replicas"
        others = others_of(self.rank, self.size)
        sends = [
            Send(peer, array[part])
            for peer in others
            for node in nodes[self.rank]
            for array, part in zip(mine[node], parts[peer], strict=True)
            if part.start < part.stop
        ]
        own = parts[self.rank]
        self._inbox.clear()
        collected = {node: tuple(array[part] for array, part in zip(mine[node], own, strict=True)) for node in mine}
        for peer in others:
            for node in nodes[peer]:
                collected[node] = tuple(
                    self._inbox.empty(part.stop - part.start, array.dtype)
                    for array, part in zip(like, own, strict=True)
                )
        receives = [
            Receive(peer, array) for peer in others for node in nodes[peer] for array in collected[node] if len(array)
        ]
        if label:
            # Every rank hears from every other one, also where there is nothing to be told but the label.
            heard, told = {peer for peer, _ in receives}, {peer for peer, _ in sends}
            receives += [Receive(peer, _NOTHING) for peer in others if peer not in heard]
            sends += [Send(peer, _NOTHING) for peer in others if peer not in told]
        if self.exchange(sends, receives, what, label, withdraws=withdraws) or withdraws:
            raise Withdrawn
        return collected

    def _spread(self, results: Sequence[Array], parts: combining.Parts, what: str) -> None:
        """Send my parts of the results to all; receive theirs."""
        sends = []
        receives = []
        for peer in others_of(self.rank, self.size):
            sends += [Send(peer, r[p]) for r, p in zip(results, parts[self.rank], strict=True) if p.start < p.stop]
            receives += [Receive(peer, r[p]) for r, p in zip(results, parts[peer], strict=True) if p.start < p.stop]
        self.exchange(sends, receives, f"{what}: results of {len(results)} arrays from their owners")

    def _all_gather_bytes(self, payload: bytes, what: str, label: bytes = b"") -> list[bytes]:
        frame = _frame(payload)
        frames = {peer: np.empty_like(frame) for peer in others_of(self.rank, self.size)}
        self.exchange([Send(p, frame) for p in frames], [Receive(p, f) for p, f in frames.items()], what, label)
        lengths = {peer: _length_of(frame) for peer, frame in frames.items()}
        payloads = {peer: _inline_of(frame) for peer, frame in frames.items()}
        payloads[self.rank] = payload
        if max([len(payload), *lengths.values()]) > _INLINE_BYTES:
            own = np.frombuffer(payload, np.uint8)
            long = {p: np.empty(length, np.uint8) for p, length in lengths.items() if length > _INLINE_BYTES}
            sends = [Send(peer, own) for peer in frames] if len(payload) > _INLINE_BYTES else []
            self.exchange(sends, [Receive(p, rest) for p, rest in long.items()], what)
            payloads.update({peer: rest.tobytes() for peer, rest in long.items()})
        return [payloads[rank] for rank in range(self.size)]


def _frame(payload: bytes) -> Array:
    """Return the length of ``payload`` and, where it is short, ``payload`` itself, in a buffer of fixed size."""
    inline = payload if len(payload) <= _INLINE_BYTES else b""
    head = len(payload).to_bytes(_LENGTH_BYTES, "little") + inline
    return np.frombuffer(head.ljust(_LENGTH_BYTES + _INLINE_BYTES, b"\0"), np.uint8)


def _length_of(frame: Array) -> int:
    return int.from_bytes(frame[:_LENGTH_BYTES].tobytes(), "little")


def _inline_of(frame: Array) -> bytes:
    """Return the payload of a frame, or nothing where it was too long for one."""
    length = _length_of(frame)
    return frame[_LENGTH_BYTES : _LENGTH_BYTES + length].tobytes() if length <= _INLINE_BYTES else b""
