"""Ranks that are MPI processes.

Rules of this file:

- Buffer calls only: the lower-case ones pickle.
- Buffers travel in pieces that MPI sends at once. All receives are begun first, and what is sent to a peer that has not
  come is little (:mod:`distopt.comm.mpi_transfers`).
- No call that can block for a peer: every transfer is started, then tested until it is done or its deadline is over.
  In between, notes of other ranks are read, and the ranks of this host are looked at (:mod:`distopt.comm.host_peers`).
- What blocks nevertheless, inside of MPI, is ended by a watchdog.
- A rank that leaves tells all others, by a note: that it is done, or why it ends the job. So they can name it
  (:mod:`distopt.comm.mpi_notes`).
- The tag of a message is a digest of its label, or of the call's name where there is none. Messages between two ranks
  keep their order, so receives ask for any tag, and a tag that differs from the own one shows a rank that means
  something else, at no cost. Only then are names and labels themselves sent, as notes, to say what differs. A digest
  has 30 bits with Open MPI, 14 in the worst MPI that the standard allows, and labels carry the step: what is missed
  once is seen a step later.
- A rank that waits for long tells the others where, by a note, so that those find out who wait for each other in
  different calls (:mod:`distopt.comm.long_waits`).

How MPI is loaded: :mod:`distopt.comm.mpi_start`; how a wait goes: :mod:`distopt.comm.mpi_waits`; why it failed:
:mod:`distopt.comm.mpi_causes`; how a process leaves: :mod:`distopt.comm.mpi_ending`.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final, NoReturn

from distopt.comm import host_peers, mpi_ending, mpi_start, mpi_survivors
from distopt.comm.communicator import Communicator, Receive, Send, Traffic, Wait
from distopt.comm.early import Batch, Channel
from distopt.comm.long_waits import Called
from distopt.comm.mpi_causes import Causes
from distopt.comm.mpi_early import MpiBatch, MpiChannel
from distopt.comm.mpi_notes import Notes
from distopt.comm.mpi_segments import unlink_shared_memory
from distopt.comm.mpi_start import load_mpi
from distopt.comm.mpi_transfers import Transfers
from distopt.comm.mpi_waits import MAX_PAUSE_S, Requests, Waits
from distopt.comm.transfers import describe_wait
from distopt.comm.watchdog import Watchdog
from distopt.errors import (
    CollectiveTimeoutError,
    DistoptError,
    JobAbortedError,
    LocalProtocolError,
    MistakeError,
    PeerLostError,
    RemoteProtocolError,
)

if TYPE_CHECKING:
    from mpi4py import MPI

_LEAST_TAG_UB: Final = 32767
"""The largest tag that every MPI offers."""

_READ_EVERY: Final = 256
"""In every so many exchanges, and meetings, notes are read without a wait."""

_TURN_S: Final = 1.5
"""So much later than the ranks before it a rank says who was lost before all knew each other."""

_GRACE_S: Final = 5.0
"""How long the watchdog lets a wait overrun, and how long an abort may take."""


class MpiCommunicator(Communicator):
    """The ranks of an MPI communicator (default: the world), of which this process is one.

    Units: a wait lasts at most ``timeout_s``; a rank of this host that is stopped is lost after ``stopped_timeout_s``.

    ``survives_losses``: whether the launcher lets ranks live when one is lost, so that they can have :meth:`survivors`.
    Ranks that are lost while all connect are left out: ``rank_at_start`` and ``size_at_start`` count them, too.
    ``end_process`` gets the process id of a rank of this host that is stopped, which would go on when others have its
    part.

    Every rank must make it, in the same order as others of the same ``comm``. One thread uses it at a time.

    Raises: EndpointError if there is no MPI.
    """

    shares_memory = True

    def __init__(
        self,
        comm: MPI.Intracomm | None = None,
        *,
        timeout_s: float = 60.0,
        stopped_timeout_s: float = 5.0,
        survives_losses: bool = False,
        end_process: Callable[[int], object] | None = None,
    ) -> None:
        self.mpi = load_mpi(timeout_s)
        """mpi4py's module."""
        self._end_process = end_process
        self.survives_losses = survives_losses
        self._stopped_timeout_s = stopped_timeout_s
        self._begun: list[MPI.Request] = []
        """What was under way when a wait failed."""
        self._has_agreed = False
        parent = self.mpi.COMM_WORLD if comm is None else comm
        self._at_start: Final = (parent.Get_rank(), parent.Get_size())
        self.traffic = Traffic()
        self.step = 0
        self.timeout_s = timeout_s
        self._tag_upper_bound: int = self.mpi.COMM_WORLD.Get_attr(self.mpi.TAG_UB) or _LEAST_TAG_UB
        self._num_digests = (self._tag_upper_bound - 3) // 2
        self._closed = False
        self._waits = Waits(self.mpi, self, lambda what: self._notes.tell_wait(what))
        self._watchdog = Watchdog(timeout_s + _GRACE_S, self._end_stuck)
        self._channel: MpiChannel | None = None
        self._begin_with(parent)
        mpi_ending.communicators.append(self)
        try:
            if survives_losses:
                with mpi_start.survive_crashes(self._crash()):
                    mpi_survivors.join(self.mpi, parent, self._connect, self._watchdog)
            else:
                self._connect(parent)
            self._causes.comm = self._comm
        except BaseException as error:
            self.has_failed = True
            unlink_shared_memory()
            if comm is None and isinstance(error, PeerLostError):
                time.sleep(_TURN_S * min(self.rank, 2))  # an earlier one says so, and ends this one
            raise

    @property
    def rank_at_start(self) -> int:
        return self._at_start[0]

    @property
    def size_at_start(self) -> int:
        return self._at_start[1]

    def _begin_with(self, comm: MPI.Intracomm) -> None:
        """Take the ranks of ``comm`` for those that there are; nothing is known of them yet."""
        self.rank, self.size = comm.Get_rank(), comm.Get_size()
        self.num_exchanges, self.has_failed = 0, False
        self.has_lost = self._at_start[1] > self.size
        """Whether the job has lost ranks. ``MPI_Finalize`` then may never return (Open MPI 5.0.11)."""
        self._comm = comm  # until it is duplicated, for an abort
        self._notes = Notes(self.mpi, comm)
        self._causes = Causes(self.mpi, self, comm, self._notes, self._end_process)

    def _connect(self, comm: MPI.Intracomm) -> None:
        """Make communicators of our own, and find out who is on this host."""
        self._causes.host_peers.close()
        mpi_ending.undone.append(self._begun)
        self._begin_with(comm)
        duplicates = [self._duplicate(comm) for _ in range(2)]
        self._comm = duplicates[0]
        self._notes = self._causes.notes = Notes(self.mpi, duplicates[1])
        identities = self.all_gather_bytes(host_peers.identity())
        self._causes.host_peers = host_peers.HostPeers(self.rank, identities, stopped_timeout_s=self._stopped_timeout_s)
        if self.survives_losses or self.size == self.mpi.COMM_WORLD.Get_size():
            self.barrier()  # now everyone has heard from everyone, and so has mapped what it shares with them
            unlink_shared_memory()
            mpi_start.all_have_started()

    def _duplicate(self, comm: MPI.Intracomm) -> MPI.Intracomm:
        try:
            return self._waits.duplicated(comm, lambda: self._causes.look_for_losses(self._waits.situation()))
        except self.mpi.Exception as error:
            raise self._causes.translated(error, self._waits.statuses, "making a communicator") from error

    def channel(self) -> Channel:
        if self._channel is None:
            self._channel = MpiChannel(self.mpi, self._duplicate(self._comm), self, self._tag_upper_bound)
        return self._channel

    def failed(self, error: Exception, what: str) -> DistoptError:
        """See :class:`~distopt.comm.mpi_early.MpiRank`."""
        self.has_failed = True
        return self._causes.translated(error, self._waits.statuses, what)

    def limit_waits(self, timeout_s: float) -> None:
        super().limit_waits(timeout_s)
        self._watchdog.set_limit(timeout_s + _GRACE_S)

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
        if self._closed or self.has_failed:
            state = "has failed" if self.has_failed else "is closed"
            raise LocalProtocolError(f"rank {self.rank} used a communicator that {state}: {what}")
        self.num_exchanges += 1
        tag = 2 * (1 + zlib.crc32(label or what.encode()) % self._num_digests) + withdraws
        started_s = time.monotonic()
        if not self.num_exchanges % _READ_EVERY:
            self._notes.read_beside()
        transfers = Transfers(self.mpi, self._comm, tag)
        begun, num_bytes_sent = transfers.requests, 0
        self._watchdog.begin(what)
        try:
            for peer, array in receives:
                transfers.add_receive(peer, array)
            for peer, array in sends:
                transfers.add_send(peer, array)
                num_bytes_sent += array.nbytes if peer != self.rank else 0
                self._notes.let_mpi_work()
                self._watchdog.begin(what)
            posted_s = time.monotonic()
            num_bytes = sum(transfers.lengths) + num_bytes_sent
            wait = Requests(what, posted_s, begun, transfers.peers, transfers.lengths, tag, label, num_bytes=num_bytes)
            transfers.finish_sends(
                lambda some, theirs: self._complete(wait._replace(requests=some, peers=theirs, lengths=()))
            )
            if batch is None:
                statuses = self._complete(wait)
            else:
                assert isinstance(batch, MpiBatch), "made by a channel of this communicator"
                begun = begun + batch.requests
                num_bytes += batch.num_bytes_sent
                both = wait._replace(requests=begun, peers=wait.peers + batch.peers, num_bytes=num_bytes)
                statuses = self._complete(both)
                batch.end(statuses[len(transfers.requests) :])
            withdrawn = self._check(wait, statuses)
        except MistakeError:
            if self.has_failed:
                self._begun = begun
            else:
                self._waits.end()
            raise  # all who take part see it, each by itself
        except BaseException as error:
            self.has_failed = True
            self._begun = begun
            if isinstance(error, self.mpi.Exception):
                called = Called.of(what, label)
                raise self._causes.translated(error, self._waits.statuses, what, called, tag) from error
            raise
        finally:
            self._watchdog.end()
        self.traffic.send_s += posted_s - started_s
        self.traffic.wait_s += time.monotonic() - posted_s
        self.traffic.bytes_sent += num_bytes_sent
        self.traffic.bytes_received += sum(array.nbytes for peer, array in receives if peer != self.rank)
        return withdrawn

    def _complete(self, wait: Requests) -> list[MPI.Status]:
        return self._waits.complete(wait, self._look)

    def _check(self, wait: Requests, statuses: Sequence[MPI.Status]) -> bool:
        """Return whether someone withdraws, by what an exchange has received.

        Raises: the MistakeError of calls that differ; RemoteProtocolError for another number of bytes.
        """
        tags = [status.Get_tag() for status in statuses[: len(wait.lengths)]]
        if any(found >> 1 != wait.tag >> 1 for found in tags):
            raise self._causes.calls_differ(Called.of(wait.what, wait.label))
        for status, length, peer in zip(statuses, wait.lengths, wait.peers, strict=False):
            self._check_length(status, length, peer, wait.what)
        return any(found & 1 for found in tags)

    def termination_error(self) -> DistoptError:
        """Return why this process was told to end: for a handler of SIGTERM, which MPI launchers send to the survivors.

        PeerLostError if a rank of this host is dead; JobAbortedError with the reason that another rank gave, or
        without one. May be raised by the handler. The communicator cannot be used any more.
        """
        self.has_failed = True
        now = self._waits.situation()
        known = self._causes.known_end(now)
        return known or JobAbortedError(f"rank {self.rank} was told to end at step {self.step}; {now}")

    def abort(self, status: int = 1, reason: str = "", *, at_once: bool = False) -> NoReturn:
        """End the job, all of its ranks, with this ``status``; ``reason`` is what the others' errors then say.

        Those that wait may say so before they are ended, unless it is done ``at_once``.
        """
        faulthandler.dump_traceback_later(_GRACE_S, exit=True, file=sys.__stderr__ or 2)  # aborting may hang, too
        if self.size > 1:
            first = self._notes.ended  # which is the reason of this one, too
            self._notes.tell_end(first[1] if first else reason or f"rank {self.rank} failed at step {self.step}")
        if not at_once and not self.has_lost:
            self._notes.let_others_speak(self._causes.host_peers.dead)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        if not self.has_lost and not self._causes.are_ended_by_exit():
            self._comm.Abort(status)
        os._exit(status or 1)

    def close(self) -> None:
        """Tell the others that this rank is done. MPI itself stays; it is finalized at exit."""
        if self._closed:
            return
        self._closed = True
        self._watchdog.close()
        if self._channel is not None and not self.has_failed:
            self._channel.leave(self.timeout_s)
        if not self.has_failed and not self._has_agreed:
            self._notes.tell_leaving()
        self._close_host_group()

    def finish(self) -> None:
        """Close, and return when all ranks have closed.

        Raises: PeerLostError, CollectiveTimeoutError, JobAbortedError as any wait. Where losses are survived, a
            PeerLostError is raised by all survivors or by none.
        """
        if self.survives_losses and not self.has_failed and not self._closed:
            self._has_agreed = True
            self._watchdog.begin("leaving")
            all_are_done = mpi_survivors.agree(self.mpi, self._comm, True)
            self._watchdog.end()
            if not all_are_done:
                self.has_failed = True
                raise PeerLostError(f"a rank was lost at step {self.step}, before all had finished")
            self._notes.left.update(set(range(self.size)) - {self.rank})
        self.close()
        started_s = last_look_s = time.monotonic()
        deadline_s = started_s + self.timeout_s
        while len(self._notes.left) < self.size - 1 and not self.has_failed:
            missing = sorted(set(range(self.size)) - self._notes.left - {self.rank})
            waiting = describe_wait(self.rank, self.step, last_look_s - started_s, missing, "leaving")
            self._notes.read()
            self._causes.raise_if_aborted(waiting)
            last_look_s = time.monotonic()
            lost = self._causes.host_peers.first_lost(last_look_s)
            if lost and lost.rank not in self._notes.left:
                self.has_failed = True
                raise PeerLostError(f"{lost} at step {self.step}; {waiting}")
            if last_look_s >= deadline_s:
                self.has_failed = True
                raise CollectiveTimeoutError(waiting)
            time.sleep(MAX_PAUSE_S)
        if self._channel is not None and not self.has_failed:
            self._channel.cancel()
        self._causes.host_peers.close()

    def meet_at_exit(self) -> None:
        """Return when all ranks have called this, or it takes too long.

        For processes that end without ``MPI_Finalize``: the first that ends with another status than 0 makes the
        launcher end the others, wherever they are.
        """
        others = set(range(self.size)) - {self.rank}
        self._notes.left.clear()
        self._notes.tell_leaving()
        deadline_s = time.monotonic() + self.timeout_s
        with contextlib.suppress(self.mpi.Exception):
            while self._notes.left != others and time.monotonic() < deadline_s:
                if mpi_survivors.has_losses(self._comm):
                    return
                self._notes.read()
                time.sleep(MAX_PAUSE_S)

    def survivors(self) -> MpiCommunicator:
        if not self.survives_losses:
            return super().survivors()  # type: ignore[return-value]  # it raises
        mpi, timeout_s, comm = self.mpi, self.timeout_s, self._comm
        mpi_survivors.revoke(mpi, comm, self._notes.comm)
        self._give_up()
        watchdog = Watchdog(timeout_s + _GRACE_S, self._end_stuck)
        watchdog.begin("meeting the survivors")
        try:
            if not self._has_agreed:
                mpi_survivors.agree(mpi, comm, False)
            with mpi_start.survive_crashes(self._crash()):
                comm = mpi_survivors.shrink(mpi, comm)
        finally:
            watchdog.close()
        mpi_ending.undone.append(self._begun)
        if self._channel is not None:
            mpi_ending.undone.append(self._channel.requests())
        found = MpiCommunicator(
            comm,
            timeout_s=timeout_s,
            stopped_timeout_s=self._stopped_timeout_s,
            survives_losses=True,
            end_process=self._end_process,
        )
        found.has_lost = True
        return found

    def _give_up(self) -> None:
        """Leave without a word to the others."""
        mpi_ending.communicators.remove(self)
        self._closed = self.has_failed = True
        self._close_host_group()
        self._causes.host_peers.close()
        self._watchdog.close()

    def look(self, missing: Sequence[int], waiting: str) -> None:
        wait = self._waits.current
        called = None if wait is None else Called.of(wait.what, wait.label)
        self._causes.look(missing, waiting, called)
        self._waits.tell_if_long(at_once=bool(self._notes.waits))  # who is right is said by most

    def begin_wait(self, wait: Wait) -> None:
        self._waits.current = wait
        if not self.num_meetings % _READ_EVERY:
            self._notes.read_beside()

    def end_wait(self) -> None:
        self._waits.end()

    def elsewhere(self, ranks: Sequence[int]) -> str:
        waits = self._notes.waits
        return "".join(f"; rank {rank} {waits[rank]}" for rank in ranks if rank in waits)

    def _look(self, wait: Requests) -> None:
        """Raise if a wait is in vain."""
        self.look(wait.missing(), self._waits.situation())
        for status, length, peer in wait.come(self.mpi.Status):
            if status.Get_tag() >> 1 == wait.tag >> 1:  # other calls are told apart by all ranks together
                self._check_length(status, length, peer, wait.what)  # who means fewer pieces sends no others

    def _check_length(self, status: MPI.Status, expected: int, peer: int, what: str) -> None:
        if (count := status.Get_count(self.mpi.BYTE)) != expected:
            raise RemoteProtocolError(
                f"rank {self.rank} expected {expected} bytes from rank {peer} at step {self.step}, and got {count}: "
                f"{what}"
            )

    def _crash(self) -> str:
        return f"a rank was lost at step {self.step} as MPI made a communicator, and MPI crashed on all others"

    def _end_stuck(self, what: str) -> None:
        message = f"distopt: rank {self.rank} is stuck inside MPI at step {self.step}, its wait overdue: {what}\n"
        os.write(2, message.encode())
        self.abort(1, message, at_once=True)  # by the watchdog's thread, beside one that is inside of MPI
