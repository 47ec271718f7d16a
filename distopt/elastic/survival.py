"""What processes do when one of them is lost, whatever it is that they go on with."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from distopt.comm.communicator import Communicator
from distopt.errors import PeerLostError

Result = TypeVar("Result")


def carry_out(
    attempt: Callable[[Communicator], Result],
    communicator: Communicator,
    *,
    lost: Callable[[PeerLostError], object],
    survived: Callable[[Communicator], object],
) -> Result:
    """Return ``attempt(communicator)``, made again with a communicator of the survivors whenever a process is lost.

    All who are left then have finished it. ``lost`` gets the error, and may raise it; ``survived`` the communicator of
    the survivors.

    Raises: PeerLostError where losses are not survived; what ``attempt`` raises.
    """
    while True:
        try:
            result = attempt(communicator)
            communicator.finish()
            return result
        except PeerLostError as error:
            if not communicator.survives_losses:
                raise
            lost(error)
        # Not where the error is handled: it keeps all that the step was working with.
        communicator.phase = "recovery"
        communicator = communicator.survivors()
        survived(communicator)


def furthest(communicator: Communicator, own: tuple[int, ...]) -> tuple[int, tuple[int, ...]] | None:
    """Return the first process that has the furthest state, and the position of that; a collective.

    ``own``: the position of this one's, empty if it has none. None where nobody has one.
    """
    told = [tuple(map(int, text.split())) for text in communicator.all_gather_bytes(" ".join(map(str, own)).encode())]
    best = max(told)
    return (told.index(best), best) if best else None
