"""Threads of the BLAS: how a matrix product is divided among them decides its last bits."""

from __future__ import annotations

from types import TracebackType

import threadpoolctl


class PinnedThreads:
    """Holds the BLAS of this process at ``num_threads`` threads from its making on; a ``with`` block undoes that."""

    count = 0
    """How many are in force."""

    def __init__(self, num_threads: int) -> None:
        self._limits = threadpoolctl.threadpool_limits(limits=num_threads, user_api="blas")
        PinnedThreads.count += 1

    def __enter__(self) -> PinnedThreads:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._limits.restore_original_limits()
        PinnedThreads.count -= 1


def pin_threads(num_threads: int) -> PinnedThreads:
    """Hold the BLAS of this process at ``num_threads`` threads from now on.

    What comes back undoes it at the end of a ``with`` block; without one, it holds for the life of the process.
    """
    return PinnedThreads(num_threads)


def pin_threads_by_default() -> None:
    """Hold the BLAS at one thread unless :func:`pin_threads` has chosen a number."""
    if PinnedThreads.count == 0:
        PinnedThreads(1)
