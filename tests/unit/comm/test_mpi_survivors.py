"""How ranks connect when some are lost meanwhile; MPI is a stand-in, whose ranks are one process."""

from __future__ import annotations

from typing import Any

import pytest

from distopt.comm import mpi_survivors
from distopt.comm.watchdog import Watchdog
from distopt.errors import PeerLostError


class MpiError(Exception):
    """What a call of the stand-in may raise."""


class Mpi:
    Exception = MpiError


class Comm:
    """A communicator of ``size`` ranks; as these agree, and then those that are left, so many are lost each time."""

    def __init__(self, size: int, *later_losses: int, others_connect: bool = True) -> None:
        self.size, self.later_losses, self.others_connect = size, later_losses, others_connect
        self.calls: list[str] = []

    def Revoke(self) -> None:
        self.calls.append("revoke")

    def Agree(self, flag: int) -> int:
        self.calls.append(f"agree {flag}")
        if self.later_losses and self.later_losses[0]:
            raise MpiError("a rank is lost")
        return int(flag and self.others_connect)

    def Shrink(self) -> Comm:
        self.calls.append("shrink")
        return Comm(self.size - sum(self.later_losses[:1]), *self.later_losses[1:])

    def Get_size(self) -> int:
        return self.size


def joined(comm: Comm, *failures: Exception | None) -> list[Comm]:
    """Return the communicators that were connected, one after the other; each time with one of ``failures``."""
    tried: list[Comm] = []

    def connect(of: Any) -> None:
        tried.append(of)
        if failure := dict(enumerate(failures)).get(len(tried) - 1):
            raise failure

    watchdog = Watchdog(60.0, lambda what: None)
    try:
        mpi_survivors.join(Mpi, comm, connect, watchdog)  # type: ignore[arg-type]  # a stand-in
    finally:
        watchdog.close()
    return tried


def test_ranks_that_all_connect_agree_once() -> None:
    (comm,) = joined(Comm(3))
    assert comm.calls == ["agree 1"]


@pytest.mark.parametrize("seen", [PeerLostError("rank 1 is lost"), MpiError("revoked"), None])
def test_rank_lost_while_all_connect_is_left_out_whether_or_not_this_one_has_seen_it(seen: Exception | None) -> None:
    first, second = joined(Comm(3, 1), seen)
    assert first.calls == [*(["revoke", "agree 0"] if seen else ["agree 1"]), "shrink"]
    assert (second.size, second.calls) == (2, ["agree 1"])


def test_ranks_lost_one_after_the_other_while_all_connect_are_left_out() -> None:
    assert [comm.size for comm in joined(Comm(5, 2, 1), PeerLostError("0"), PeerLostError("1"))] == [5, 3, 2]


def test_failure_to_connect_without_a_loss_is_an_error_and_not_tried_again() -> None:
    with pytest.raises(MpiError, match="out of communicators"):
        joined(Comm(3), MpiError("out of communicators"))
    with pytest.raises(PeerLostError, match="another rank could not connect, though nobody is lost"):
        joined(Comm(3, others_connect=False))
