"""Ranks that are MPI processes.

Rules of this file:

- Buffer calls only: the lower-case ones pickle.
- No call that can block for a peer: every transfer is started, then tested until it is done or its deadline is over.
  In between, notes of other ranks are read, and the ranks of this host are looked at (:mod:`distopt.comm.host_peers`).
- What blocks nevertheless, inside of MPI, is ended by a watchdog.
- A rank that leaves tells all others, by a note: that it is done, or why it ends the job. So they can name it
  (:mod:`distopt.comm.mpi_notes`).
- The tag of a message is a digest of its label. Messages between two ranks keep their order, so receives ask for any
  tag, and a tag that differs from the own one shows a rank that means something else, at no cost. Only then are the
  labels themselves sent, as notes, to say what differs. A digest has 30 bits with Open MPI, 14 in the worst MPI that
  the standard allows, and labels carry the step: what is missed once is seen a step later.

Finalizing: ``MPI_Finalize`` waits for all ranks and so never returns where one of them is lost. At exit a rank that
has seen an error therefore aborts the job, and one that has not waits for the others' notes, by a deadline, and only
then finalizes.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import logging
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from distopt.agreement import label_mismatch
from distopt.comm import host_peers, mpi_survivors
from distopt.comm.arrivals import Arrivals
from distopt.comm.communicator import Communicator, Receive, Send, Traffic, Wait, bytes_of, name_ranks
from distopt.comm.early import Batch, Channel
from distopt.comm.mpi_early import MpiBatch, MpiChannel
from distopt.comm.mpi_notes import Notes
from distopt.comm.watchdog import Watchdog
from distopt.errors import (
    CollectiveTimeoutError,
    DistoptError,
    EndpointError,
    JobAbortedError,
    LocalProtocolError,
    MergeOrderError,
    MistakeError,
    PeerLostError,
    RemoteProtocolError,
)
from distopt.types import Array

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from mpi4py import MPI

_CHUNK_BYTES: Final = 1 << 30
"""Messages are at most this long; a count in MPI 3 is a C int."""

_LEAST_TAG_UB: Final = 32767
"""The largest tag that every MPI offers."""

_YIELDS: Final = 100
"""So many times the core is offered to others before a wait begins to sleep."""

_MIN_PAUSE_S: Final = 20e-6
_MAX_PAUSE_S: Final = 1e-3
_MAX_PAUSE_OF_MANY_BYTES_S: Final = 1e-4
"""While many bytes are on their way; they move only while MPI is called."""
_MANY_BYTES: Final = 1 << 20
_PAUSE_SHARE: Final = 0.1
"""A wait sleeps for this share of what it has lasted, so it ends at most so much late."""

_EXCHANGE_COST_BYTES_ON_ONE_HOST: Final = 1 << 20
"""Measured with 8 ranks on 2 cores: 0.8 ms for an exchange, whether of 1 KB or of 0.5 MB a rank."""

_LOOK_EVERY_S: Final = 0.1
_GAP_S: Final = 2.0
"""A pause this long between two looks means that this process was stopped; its waits are prolonged by it."""

_MPI_SEGMENTS: Final = ("/dev/shm/sm_segment.", "/dev/shm/mpich_shm_")
"""What Open MPI and MPICH call the memory that ranks of a host share."""

_LATE_S: Final = 1.0
"""A rank that comes so much later than the median of the others is logged."""

_MOMENT_S: Final = 0.2
"""So soon after MPI has failed, it is known that a process of this host is dead: its memory goes before itself."""

_GRACE_S: Final = 5.0
"""How long the watchdog lets a wait overrun, and how long an abort may take."""


class _Wait(NamedTuple):
    """What is under way: requests, and the peer of each."""

    what: str
    started_s: float
    requests: list[MPI.Request]
    peers: list[int]
    everyone: tuple[int, ...] = ()
    """All ranks, for a request that has no single peer."""
    label: bytes = b""
    max_pause_s: float = _MAX_PAUSE_S

    def missing(self) -> list[int]:
        """Return the ranks whose transfers are not done."""
        if self.everyone:
            return list(self.everyone)
        pairs = zip(self.requests, self.peers, strict=True)
        return sorted({peer for request, peer in pairs if not request.Get_status()})


def load_mpi(timeout_s: float = 60.0) -> Any:
    """Return the module ``mpi4py.MPI``; MPI is initialized by it.

    A rank that is lost before it has initialized MPI is missed by the others inside of that: for ever, where the
    launcher lets them live. Nobody can tell which one, so after ``timeout_s`` the process ends and says where it was.

    Raises: EndpointError if it, or the MPI library itself, cannot be loaded.
    """
    is_first = "mpi4py.MPI" not in sys.modules
    if is_first:  # it keeps the interpreter's lock, so that no thread of ours could end it
        faulthandler.dump_traceback_later(timeout_s + _GRACE_S, exit=True, file=sys.__stderr__ or 2)
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError, OSError) as error:
        raise EndpointError(
            "MPI cannot be loaded; install one with `pip install 'distopt[mpi]'`, "
            f"or load the one of your cluster, often `module load openmpi` ({error})"
        ) from error
    finally:
        if is_first:
            faulthandler.cancel_dump_traceback_later()
    return MPI


class MpiCommunicator(Communicator):
    """The ranks of an MPI communicator (default: the world), of which this process is one.

    Units: a wait lasts at most ``timeout_s``; a rank of this host that is stopped is lost after ``stopped_timeout_s``.

    ``survives_losses``: whether the launcher lets ranks live when one is lost, so that they can have :meth:`survivors`.
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
        self._mpi = load_mpi(timeout_s)
        self._end_process = end_process
        self.survives_losses = survives_losses
        self._stopped_timeout_s = stopped_timeout_s
        self._begun: list[MPI.Request] = []
        """What was under way when a wait failed."""
        self._has_agreed = False
        self.has_lost = False
        """Whether the job has lost ranks. ``MPI_Finalize`` then may never return (Open MPI 5.0.11)."""
        parent = self._mpi.COMM_WORLD if comm is None else comm
        self.rank = parent.Get_rank()
        self.size = parent.Get_size()
        self.traffic = Traffic()
        self.step = 0
        self.timeout_s = timeout_s
        self._tag_upper_bound: int = self._mpi.COMM_WORLD.Get_attr(self._mpi.TAG_UB) or _LEAST_TAG_UB
        self._num_digests = (self._tag_upper_bound - 3) // 2
        self._wait: Wait | None = None
        self._statuses: list[MPI.Status] = []
        """Of the requests of the latest exchange."""
        self._closed = False
        self._arrivals: Arrivals | None = None
        """Of the wait under way, once it has lasted."""
        self._host_peers = host_peers.HostPeers(0, [b""])
        self._watchdog = Watchdog(timeout_s + _GRACE_S, self._end_stuck)
        self._comm = parent  # until it is duplicated, for an abort
        self._notes = Notes(self._mpi, parent)
        self._channel: MpiChannel | None = None
        duplicates = [self._duplicate(parent) for _ in range(2)]
        self._comm = duplicates[0]
        self._notes = Notes(self._mpi, duplicates[1])
        _open.append(self)
        identities = self.all_gather_bytes(host_peers.identity())
        self._host_peers = host_peers.HostPeers(self.rank, identities, stopped_timeout_s=stopped_timeout_s)
        if self.size == self._mpi.COMM_WORLD.Get_size():
            self.barrier()  # now everyone has heard from everyone, and so has mapped what it shares with them
            _unlink_shared_memory()
        if host_peers.are_on_one_host(identities):
            self.exchange_cost_bytes = _EXCHANGE_COST_BYTES_ON_ONE_HOST

    def _duplicate(self, comm: MPI.Intracomm) -> MPI.Intracomm:
        duplicate, request = comm.Idup()
        wait = _Wait("making a communicator", time.monotonic(), [request], [self.rank], tuple(range(self.size)))
        self._complete(wait, self._look_at_nothing)
        return duplicate

    def channel(self) -> Channel:
        if self._channel is None:
            self._channel = MpiChannel(self._mpi, self._duplicate(self._comm), self, self._tag_upper_bound)
        return self._channel

    def chunks(self, array: Array) -> list[Array]:
        """See :class:`~distopt.comm.mpi_early.MpiRank`."""
        return list(_chunks(array))

    def failed(self, error: Exception, what: str) -> DistoptError:
        """See :class:`~distopt.comm.mpi_early.MpiRank`."""
        self.has_failed = True
        return self._translated(error, what, b"")

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
        tag = 2 * (1 + zlib.crc32(label) % self._num_digests) + withdraws if label else 0
        any_tag = self._mpi.ANY_TAG
        started_s = time.monotonic()
        requests: list[MPI.Request] = []
        peers: list[int] = []
        expected: list[int] = []
        num_bytes_sent = 0
        self._watchdog.begin(what)
        try:
            for receive in receives:
                for chunk in _chunks(receive.array):
                    requests.append(self._comm.Irecv([chunk, self._mpi.BYTE], receive.peer, any_tag))
                    peers.append(receive.peer)
                    expected.append(len(chunk))
            are_made_now = not isinstance(sends, Sequence)
            for send in sends:
                for chunk in _chunks(send.array):
                    requests.append(self._comm.Isend([chunk, self._mpi.BYTE], send.peer, tag))
                    peers.append(send.peer)
                num_bytes_sent += send.array.nbytes if send.peer != self.rank else 0
                if are_made_now:
                    self._notes.let_mpi_work()  # the next buffer may take a while
                    self._watchdog.begin(what)
            if batch is not None:
                assert isinstance(batch, MpiBatch), "made by a channel of this communicator"
                num_own = len(requests)
                requests += batch.requests
                peers += batch.peers
                num_bytes_sent += batch.num_bytes_sent
            posted_s = time.monotonic()
            many = sum(expected) + num_bytes_sent >= _MANY_BYTES
            max_pause_s = _MAX_PAUSE_OF_MANY_BYTES_S if many else _MAX_PAUSE_S
            wait = _Wait(what, posted_s, requests, peers, label=label, max_pause_s=max_pause_s)
            statuses = self._complete(wait, self._look)
            if batch is not None:
                batch.end(statuses[num_own:])
            tags = [status.Get_tag() for status in statuses[: len(expected)]]
            if any(found >> 1 != tag >> 1 for found in tags):
                raise self._labels_differ(label)
            self._check_lengths(statuses, expected, peers, what)
        except MistakeError:
            raise  # all who take part see it, each by itself
        except BaseException as error:
            self.has_failed = True
            self._begun = requests
            if isinstance(error, self._mpi.Exception):
                raise self._translated(error, what, label) from error
            raise
        finally:
            self._watchdog.end()
        self.traffic.send_s += posted_s - started_s
        self.traffic.wait_s += time.monotonic() - posted_s
        self.traffic.bytes_sent += num_bytes_sent
        self.traffic.bytes_received += sum(array.nbytes for peer, array in receives if peer != self.rank)
        return any(found & 1 for found in tags)

    def _labels_differ(self, label: bytes) -> MistakeError:
        """Return the error for labels that differ, having told all others mine and heard theirs."""
        theirs = self._notes.exchange_labels(label)
        if set(range(self.size)) - {self.rank} - self._notes.left - theirs.keys():
            self.has_failed = True  # somebody is elsewhere: what is under way can no longer be told apart
        for peer, other in theirs.items():
            if other != label:
                return label_mismatch(f"rank {self.rank}", label, f"rank {peer}", other)
        return MergeOrderError(
            f"rank {self.rank} met another call than its own at step {self.step}; every process must make the same "
            "all_reduce and apply_gradients calls in the same order"
        )

    def termination_error(self) -> DistoptError:
        """Return why this process was told to end: for a handler of SIGTERM, which MPI launchers send to the survivors.

        PeerLostError if a rank of this host is dead; JobAbortedError with the reason that another rank gave, or
        without one. May be raised by the handler. The communicator cannot be used any more.
        """
        self.has_failed = True
        now = self._situation()
        known = self._known_end(now)
        return known or JobAbortedError(f"rank {self.rank} was told to end at step {self.step}; {now}")

    def _known_end(self, now: str) -> DistoptError | None:
        """Return what is known of why a wait failed: the reason that another rank gave, or its death."""
        with contextlib.suppress(self._mpi.Exception):  # MPICH refuses to receive once a rank is dead
            self._notes.read()
        if self._notes.ended is not None:
            source, reason = self._notes.ended
            return JobAbortedError(f"rank {source} ended the job: {reason}; {now}")
        if dead := self._host_peers.first_dead():
            return PeerLostError(f"{dead} at step {self.step}; {now}")
        return None

    def abort(self, status: int = 1, reason: str = "") -> NoReturn:
        """End the job, all of its ranks, with this ``status``; ``reason`` is what the others' errors then say."""
        faulthandler.dump_traceback_later(_GRACE_S, exit=True, file=sys.__stderr__ or 2)  # aborting may hang, too
        if self.size > 1:
            self._notes.tell_end(reason or f"rank {self.rank} failed at step {self.step}")
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        if not self.has_lost:  # after losses, the launcher of Open MPI 5.0.11 may hang if it is told to end the others
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
            all_are_done = mpi_survivors.agree(self._mpi, self._comm, True)
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
            waiting = _waiting(self.rank, self.step, last_look_s - started_s, missing, "leaving")
            self._notes.read()
            self._raise_if_aborted(waiting)
            last_look_s = time.monotonic()
            lost = self._host_peers.first_lost(last_look_s)
            if lost and lost.rank not in self._notes.left:
                self.has_failed = True
                raise PeerLostError(f"{lost} at step {self.step}; {waiting}")
            if last_look_s >= deadline_s:
                self.has_failed = True
                raise CollectiveTimeoutError(waiting)
            time.sleep(_MAX_PAUSE_S)
        if self._channel is not None and not self.has_failed:
            self._channel.cancel()
        self._host_peers.close()

    def survivors(self) -> MpiCommunicator:
        if not self.survives_losses:
            return super().survivors()  # type: ignore[return-value]  # it raises
        mpi, timeout_s, comm = self._mpi, self.timeout_s, self._comm
        mpi_survivors.revoke(mpi, comm, self._notes.comm)
        self._give_up()
        watchdog = Watchdog(timeout_s + _GRACE_S, self._end_stuck)
        watchdog.begin("meeting the survivors")
        try:
            if not self._has_agreed:
                mpi_survivors.agree(mpi, comm, False)
            while True:
                comm = mpi_survivors.shrink(mpi, comm)
                found: MpiCommunicator | None = None
                others = list(_open)
                try:
                    found = MpiCommunicator(
                        comm,
                        timeout_s=timeout_s,
                        stopped_timeout_s=self._stopped_timeout_s,
                        survives_losses=True,
                        end_process=self._end_process,
                    )
                except (mpi.Exception, PeerLostError):
                    mpi_survivors.revoke(mpi, comm)
                if mpi_survivors.agree(mpi, comm, found is not None) and found is not None:
                    _undone.append(self._begun)  # MPI may still use the buffers
                    found.has_lost = True
                    return found
                for made in [made for made in _open if made not in others]:
                    made._give_up()
        finally:
            watchdog.close()

    def _give_up(self) -> None:
        """Leave without a word to the others."""
        _open.remove(self)
        self._closed = self.has_failed = True
        self._close_host_group()
        self._host_peers.close()
        self._watchdog.close()

    def _complete(self, wait: _Wait, look: Any) -> list[MPI.Status]:
        """Return when all requests are done: test, then yield the core, then sleep for longer and longer."""
        self._wait = wait
        self._statuses = statuses = [self._mpi.Status() for _ in wait.requests]
        test_all = self._mpi.Request.Testall
        yields = 0
        looked_s = wait.started_s
        deadline_s = wait.started_s + self.timeout_s
        while not test_all(wait.requests, statuses):
            if yields < _YIELDS:
                yields += 1
                os.sched_yield()
                continue
            now_s = time.monotonic()
            if now_s - looked_s >= _LOOK_EVERY_S:
                if now_s - looked_s > _GAP_S:
                    deadline_s += now_s - looked_s
                looked_s = now_s
                self._note_arrivals(wait, wait.missing(), now_s)
                look(wait)
                if now_s >= deadline_s:
                    raise CollectiveTimeoutError(self._situation())
            time.sleep(min(wait.max_pause_s, max(_MIN_PAUSE_S, _PAUSE_SHARE * (now_s - wait.started_s))))
        if self._arrivals is not None:
            self._note_arrivals(wait, [], time.monotonic())
            self._arrivals = None
        self._wait = None
        return statuses

    def _note_arrivals(self, wait: _Wait, missing: Sequence[int], now_s: float) -> None:
        """Take in who has not come, and log who comes late."""
        if self._arrivals is None:
            self._arrivals = Arrivals(self.rank, wait.started_s)
        late_s = self._arrivals.lateness_s(now_s)
        came = self._arrivals.note(wait.peers, missing, now_s)
        if came and late_s >= _LATE_S:
            logger.warning("%s at step %d: %s", self._late(came, late_s, "came"), self.step, wait.what)

    def _late(self, ranks: Sequence[int], late_s: float, verb: str) -> str:
        # All ranks run one program: the phase that led to this wait here is the one that they are late in.
        phase = f" in phase {self.phase!r}" if self.phase else ""
        return f"{name_ranks(ranks)} {verb} {late_s:.1f} s later than the median of the others{phase}"

    def _look_at_nothing(self, wait: _Wait) -> None:
        """Nothing is known of the others yet."""

    def look(self, missing: Sequence[int], waiting: str) -> None:
        self._read_notes(waiting)
        self._raise_if_aborted(waiting)
        if left := sorted(self._notes.left.intersection(missing)):
            raise PeerLostError(f"{name_ranks(left)} left at step {self.step}; {waiting}")
        if lost := self._host_peers.first_lost():
            if self._end_process is not None and not self._host_peers.first_dead():
                self._end_process(lost.pid)  # it is only stopped, and would go on later
            self._read_notes(waiting)  # it may have said why before it ended
            self._raise_if_aborted(waiting)
            raise PeerLostError(f"{lost} at step {self.step}; {waiting}")

    def _read_notes(self, waiting: str) -> None:
        """Take in the notes.

        Raises: PeerLostError if MPI knows of a loss.
        """
        if self.survives_losses and mpi_survivors.has_losses(self._comm):
            dead = self._host_peers.first_dead()
            raise PeerLostError(f"{dead or 'another rank is lost'} at step {self.step}; {waiting}")
        try:
            self._notes.read()
        except self._mpi.Exception as error:
            raise self._known_end(waiting) or PeerLostError(
                f"MPI failed at step {self.step}: {error}; {waiting}"
            ) from error

    def begin_wait(self, wait: Wait) -> None:
        self._wait = wait

    def end_wait(self) -> None:
        self._wait = None

    def _look(self, wait: _Wait) -> None:
        """Raise if a wait is in vain."""
        self.look(wait.missing(), self._situation())
        if self._notes.others_mean_something_else(wait.label):
            self.has_failed = True
            raise self._labels_differ(wait.label)

    def _raise_if_aborted(self, waiting: str) -> None:
        if self._notes.ended is not None:
            self.has_failed = True
            source, reason = self._notes.ended
            raise JobAbortedError(f"rank {source} ended the job: {reason}; {waiting}")

    def _situation(self) -> str:
        """Return what this rank is waiting for, as part of a message."""
        wait = self._wait
        if wait is None:
            return f"rank {self.rank} waited for nothing"
        now_s, missing = time.monotonic(), wait.missing()
        waiting = _waiting(self.rank, self.step, now_s - wait.started_s, missing, wait.what)
        if self._arrivals is None or not isinstance(wait, _Wait) or wait.everyone:
            return waiting
        return f"{waiting}; {self._late(missing, self._arrivals.lateness_s(now_s), 'would come')}"

    def _check_lengths(self, statuses: list[MPI.Status], expected: list[int], peers: list[int], what: str) -> None:
        for status, length, peer in zip(statuses, expected, peers, strict=False):
            if (count := status.Get_count(self._mpi.BYTE)) != length:
                raise RemoteProtocolError(
                    f"rank {self.rank} expected {length} bytes from rank {peer} at step {self.step} "
                    f"and got {count}: {what}"
                )

    def _translated(self, error: Exception, what: str, label: bytes) -> DistoptError:
        where = f"rank {self.rank} at step {self.step}: {what}: {error}"
        if self.survives_losses and mpi_survivors.has_losses(self._comm):
            dead = self._host_peers.first_dead()
            return PeerLostError(f"{dead or 'another rank is lost'}; {where}")
        codes = [getattr(error, "Get_error_class", lambda: None)()]
        if codes == [self._mpi.ERR_IN_STATUS]:
            codes = [self._mpi.Get_error_class(status.Get_error()) for status in self._statuses]
        if self._mpi.ERR_TRUNCATE in codes:
            if label:  # what does not fit came from another call
                return self._labels_differ(label)
            return RemoteProtocolError(f"a peer sent more than was expected of it; {where}")
        deadline_s = time.monotonic() + _MOMENT_S
        while (known := self._known_end(where)) is None and time.monotonic() < deadline_s:
            time.sleep(_MAX_PAUSE_S)
        return known or PeerLostError(f"MPI failed; {where}")

    def _end_stuck(self, what: str) -> None:
        message = f"distopt: rank {self.rank} is stuck inside MPI at step {self.step}, its wait overdue: {what}\n"
        os.write(2, message.encode())
        self.abort(1, message)


