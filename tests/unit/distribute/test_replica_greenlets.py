"""Replicas of one process: order, merging, errors, and what goes with a replica when another one runs."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Sequence
from typing import Any

import pytest

import distopt as tf
from distopt.distribute.replica_greenlets import ReplicaGreenlets
from distopt.errors import ReplicaContextError


@pytest.fixture(params=[1, 2, 3, 5, 8])
def replicas(request: pytest.FixtureRequest) -> Any:
    pool = ReplicaGreenlets()
    pool.size = request.param  # type: ignore[attr-defined]  # the tests' own note
    return pool


def add_up(merge_fn: Callable[..., Any], args_of: Sequence[Any], kwargs_of: Sequence[Any]) -> list[Any]:
    return [merge_fn(*(sum(column) for column in zip(*args_of, strict=True)))] * len(args_of)


def test_run_returns_results_in_replica_order(replicas: Any) -> None:
    assert replicas.run([lambda i=i: i * 10 for i in range(replicas.size)], add_up) == [
        i * 10 for i in range(replicas.size)
    ]


def test_merge_runs_once_a_lap(replicas: Any) -> None:
    calls: list[int] = []

    def merged(total: int) -> int:
        calls.append(total)
        return total

    def replica(i: int) -> tuple[int, int]:
        first = replicas.merge(merged, (i + 1,), {})
        return first, replicas.merge(merged, (first * (i + 1),), {})

    total = replicas.size * (replicas.size + 1) // 2
    assert (
        replicas.run([lambda i=i: replica(i) for i in range(replicas.size)], add_up)
        == [(total, total * total)] * replicas.size
    )
    assert calls == [total, total * total]


def test_replicas_run_one_after_another_between_merges(replicas: Any) -> None:
    seen: list[tuple[str, int]] = []

    def replica(i: int) -> None:
        seen.append(("before", i))
        replicas.merge(lambda _: None, (0,), {})
        seen.append(("after", i))

    replicas.run([lambda i=i: replica(i) for i in range(replicas.size)], add_up)
    ids = list(range(replicas.size))
    assert seen == [("before", i) for i in ids] + [("after", i) for i in ids]


def test_error_of_a_replica_reaches_the_caller_and_the_pool_goes_on(replicas: Any) -> None:
    unwound: list[int] = []

    def replica(i: int) -> int:
        if i == replicas.size - 1:
            raise ZeroDivisionError(f"replica {i}")
        try:
            return int(replicas.merge(lambda _: 0, (0,), {}))
        finally:
            unwound.append(i)

    with pytest.raises(ZeroDivisionError, match=f"replica {replicas.size - 1}"):
        replicas.run([lambda i=i: replica(i) for i in range(replicas.size)], add_up)
    assert unwound == list(range(replicas.size - 1))
    assert replicas.run([lambda: 7] * replicas.size, add_up) == [7] * replicas.size


def test_error_in_the_merge_function_unwinds_every_replica(replicas: Any) -> None:
    def merged(_: int) -> int:
        raise KeyError("merge")

    with pytest.raises(KeyError, match="merge"):
        replicas.run([lambda i=i: replicas.merge(merged, (0,), {}) for i in range(replicas.size)], add_up)
    assert replicas.run([lambda: 1] * replicas.size, add_up) == [1] * replicas.size


def test_unequal_numbers_of_merges_are_refused() -> None:
    pool = ReplicaGreenlets()
    with pytest.raises(ReplicaContextError, match="1 of 3 replicas"):
        pool.run([lambda: 0, lambda: pool.merge(lambda _: 0, (0,), {}), lambda: 0], add_up)


def test_run_inside_a_run_is_refused() -> None:
    pool = ReplicaGreenlets()
    with pytest.raises(ReplicaContextError, match="while replicas"):
        pool.run([lambda: pool.run([], add_up), lambda: 0], add_up)


def test_context_variables_and_tapes_stay_with_their_replica(replicas: Any) -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("of_a_replica", default=-1)
    x = tf.Variable(3.0)

    def replica(i: int) -> tuple[int, float]:
        variable.set(i)
        with tf.GradientTape() as tape:
            y = x * x * float(i + 1)
            replicas.merge(merged, (0,), {})
            y = y * x
        return variable.get(), float(tape.gradient(y, x))

    def merged(_: int) -> float:
        assert variable.get() == -1
        return float(x * x)  # recorded by no tape

    assert replicas.run([lambda i=i: replica(i) for i in range(replicas.size)], add_up) == [
        (i, 27.0 * (i + 1)) for i in range(replicas.size)
    ]


def test_tape_of_the_caller_records_what_replicas_do(replicas: Any) -> None:
    x = tf.Variable(3.0)

    def replica(i: int) -> Any:
        replicas.merge(lambda _: None, (0,), {})
        return x * float(i + 1)

    with tf.GradientTape() as tape:
        values = replicas.run([lambda i=i: replica(i) for i in range(replicas.size)], add_up)
    assert float(tape.gradient(values, x)) == replicas.size * (replicas.size + 1) / 2


def test_error_while_unwinding_is_a_note_and_the_pool_goes_on() -> None:
    pool = ReplicaGreenlets()

    def waits() -> None:
        try:
            pool.merge(lambda _: None, (0,), {})
        finally:
            raise RuntimeError("cleanup")

    def fails() -> None:
        raise ZeroDivisionError("the real one")

    with pytest.raises(ZeroDivisionError, match="the real one") as caught:
        pool.run([waits, fails], add_up)
    assert any("cleanup" in note for note in caught.value.__notes__)
    assert pool.run([lambda: 1, lambda: 2], add_up) == [1, 2]
