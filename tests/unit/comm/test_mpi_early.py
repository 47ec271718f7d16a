"""What a channel of early messages knows to be under way; MPI is a stand-in."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np

from distopt.comm.communicator import Traffic
from distopt.comm.early import Expected
from distopt.comm.mpi_early import MpiChannel


class Request:
    def __init__(self, buffer: Any) -> None:
        self.buffer = buffer


class Comm:
    """Begins whatever is asked for; a request keeps its buffer, as one of mpi4py does."""

    def Isend(self, message: list[Any], peer: int, tag: int) -> Request:
        return Request(message[0])

    Irecv = Isend


class Rank:
    traffic = Traffic()

    def failed(self, error: Exception, what: str) -> Any:
        raise NotImplementedError


MPI = SimpleNamespace(BYTE="byte", Exception=OSError)


def channel() -> MpiChannel:
    return MpiChannel(MPI, Comm(), Rank(), num_tags=8)  # type: ignore[arg-type]  # a stand-in


def test_buffers_outlive_batches_that_were_not_ended() -> None:
    made = channel()
    sent, received = np.ones(3), np.empty(3)
    references = [weakref.ref(sent), weakref.ref(received)]
    batch = made.batch(1, [Expected(1, 0, received)])
    assert batch is not None
    batch.open()
    batch.send(1, 0, sent)
    kept = made.requests()
    del batch, made, sent, received
    gc.collect()
    assert len(kept) == 2
    assert all(reference() is not None for reference in references)


def test_nothing_is_under_way_once_a_batch_is_ended() -> None:
    made = channel()
    batch: Any = made.batch(1, [])
    assert made.requests() == []
    batch.send(1, 0, np.ones(3))
    assert len(made.requests()) == 1
    batch.end([None])
    assert made.requests() == []
