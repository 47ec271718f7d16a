"""Replica threads: order, merging, errors, and that nothing is left running."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from distopt.distribute.replica_threads import ReplicaThreads
from distopt.errors import ReplicaContextError


@pytest.fixture(params=[1, 2, 3, 5, 8])
def threads(request: pytest.FixtureRequest) -> Iterator[ReplicaThreads]:
    pool = ReplicaThreads(request.param)
    pool.size = request.param  # type: ignore[attr-defined]  # the tests' own note
    yield pool
    pool.close()


def add_up(merge_fn: Callable[..., Any], args_of: Sequence[Any], kwargs_of: Sequence[Any]) -> list[Any]:
    return [merge_fn(*(sum(column) for column in zip(*args_of, strict=True)))] * len(args_of)


def test_run_returns_results_in_replica_order(threads: Any) -> None:
    assert threads.run([lambda i=i: i * 10 for i in range(threads.size)], add_up) == [
        i * 10 for i in range(threads.size)
    ]


def test_merge_runs_once_a_lap_in_the_callers_thread(threads: Any) -> None:
    calls: list[str] = []

    def merged(total: int) -> int:
        calls.append(threading.current_thread().name)
        return total

    def replica(i: int) -> tuple[int, int]:
        first = threads.merge(i, merged, (i + 1,), {})
        return first, threads.merge(i, merged, (first * (i + 1),), {})

    total = threads.size * (threads.size + 1) // 2
    assert (
        threads.run([lambda i=i: replica(i) for i in range(threads.size)], add_up)
        == [(total, total * total)] * threads.size
    )
    assert calls == [threading.current_thread().name] * 2


def test_replicas_run_one_after_another_between_merges(threads: Any) -> None:
    seen: list[tuple[str, int]] = []

    def replica(i: int) -> None:
        seen.append(("before", i))
        threads.merge(i, lambda _: None, (0,), {})
        seen.append(("after", i))

    threads.run([lambda i=i: replica(i) for i in range(threads.size)], add_up)
    ids = list(range(threads.size))
    assert seen == [("before", i) for i in ids] + [("after", i) for i in ids]


def test_error_of_a_replica_reaches_the_caller_and_the_pool_goes_on(threads: Any) -> None:
    unwound: list[int] = []

    def replica(i: int) -> int:
        if i == threads.size - 1:
            raise ZeroDivisionError(f"replica {i}")
        try:
            return int(threads.merge(i, lambda _: 0, (0,), {}))
        finally:
            unwound.append(i)

    with pytest.raises(ZeroDivisionError, match=f"replica {threads.size - 1}"):
        threads.run([lambda i=i: replica(i) for i in range(threads.size)], add_up)
    assert unwound == list(range(threads.size - 1))
    assert threads.run([lambda: 7] * threads.size, add_up) == [7] * threads.size


def test_error_in_the_merge_function_unwinds_every_replica(threads: Any) -> None:
    def merged(_: int) -> int:
        raise KeyError("merge")

    with pytest.raises(KeyError, match="merge"):
        threads.run([lambda i=i: threads.merge(i, merged, (0,), {}) for i in range(threads.size)], add_up)
    assert threads.run([lambda: 1] * threads.size, add_up) == [1] * threads.size


def test_unequal_numbers_of_merges_are_refused() -> None:
    pool = ReplicaThreads(3)
    try:
        with pytest.raises(ReplicaContextError, match="1 of 3 replicas"):
            pool.run([lambda: 0, lambda: pool.merge(1, lambda _: 0, (0,), {}), lambda: 0], add_up)
    finally:
        pool.close()


def test_run_inside_a_run_is_refused() -> None:
    pool = ReplicaThreads(2)
    try:
        with pytest.raises(ReplicaContextError, match="while replicas"):
            pool.run([lambda: pool.run([], add_up), lambda: 0], add_up)
    finally:
        pool.close()


def test_close_and_garbage_collection_end_the_threads() -> None:
    def alive() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name.startswith("distopt-replica")}

    before = alive()
    pool = ReplicaThreads(5)
    pool.run([lambda: 0] * 5, add_up)
    pool.close()
    assert alive() == before
    dropped = ReplicaThreads(2)
    assert len(alive() - before) == 2
    del dropped
    assert alive() == before
