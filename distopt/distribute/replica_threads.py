"""Running the replicas of one process: a thread each, one after another, meeting in ``merge_call``.

Theory of operation: the caller of :meth:`ReplicaThreads.run` starts replica 0 and sleeps. A replica runs until its
function returns or it calls :meth:`ReplicaThreads.merge`; then it starts the next one itself, and the last one wakes
the caller. So exactly one thread runs at a time, always in replica order, which keeps variable creation, reads and
writes in one order. If every replica waits in a merge, the caller runs the merge function once and starts the next
lap; if all have returned, it returns; a mixture is an error.

Source: the behaviour of ``tf.distribute.MirroredStrategy`` (replica threads that run up to a ``merge_call``).
"""

from __future__ import annotations

import contextvars
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from distopt.errors import ReplicaContextError


class _ReplicaStoppedError(BaseException):
    """Raised inside a waiting replica whose run was given up; never leaves its thread."""


class _Replica:
    """One thread and what it exchanges with the caller."""

    def __init__(self) -> None:
        self.go = threading.Semaphore(0)
        self.function: Callable[[], Any] | None = None
        self.returned: Any = None
        self.error: BaseException | None = None
        self.merge: tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]] | None = None
        self.merged: Any = None
        self.give_up = False
        self.closed = False
        self.next: threading.Semaphore


class ReplicaThreads:
    """``num_replicas`` parked threads, kept between runs; :meth:`close` ends them."""

    def __init__(self, num_replicas: int) -> None:
        self._caller = threading.Semaphore(0)
        self._replicas = [_Replica() for _ in range(num_replicas)]
        for replica, following in zip(self._replicas, self._replicas[1:], strict=False):
            replica.next = following.go
        self._replicas[-1].next = self._caller
        self._threads = [
            threading.Thread(target=_serve, args=(replica,), name=f"distopt-replica-{i}", daemon=True)
            for i, replica in enumerate(self._replicas)
        ]
        self._busy = False
        for thread in self._threads:
            thread.start()
        self._finalizer = weakref.finalize(self, _end, self._replicas, self._threads)

    def run(self, functions: Sequence[Callable[[], Any]], merge: Callable[..., Sequence[Any]]) -> list[Any]:
        """Run one function on each replica and return what they returned, in order.

        ``merge(merge_fn, args_of_each_replica, kwargs_of_each_replica)`` is called in this thread for every lap in
        which all replicas wait, and returns one result a replica.

        Raises: the first replica's exception, in replica order; ReplicaContextError if replicas disagree on how
        often they merge, or for a run inside a run.
        """
        if self._busy:
            raise ReplicaContextError("strategy.run was called while replicas of the same strategy are running")
        self._busy = True
        try:
            for replica, function in zip(self._replicas, functions, strict=True):
                context = contextvars.copy_context()
                replica.function = lambda context=context, function=function: context.run(function)
            while True:
                self._lap()
                waiting = [replica for replica in self._replicas if replica.merge is not None]
                error = next((replica.error for replica in self._replicas if replica.error is not None), None)
                if error is None and len(waiting) == len(self._replicas):
                    self._merge(merge)
                    continue
                if waiting:
                    self._give_up()
                if error is not None:
                    raise error
                if waiting:
                    raise ReplicaContextError(
                        f"{len(waiting)} of {len(self._replicas)} replicas wait for the others in a merge_call or "
                        "all_reduce that the others have not made; every replica must make the same calls"
                    )
                return [replica.returned for replica in self._replicas]
        finally:
            for replica in self._replicas:
                replica.function = replica.returned = replica.error = replica.merge = replica.merged = None
            self._busy = False

    def merge(self, index: int, merge_fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Called on the ``index``-th replica's thread: wait for all replicas and return this one's result."""
        replica = self._replicas[index]
        replica.merge = (merge_fn, args, kwargs)
        replica.next.release()
        replica.go.acquire()
        if replica.give_up:
            raise _ReplicaStoppedError
        result, replica.merged = replica.merged, None
        return result

    def close(self) -> None:
        """End the threads; they are idle between runs."""
        self._finalizer()

    def _lap(self) -> None:
        self._replicas[0].go.release()
        self._caller.acquire()

    def _merge(self, merge: Callable[..., Sequence[Any]]) -> None:
        calls = [replica.merge for replica in self._replicas if replica.merge is not None]
        try:
            results = merge(calls[0][0], [call[1] for call in calls], [call[2] for call in calls])
        except BaseException:
            self._give_up()
            raise
        for replica, result in zip(self._replicas, results, strict=True):
            replica.merge, replica.merged = None, result

    def _give_up(self) -> None:
        """Unwind every replica that waits in a merge."""
        for replica in self._replicas:
            replica.give_up = True
        self._lap()
        for replica in self._replicas:
            replica.give_up = False


def _serve(replica: _Replica) -> None:
    while True:
        replica.go.acquire()
        if replica.closed:
            return
        if replica.function is not None:
            try:
                replica.returned = replica.function()
            except _ReplicaStoppedError:
                pass
            except BaseException as error:  # noqa: BLE001 - handed to the caller of run, which raises it
                replica.error = error
            replica.function = None
        replica.next.release()


def _end(replicas: Sequence[_Replica], threads: Sequence[threading.Thread]) -> None:
    for replica in replicas:
        replica.closed = True
        replica.go.release()
    for thread in threads:
        if thread is not threading.current_thread():
            thread.join(timeout=5)
