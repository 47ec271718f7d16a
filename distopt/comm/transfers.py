"""What an exchange between ranks is made of: buffers that are sent and received, what is counted, who is waited for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from distopt.types import Array


@dataclass
class Traffic:
    """Bytes of payload that crossed the boundary of this process, and seconds spent sending and waiting."""

    bytes_sent: int = 0
    bytes_received: int = 0
    send_s: float = 0.0
    wait_s: float = 0.0
    early_bytes: int = 0
    """Bytes that left before the exchange that counts them as sent; see :mod:`distopt.comm.early`."""


class Send(NamedTuple):
    """One buffer for ``peer``: contiguous, not written to until ``exchange`` has returned."""

    peer: int
    array: Array


class Receive(NamedTuple):
    """Where the next buffer from ``peer`` goes: contiguous, of exactly its number of bytes."""

    peer: int
    array: Array


class Wait(Protocol):
    """What a rank waits for, as errors tell it."""

    @property
    def what(self) -> str: ...

    @property
    def label(self) -> bytes: ...

    @property
    def started_s(self) -> float: ...

    @property
    def on_host(self) -> bool:
        """Whether it is a meeting of the ranks of a host."""
        ...

    def missing(self) -> list[int]:
        """Return the ranks that are waited for."""
        ...


def bytes_of(array: Array) -> Array:
    """Return the memory of a contiguous ``array`` as bytes; for transports.

    Raises: ValueError if it is not contiguous.
    """
    if not array.flags.c_contiguous:
        raise ValueError(f"only contiguous arrays can be exchanged, not one of shape {array.shape} with gaps")
    return array.reshape(-1).view(np.uint8)


def others_of(place: int, count: int) -> list[int]:
    """Return the other ones of ``count``, the next one first, so that not all send to the same one at once.

    >>> others_of(1, 4)
    [2, 3, 0]
    """
    return [*range(place + 1, count), *range(place)]


def name_ranks(ranks: Sequence[int]) -> str:
    """Return ``ranks`` for a message.

    >>> name_ranks([2]), name_ranks([0, 3])
    ('rank 2', 'ranks 0, 3')
    """
    return f"rank{'s' if len(ranks) != 1 else ''} {', '.join(map(str, ranks)) or '-'}"


def describe_wait(rank: int, step: int, seconds: float, missing: Sequence[int], what: str) -> str:
    """Return who waited for whom, as part of a message."""
    return f"rank {rank} waited {seconds:.1f} s in step {step} for {name_ranks(missing)}: {what}"
