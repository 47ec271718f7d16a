"""What the ranks of an MPI job do when one of them is lost, where the launcher lets the others live.

The user-level failure mitigation of MPI (ULFM) has three calls for this: *revoke* makes every wait on a communicator
end with an error, on all ranks; *agree* and *shrink* work in spite of losses, and end alike on all survivors.

Rules of this file:

- On each communicator every rank agrees exactly once: on one that others are made of, whether these connect all; on
  such a one, whether the job is done. Who has come so far says yes, who has seen a loss says no. So a rank that has all
  it needs and one that misses something never part.
- ``agree`` and ``shrink`` block until all survivors have come; the caller's watchdog limits them. Their variants that
  do not block corrupted memory where a rank was lost (Open MPI 5.0.11).

Source: Bland et al. 2013, "Post-failure recovery of MPI communication capability"; MPI 5.0 Forum, ticket 20 (ULFM).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from distopt.comm import mpi_start
from distopt.comm.watchdog import Watchdog
from distopt.errors import PeerLostError

if TYPE_CHECKING:
    from mpi4py import MPI

logger = logging.getLogger(__name__)


def has_losses(comm: MPI.Intracomm) -> bool:
    """Return whether a rank of ``comm`` is known to be lost, or another rank has seen a loss."""
    return bool(comm.Is_revoked()) or comm.Get_failed().Get_size() > 0


def lost_ranks(mpi: Any, comm: MPI.Intracomm) -> list[int]:
    """Return the ranks of ``comm`` that MPI knows to be lost; none where only another rank knows which."""
    failed, everyone = comm.Get_failed(), comm.Get_group()
    try:
        ranks = mpi.Group.Translate_ranks(failed, list(range(failed.Get_size())), everyone)
        return sorted(int(rank) for rank in ranks)
    finally:
        failed.Free()
        everyone.Free()


def revoke(mpi: Any, *comms: MPI.Intracomm) -> None:
    """End all waits on ``comms``, on all ranks."""
    for comm in comms:
        with contextlib.suppress(mpi.Exception):
            comm.Revoke()


def agree(mpi: Any, comm: MPI.Intracomm, is_done: bool) -> bool:
    """Return whether all ranks have called this with ``is_done`` and none is lost; the same on all survivors."""
    try:
        return bool(comm.Agree(int(is_done)))
    except mpi.Exception:
        return False  # somebody is lost


def shrink(mpi: Any, comm: MPI.Intracomm) -> MPI.Intracomm:
    """Return a communicator of the survivors, in the order of their ranks."""
    while True:
        try:
            return cast("MPI.Intracomm", comm.Shrink())
        except mpi.Exception:  # another loss meanwhile
            continue


def join(mpi: Any, comm: MPI.Intracomm, connect: Callable[[MPI.Intracomm], object], watchdog: Watchdog) -> None:
    """Return when ``connect(comm)`` has gone well on all ranks, or that with a communicator of those that are left.

    ``connect`` must fail where another rank has failed and so has revoked what it was given.

    Raises: PeerLostError, or what ``connect`` raises, if it fails though nobody is lost.
    """
    while True:
        failure: Exception | None = None
        try:
            connect(comm)
        except (mpi.Exception, PeerLostError) as error:
            failure = error
            revoke(mpi, comm)
        watchdog.begin("meeting all ranks that are there")
        all_have_connected = agree(mpi, comm, failure is None)
        left = comm if all_have_connected else shrink(mpi, comm)
        watchdog.end()
        mpi_start.all_have_started()  # all have left MPI_Init: MPI tells them who is lost from now on
        if all_have_connected:
            return
        if left.Get_size() == comm.Get_size():
            raise failure or PeerLostError("another rank could not connect, though nobody is lost")
        logger.warning("%s", failure or "a rank is lost that had connected")
        comm = left