def _chunks(array: Array) -> Iterator[Array]:
    """Return the bytes of ``array`` as messages: one at least, even if it is empty."""
    flat = bytes_of(array)
    for start in range(0, max(1, len(flat)), _CHUNK_BYTES):
        yield flat[start : start + _CHUNK_BYTES]


def _unlink_shared_memory(maps: Path = Path("/proc/self/maps")) -> None:
    """Remove the names of the segments that MPI shares between the ranks of a host, which all have mapped them.

    Open MPI and MPICH remove them when they finalize. So they would stay for ever where that is not reached: under
    Open MPI if all ranks and the launcher are killed at once, under MPICH after any abort or kill.
    """
    try:
        lines = maps.read_text().splitlines()
    except OSError:
        return
    # Of a segment whose name is gone, the last word is "(deleted)".
    for path in {line.split()[-1] for line in lines if line[-1] != ")" and any(s in line for s in _MPI_SEGMENTS)}:
        with contextlib.suppress(OSError):  # a peer was faster
            os.unlink(path)


def _waiting(rank: int, step: int, seconds: float, missing: Sequence[int], what: str) -> str:
    return f"rank {rank} waited {seconds:.1f} s in step {step} for {name_ranks(missing)}: {what}"


_open: list[MpiCommunicator] = []
_undone: list[Any] = []
"""Requests of communicators that lost a rank."""


@atexit.register
def _end_mpi() -> None:
    """Leave MPI in a way that cannot hang; see the head of this file."""
    for comm in _open:
        try:
            if hasattr(sys, "last_value"):
                comm.abort(1, f"rank {comm.rank} ended with {type(sys.last_value).__name__}: {sys.last_value}")
            comm.finish()
        except DistoptError as error:
            os.write(2, f"distopt: {error}\n".encode())
        if comm.has_failed:
            comm.abort(1)
    if any(comm.has_lost for comm in _open):  # to finalize may hang; the launcher takes this as a good end, too
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(0)
    if _open and not _open[0]._mpi.Is_finalized():
        # It keeps the interpreter's lock, so that no thread of ours could end it.
        faulthandler.dump_traceback_later(2 * _GRACE_S, exit=True, file=sys.__stderr__ or 2)
        _open[0]._mpi.Finalize()
        faulthandler.cancel_dump_traceback_later()
