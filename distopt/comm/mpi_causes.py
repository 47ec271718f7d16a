"""Why a wait under MPI is in vain, or has failed: what other ranks have said, who is dead, what MPI reports.

MPI's own errors say little. What is known beside them is asked for in this order: the reason that another rank gave in
a note, the death of a process of this host, what MPI knows of losses.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from distopt.comm import mpi_start, mpi_survivors
from distopt.comm.communicator import Communicator, name_ranks
from distopt.comm.host_peers import HostPeers
from distopt.comm.long_waits import SAME_CALLS, Called, Standstill, calls_differ
from distopt.comm.mpi_notes import Notes
from distopt.comm.mpi_waits import MAX_PAUSE_S
from distopt.errors import (
    DistoptError,
    JobAbortedError,
    MergeOrderError,
    MistakeError,
    PeerLostError,
    RemoteProtocolError,
)

if TYPE_CHECKING:
    from mpi4py import MPI

_MOMENT_S: Final = 0.2
"""So soon after MPI has failed, it is known that a process of this host is dead: its memory goes before itself."""


class Causes:
    """What ``owner``, whose messages go over ``comm``, knows of the others; ``mpi`` is mpi4py's module.

    ``end_process`` gets the process id of a rank of this host that is stopped.
    """

    def __init__(
        self,
        mpi: Any,
        owner: Communicator,
        comm: MPI.Intracomm,
        notes: Notes,
        end_process: Callable[[int], object] | None,
    ) -> None:
        self._mpi, self._owner = mpi, owner
        self.comm, self.notes = comm, notes
        self._end_process = end_process
        self.host_peers = HostPeers(0, [b""])
        self._standstill = Standstill()

    def look(self, missing: Sequence[int], waiting: str, called: Called | None) -> None:
        """Raise if it is in vain to wait, in ``called``, for the ranks ``missing``; ``waiting`` says what for."""
        self._read_notes(waiting)
        self._raise_if_others_are_elsewhere(called)
        self.raise_if_aborted(waiting)
        if left := sorted(self.notes.left.intersection(missing)):
            raise PeerLostError(f"{name_ranks(left)} left at step {self._owner.step}; {waiting}")
        if lost := self.host_peers.first_lost():
            if self._end_process is not None and not self.host_peers.first_dead():
                for pid in self.host_peers.stopped():
                    self._end_process(pid)  # it is only stopped, and would go on later
            self._read_notes(waiting)  # it may have said why before it ended
            self.raise_if_aborted(waiting)
            raise PeerLostError(f"{lost} at step {self._owner.step}; {waiting}")

    def _raise_if_others_are_elsewhere(self, called: Called | None) -> None:
        owner, notes = self._owner, self.notes
        if called is not None and notes.others_mean_something_else(called):
            owner.fail()
            raise self.calls_differ(called)
        untold = () if notes.ended else set(range(owner.size)) - notes.left - notes.waits.keys()
        if error := self._standstill.error(notes.waits, untold, time.monotonic()):
            owner.fail()
            raise error

    def raise_if_aborted(self, waiting: str) -> None:
        """Raise if another rank has said that it ends the job."""
        if self.notes.ended is not None:
            self._owner.fail()
            source, reason = self.notes.ended
            raise JobAbortedError(f"rank {source} ended the job: {reason}; {waiting}")

    def known_end(self, now: str) -> DistoptError | None:
        """Return what is known of why a wait failed: the reason that another rank gave, or its death."""
        with contextlib.suppress(self._mpi.Exception):  # MPICH refuses to receive once a rank is dead
            self.notes.read()
        if self.notes.ended is not None:
            source, reason = self.notes.ended
            return JobAbortedError(f"rank {source} ended the job: {reason}; {now}")
        if dead := self.host_peers.first_dead():
            return PeerLostError(f"{dead} at step {self._owner.step}; {now}")
        return None

    def calls_differ(self, called: Called) -> MistakeError:
        """Return the error for calls that differ, having told all others mine and heard theirs."""
        owner = self._owner
        theirs = self.notes.exchange_calls(called)
        calls = {rank: wait.called for rank, wait in self.notes.waits.items()} | theirs | {owner.rank: called}
        untold = set(range(owner.size)) - {owner.rank} - self.notes.left - theirs.keys()
        if untold or len({each.what for each in calls.values()}) > 1:
            owner.fail()  # what is under way can no longer be told apart
        return calls_differ(calls) or MergeOrderError(
            f"rank {owner.rank} comes to {called.what!r} where another rank has made another call; {SAME_CALLS}"
        )

    def translated(
        self, error: Exception, statuses: Sequence[MPI.Status], what: str, called: Called | None = None, tag: int = 0
    ) -> DistoptError:
        """Return our error for MPI's; ``statuses`` are those of its requests; ``tag``: that of ``called``."""
        where = f"rank {self._owner.rank} at step {self._owner.step}: {what}: {error}"
        if self._owner.survives_losses and mpi_survivors.has_losses(self.comm):
            return PeerLostError(f"{self._who_is_lost()}; {where}")
        codes = [getattr(error, "Get_error_class", lambda: None)()]
        if codes == [self._mpi.ERR_IN_STATUS]:
            codes = [self._mpi.Get_error_class(status.Get_error()) for status in statuses]
        if self._mpi.ERR_TRUNCATE in codes:
            tags = [
                status.Get_tag()
                for status in statuses
                if self._mpi.Get_error_class(status.Get_error()) == self._mpi.ERR_TRUNCATE
            ]
            if called is not None and (called.label or any(found >> 1 != tag >> 1 for found in tags)):
                return self.calls_differ(called)
            return RemoteProtocolError(f"a peer sent more than was expected of it; {where}")
        deadline_s = time.monotonic() + _MOMENT_S
        while (known := self.known_end(where)) is None and time.monotonic() < deadline_s:
            time.sleep(MAX_PAUSE_S)
        return known or PeerLostError(f"MPI failed; {where}")

    def look_for_losses(self, waiting: str) -> None:
        """Raise if a rank is known to be lost: to MPI, or, before all ranks know each other, as a process of this host.

        ``waiting`` says what for.
        """
        step = self._owner.step
        if self._owner.survives_losses and mpi_survivors.has_losses(self.comm):
            raise PeerLostError(f"{self._who_is_lost()} at step {step}; {waiting}")
        if lost := mpi_start.lost():
            raise PeerLostError(f"{lost} at step {step}; {waiting}")

    def are_ended_by_exit(self) -> bool:
        """Return whether the job ends when this process exits with a status, so that it need not be aborted.

        A launcher that lets survivors live takes it for a good end, with status 0, or hangs, if all ranks that are left
        abort, or the only one; once a rank was lost, a status ends the others, too (Open MPI 5.0.11). So of ranks that
        end without a loss, the first aborts.
        """
        if not mpi_start.lets_survivors_live():
            return False
        if self._mpi.COMM_WORLD.Get_size() == 1 or self.host_peers.dead():
            return True
        with contextlib.suppress(self._mpi.Exception):
            if mpi_survivors.has_losses(self.comm):
                return True
        return any(rank < self._owner.rank for rank in self.notes.left)

    def _who_is_lost(self) -> str:
        """Say who is lost, of whom MPI knows that somebody is."""
        if known := self.host_peers.first_dead() or mpi_start.lost():
            return str(known)
        ranks = mpi_survivors.lost_ranks(self._mpi, self.comm)
        if not ranks:
            return "another rank is lost"  # one that knows which has said so
        return f"{name_ranks(ranks)} {'is' if len(ranks) == 1 else 'are'} lost"

    def _read_notes(self, waiting: str) -> None:
        """Take in the notes.

        Raises: PeerLostError if MPI knows of a loss.
        """
        self.look_for_losses(waiting)
        try:
            self.notes.read()
        except self._mpi.Exception as error:
            raise self.known_end(waiting) or PeerLostError(
                f"MPI failed at step {self._owner.step}: {error}; {waiting}"
            ) from error
