"""Running the replicas of one process: a greenlet each, one after another, meeting in ``merge_call``.

Theory of operation. Greenlets are functions that can be left in the middle and gone on with later, in one thread. The
caller of :meth:`ReplicaGreenlets.run` goes on with each replica in turn until its function returns or it calls
:meth:`ReplicaGreenlets.merge`. So exactly one replica runs at a time, always in replica order, which keeps variable
creation, reads and writes in one order. If every replica waits in a merge, the caller runs the merge function once and
starts the next lap; if all have returned, it returns; a mixture is an error.

What belongs to the flow of control goes with the replica: context variables, and which tapes record.

Source: the behaviour of ``tf.distribute.MirroredStrategy`` (replicas that run up to a ``merge_call``). It uses threads;
a switch between threads costs some fifty times as much.
"""

from __future__ import annotations

import contextvars
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from greenlet import GreenletExit, getcurrent, greenlet

from distopt.autodiff.nodes import state
from distopt.errors import MergeOrderError, ReplicaContextError, UnequalMergeCallsError


class _Merge(NamedTuple):
    """What a replica that waits has called."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class ReplicaGreenlets:
    """Runs the replicas of one process; holds nothing between runs."""

    def __init__(self) -> None:
        self._caller: greenlet | None = None
        self._callers_tapes: tuple[Any, Any] = ((), None)

    def run(self, functions: Sequence[Callable[[], Any]], merge: Callable[..., Sequence[Any]]) -> list[Any]:
        """Run one function for each replica and return what they returned, in order.

        ``merge(merge_fn, args_of_each_replica, kwargs_of_each_replica)`` is called for every lap in which all replicas
        wait, and returns one result a replica.

        Raises: the first replica's exception; UnequalMergeCallsError or MergeOrderError if replicas disagree on how
        often or for what they merge; ReplicaContextError for a run inside a run.
        """
        if self._caller is not None:
            raise ReplicaContextError("strategy.run was called while replicas of the same strategy are running")
        self._caller = getcurrent()
        self._callers_tapes = state.active, state.sole
        replicas = [greenlet(function) for function in functions]
        for replica in replicas:
            replica.gr_context = contextvars.copy_context()
        try:
            results: Sequence[Any] = [replica.switch() for replica in replicas]
            while waiting := [result for replica, result in zip(replicas, results, strict=True) if not replica.dead]:
                if len(waiting) < len(replicas):
                    raise UnequalMergeCallsError(
                        f"{len(waiting)} of {len(replicas)} replicas wait for the others in a merge_call or all_reduce "
                        "that the others have not made; every replica must make the same calls"
                    )
                check_same_call([call.function for call in waiting])
                merged = merge(waiting[0].function, [call.args for call in waiting], [call.kwargs for call in waiting])
                results = [replica.switch(result) for replica, result in zip(replicas, merged, strict=True)]
            return list(results)
        finally:
            # After an error some wait in a merge: they are unwound, so that their `finally` blocks run now.
            try:
                _unwind(replicas)
            finally:
                self._caller, self._callers_tapes = None, ((), None)

    def merge(self, merge_fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Called by a replica: wait for all of them, and return this one's result."""
        assert self._caller is not None, "only replicas merge"
        tapes = state.active, state.sole
        state.active, state.sole = self._callers_tapes
        try:
            return self._caller.switch(_Merge(merge_fn, args, kwargs))
        finally:
            state.active, state.sole = tapes


def check_same_call(functions: Sequence[Any]) -> None:
    """Refuse a merge call for which the replicas give different functions; closures of one function are the same.

    Raises: MergeOrderError.
    """
    first = functions[0]
    if all(function is first for function in functions):
        return
    # Only functions have code to compare: of other callables nothing is known but their type.
    kinds = [getattr(function, "__code__", type(function)) for function in functions]
    for replica, kind in enumerate(kinds):
        if kind is not kinds[0]:
            names = [getattr(f, "__qualname__", type(f).__qualname__).lstrip("_") for f in (first, functions[replica])]
            raise MergeOrderError(
                f"the first replica of this process merges with {names[0]}, the one at position {replica} with "
                f"{names[1]}; every replica must make the same merge_call, all_reduce and apply_gradients calls in the "
                "same order"
            )


def _unwind(replicas: Sequence[Any]) -> None:
    """End the replicas that wait in a merge; what fails meanwhile becomes a note to the error that is under way."""
    error = sys.exc_info()[1]
    for replica in replicas:
        if replica and not replica.dead:
            try:
                replica.throw(GreenletExit)
            except Exception as another:  # noqa: BLE001 - it must not take the place of the first one
                if error is not None:
                    error.add_note(f"while another replica was unwound: {type(another).__name__}: {another}")
