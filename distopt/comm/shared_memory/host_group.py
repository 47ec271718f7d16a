"""The ranks of one host: how they meet, and the memory that all of them map.

Rules of this file:

- Every member makes the same calls in the same order. Each exchange says what it is for, and carries the label of what
  is being done (:mod:`distopt.agreement`), so that members that do different things find out before memory is read.
- An exchange returns when every member has come to it: it is the barrier after which memory may be read or written
  that before belonged to others. Sending and receiving orders the memory accesses around it.
- Every wait has a deadline. The end of a peer's socket is its death notice; meanwhile the transport is asked, which may
  know why, or that a peer is stopped.
- Messages are small and go to each other member; what is large lies in a segment.
"""

from __future__ import annotations

import itertools
import os
import select
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from distopt.comm.communicator import Communicator
from distopt.comm.long_waits import Called, calls_differ
from distopt.comm.shared_memory import segments
from distopt.comm.shared_memory.group_wait import LOOK_EVERY_S, GroupWait
from distopt.comm.shared_memory.rendezvous import find_hosts
from distopt.errors import LocalProtocolError, MergeOrderError, SharedMemoryError
from distopt.types import Array

MAX_PAYLOAD_BYTES: Final = 1 << 15

_HEAD: Final = struct.Struct("<QHH")
"""The number of the exchange, the lengths of phase and label."""

_MAX_PHASE_BYTES: Final = 256
_MAX_LABEL_BYTES: Final = 64

_SPIN_S: Final = 100e-6
"""So long the core is only offered to others before a wait sleeps: waking up costs 20 us. By time, not by number: on a
busy machine each offer may cost a whole slice of another process."""

_OTHERS_WITHIN_S: Final = 0.5
"""So long a member that finds one to do something else waits for the others, to say which of them is the odd one."""


def meet_on_host(communicator: Communicator, namespace: str | None = None) -> HostGroup:
    """Return the group of the ranks of ``communicator`` on this host; a collective.

    ``namespace``: what makes a host, for tests that emulate several; default: what really does.
    """
    hosts = find_hosts(communicator, namespace)
    return HostGroup(communicator, hosts.ranks_of_hosts, hosts.sockets)


