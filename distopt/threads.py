"""Threads of this process that share a loop over a large array.

Theory of operation. A loop that releases the interpreter lock is cut into parts that touch different elements; the
caller runs the first part, and threads that wait for work run the others. What an element becomes does not depend on
who computes it, so the number of threads decides no bit. Threads are started when they are first needed and live as
long as the process; a process that is forked off starts its own. Numba's own threads are not used: they abort where
several threads of a program call them at once.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any

_chosen: list[int | None] = [None]
_is_alone = [True]


def num_threads() -> int:
    """Return how many threads share a loop: the number chosen, or else the processors that this process may use.

    Where a strategy spans processes it is 1 unless chosen: those of one host would fight for its processors.
    """
    if _chosen[0] is not None:
        return _chosen[0]
    return available_processors() if _is_alone[0] else 1


def set_num_threads(number: int | None) -> None:
    """Let ``number`` threads share a loop from now on; ``None``: as many as :func:`num_threads` says.

    Raises: ValueError for a number below 1.
    """
    if number is not None and number < 1:
        raise ValueError(f"a loop needs at least 1 thread, not {number}")
    _chosen[0] = number


def share_processors_by_default() -> None:
    """Run loops in one thread, unless a number has been chosen: other processes of the job use the processors, too."""
    _is_alone[0] = False


def available_processors() -> int:
    """Return how many processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_parts(loop: Callable[..., None], arguments_of: Sequence[Sequence[Any]]) -> None:
    """Call ``loop`` with each of ``arguments_of``, at the same time, and return when all calls have ended.

    Raises: the first exception of a call, after all have ended.
    """
    first, *others = arguments_of
    pool = _pool(len(others))
    ended: SimpleQueue[BaseException | None] = SimpleQueue()
    for arguments in others:
        pool.put((loop, arguments, ended))
    failure: BaseException | None = None
    try:
        loop(*first)
    finally:
        # Also after a failure here: the caller must not see arrays that are still written to.
        for _ in others:
            failure = ended.get() or failure
    if failure is not None:
        raise failure


_Work = tuple[Callable[..., None], Sequence[Any], "SimpleQueue[BaseException | None]"]
_work: SimpleQueue[_Work] = SimpleQueue()
_started: list[threading.Thread] = []
_starting = threading.Lock()


def _pool(size: int) -> SimpleQueue[_Work]:
    if len(_started) < size:
        with _starting:
            while len(_started) < size:
                thread = threading.Thread(target=_serve, args=(_work,), name="distopt-loop", daemon=True)
                thread.start()
                _started.append(thread)
    return _work


def _serve(work: SimpleQueue[_Work]) -> None:
    while True:
        loop, arguments, ended = work.get()
        failure: BaseException | None = None
        try:
            loop(*arguments)
        except BaseException as error:  # noqa: BLE001 - it is raised where the loop was asked for
            failure = error
        ended.put(failure)
        del loop, arguments, ended, failure


def _after_fork() -> None:
    global _work, _starting
    _work, _starting = SimpleQueue(), threading.Lock()
    _started.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