class HostGroup:
    """The members, this rank among them. ``hosts`` are the ranks of all hosts, the same value on every rank.

    One thread uses it at a time, as its communicator.
    """

    def __init__(
        self, communicator: Communicator, hosts: Sequence[tuple[int, ...]], sockets: dict[int, socket.socket]
    ) -> None:
        self.hosts: tuple[tuple[int, ...], ...] = tuple(hosts)
        self.ranks: tuple[int, ...] = next(ranks for ranks in hosts if communicator.rank in ranks)
        """The ranks of this host, in order."""
        self.index = self.ranks.index(communicator.rank)
        """The place of this rank among them."""
        self._communicator = communicator
        self._links = [(i, sockets[rank]) for i, rank in enumerate(self.ranks) if rank != communicator.rank]
        self._poll = select.poll()
        for _, link in self._links:
            link.setblocking(False)
            self._poll.register(link, select.POLLIN)
        self._number = 0
        self._buffer = bytearray(_HEAD.size + _MAX_PHASE_BYTES + _MAX_LABEL_BYTES + MAX_PAYLOAD_BYTES)
        self._view = memoryview(self._buffer)
        self._closed = False

    @property
    def size(self) -> int:
        """How many ranks are on this host."""
        return len(self.ranks)

    @property
    def holds_all(self) -> bool:
        """Whether all ranks of the communicator are on this host."""
        return len(self.hosts) == 1

    def exchange(self, phase: str, label: bytes = b"", payload: bytes = b"") -> list[bytes]:
        """Return the payloads of all members, by their place in the group, when all have called this.

        ``phase`` says what for, in errors, too; it and ``label`` must be the same on all members.

        Raises: the MistakeError of labels that differ, MergeOrderError for other phases; PeerLostError for a member
            that is gone, CollectiveTimeoutError for one that does not come, and what the transport knows of them;
            ValueError for more than ``MAX_PAYLOAD_BYTES``.
        """
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise ValueError(f"{len(payload)} bytes are too many for an exchange; put them into a segment")
        communicator = self._communicator
        if self._closed or communicator.has_failed:
            raise LocalProtocolError(f"rank {communicator.rank} used a group that is closed: {phase}")
        self._number = communicator.num_meetings = self._number + 1
        name = phase.encode()[:_MAX_PHASE_BYTES]
        start = _HEAD.pack(self._number, len(name), len(label)) + name + label
        payloads = [payload] * len(self.ranks)
        if not self._links:
            return payloads
        message = start + payload if payload else start
        started = time.monotonic()
        wait = GroupWait(communicator, self.ranks, self._links, phase, label, started)
        communicator.begin_wait(wait)
        try:
            for place, link in self._links:
                self._send(wait, place, link, message)
            for place, link in self._links:
                received = self._receive(wait, place, link)
                if not received.startswith(start):
                    raise self._disagreement(wait, {self.index: start, place: received})
                payloads[place] = received[len(start) :]
                wait.come.add(place)
        except BaseException:
            communicator.fail()
            raise
        wait.end()
        traffic = communicator.traffic
        traffic.wait_s += time.monotonic() - started
        traffic.bytes_sent += len(message) * len(self._links)
        traffic.bytes_received += sum(map(len, payloads)) + (len(start) - 1) * len(self._links)
        return payloads

    def share(self, num_bytes: int, what: str) -> list[Array]:
        """Return the segments that the members asked for, by their place: each mapped here, and full of zeros.

        ``num_bytes`` is what this member asks for; none where it is zero, which gives an empty array. A collective.

        Raises: SharedMemoryError, the same on all members, if one cannot get its memory or another cannot map it.
        """
        return self._share(num_bytes, {self.index: [(0, num_bytes)]}, what)

    def share_one(self, num_bytes: int, begins: Sequence[tuple[int, int]], what: str) -> Array:
        """Return one segment of zeros, whose pages the members take who will write there; mapped here. A collective.

        ``begins`` are pairs of the byte where a part begins and the place of the member who takes it, in order, from
        byte 0 on; huge pages are not divided. The arguments are the same on all members.

        Raises: SharedMemoryError, the same on all members, if one cannot get its part or map all.
        """
        page = segments.HUGE_PAGE
        starts = [min(-(-start // page) * page, num_bytes) for start, _ in begins]
        parts = zip(itertools.pairwise([*starts, num_bytes]), begins, strict=True)
        own = [(start, stop) for (start, stop), (_, place) in parts if place == self.index and start < stop]
        return self._share(num_bytes if self.index == 0 else 0, {0: own}, what)[0]

    def _share(self, num_bytes: int, taken: Mapping[int, Sequence[tuple[int, int]]], what: str) -> list[Array]:
        """Return what :meth:`share` does; ``taken``: by place, which bytes of that segment this member takes."""
        descriptor, trouble = -1, ""
        try:
            if num_bytes:
                descriptor = segments.create(num_bytes)
        except SharedMemoryError as error:
            trouble = str(error)
        phase = f"sharing memory for {what}"
        try:
            room = segments.available_bytes()
            payload = f"{num_bytes} {room or 0} {segments.group_of_process()} {trouble}".encode()
            told = [text.decode().split(" ", 3) for text in self.exchange(phase, payload=payload)]
            self._raise_trouble([trouble for *_, trouble in told], what)
            lengths = [int(length) for length, *_ in told]
            self._raise_trouble(segments.too_much_together(told), what)
            maps, trouble = self._pass_around(lengths, descriptor, taken, phase)
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        self._raise_trouble([text.decode() for text in self.exchange(phase, payload=trouble.encode())], what)
        return maps

    def close(self) -> None:
        """Leave the group; memory stays mapped as long as it is used. A second call does nothing."""
        if not self._closed:
            self._closed = True
            for _, link in self._links:
                link.close()

    def _pass_around(
        self, lengths: Sequence[int], descriptor: int, taken: Mapping[int, Sequence[tuple[int, int]]], phase: str
    ) -> tuple[list[Array], str]:
        """Send the own descriptor to all; return all segments, and what went wrong, for the others to hear."""
        communicator = self._communicator
        wait = GroupWait(communicator, self.ranks, self._links, phase, b"", time.monotonic())
        communicator.begin_wait(wait)
        trouble = ""
        maps: list[Array] = []
        try:
            if descriptor >= 0:
                for place, link in self._links:
                    self._send(wait, place, link, b"fd", descriptor)
            links = dict(self._links)
            for place, length in enumerate(lengths):
                received = -1
                try:
                    if length and place != self.index:
                        received = self._receive_descriptor(wait, place, links[place])
                    used = descriptor if place == self.index else received
                    for start, stop in taken.get(place, ()) if length else ():
                        segments.take(used, start, stop)
                    maps.append(segments.map_bytes(used, length) if length else np.empty(0, np.uint8))
                except SharedMemoryError as error:
                    trouble = str(error)
                finally:
                    if received >= 0:
                        os.close(received)
                wait.come.add(place)
        except BaseException:
            communicator.fail()
            raise
        wait.end()
        return maps, trouble

    def _raise_trouble(self, troubles: Sequence[str], what: str) -> None:
        found = [f"rank {rank}: {trouble}" for rank, trouble in zip(self.ranks, troubles, strict=True) if trouble]
        if found:
            raise SharedMemoryError(f"the ranks of this host cannot share memory for {what}: {'; '.join(found)}")

    def _send(self, wait: GroupWait, place: int, link: socket.socket, message: bytes, descriptor: int = -1) -> None:
        poll = None
        while True:
            try:
                if descriptor < 0:
                    link.send(message)
                else:
                    socket.send_fds(link, [message], [descriptor])
                return
            except BlockingIOError:
                pass  # its queue is full: it has not yet come to what was sent before
            except OSError as error:
                raise wait.lost(place, str(error)) from error
            if poll is None:
                poll = select.poll()
                poll.register(link, select.POLLOUT)
            wait.look(poll)

    def _receive(self, wait: GroupWait, place: int, link: socket.socket) -> bytes:
        while True:
            try:
                length = link.recv_into(self._buffer)
            except BlockingIOError:
                length = -1
            except OSError as error:
                raise wait.lost(place, str(error)) from error
            if length > 0:
                return bytes(self._view[:length])
            if not length:
                raise wait.lost(place, "is gone")
            if time.monotonic() - wait.started_s < _SPIN_S:
                os.sched_yield()
            else:
                wait.look(self._poll_of(link))

    def _receive_descriptor(self, wait: GroupWait, place: int, link: socket.socket) -> int:
        while True:
            try:
                message, descriptors, flags, _ = socket.recv_fds(link, 64, 1)
            except BlockingIOError:
                message = None
            except OSError as error:
                raise wait.lost(place, str(error)) from error
            if message is None:
                wait.look(self._poll_of(link))
                continue
            if not message:
                raise wait.lost(place, "is gone")
            if flags & socket.MSG_CTRUNC:
                raise SharedMemoryError(
                    f"the memory of rank {self.ranks[place]} cannot be mapped: too many open files, see `ulimit -n`"
                )
            if message != b"fd" or not descriptors:
                raise SharedMemoryError(f"rank {self.ranks[place]} passed no memory")
            return descriptors[0]

    def _poll_of(self, link: socket.socket) -> select.poll:
        if len(self._links) == 1:
            return self._poll
        poll = select.poll()
        poll.register(link, select.POLLIN)
        return poll

    def _disagreement(self, wait: GroupWait, messages: dict[int, bytes]) -> Exception:
        """Return the error for messages, by place, that are of different things; the same one on every member.

        Of the members that have come so far, or come soon: the odd one is named, and what most of them do.
        """
        deadline_s = time.monotonic() + _OTHERS_WITHIN_S
        for place, link in self._links:
            while place not in wait.come and place not in messages and time.monotonic() < deadline_s:
                try:
                    messages[place] = link.recv(len(self._buffer))
                except BlockingIOError:
                    self._poll_of(link).poll(LOOK_EVERY_S * 1e3)
                except OSError:
                    break  # it is lost, which is not what went wrong first
            if place in wait.come:
                messages[place] = messages[self.index]
        waiting = f"rank {self._communicator.rank} waits for {wait.what!r}"
        told = {self.ranks[place]: message for place, message in sorted(messages.items()) if message}
        try:
            meant = {rank: _parted(message) for rank, message in told.items()}
        except (struct.error, UnicodeDecodeError):
            return MergeOrderError(f"{waiting}, and got something else")
        calls = {rank: Called(phase, label) for rank, (_, phase, label) in meant.items()}
        phases = {rank: Called(phase, b"") for rank, (_, phase, _) in meant.items()}
        numbered = {rank: Called(f"{phase} number {number}", b"") for rank, (number, phase, _) in meant.items()}
        mismatch = calls_differ(calls) or calls_differ(phases) or calls_differ(numbered)
        return mismatch or MergeOrderError(f"{waiting}, and got something else")


def _parted(message: bytes) -> tuple[int, str, bytes]:
    """Return number, phase and label of a message."""
    number, phase, label = _HEAD.unpack_from(message)
    end = _HEAD.size + phase
    return number, message[_HEAD.size : end].decode(), message[end : end + label]
