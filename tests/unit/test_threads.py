from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from distopt import threads


@pytest.fixture(autouse=True)
def default_number() -> Iterator[None]:
    yield
    threads.set_num_threads(None)


def test_parts_run_at_the_same_time_and_the_call_returns_after_the_last() -> None:
    met = threading.Barrier(3, timeout=20)
    seen: list[int] = []

    def loop(part: int) -> None:
        met.wait()
        seen.append(part)

    threads.run_parts(loop, [(0,), (1,), (2,)])
    assert sorted(seen) == [0, 1, 2]


@pytest.mark.parametrize("failing", [0, 1])
def test_a_failure_in_any_part_is_raised_after_all_have_ended(failing: int) -> None:
    ended: list[int] = []

    def loop(part: int) -> None:
        if part == failing:
            raise OSError(f"part {part}")
        ended.append(part)

    with pytest.raises(OSError, match=f"part {failing}"):
        threads.run_parts(loop, [(0,), (1,), (2,)])
    assert len(ended) == 2


def test_calls_from_several_threads_do_not_take_each_others_results() -> None:
    totals: dict[int, int] = {}

    def caller(number: int) -> None:
        own: list[int] = []
        for _ in range(50):
            threads.run_parts(own.append, [(number,), (number,)])
        totals[number] = sum(own)

    callers = [threading.Thread(target=caller, args=(number,)) for number in range(4)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join(20)
    assert totals == {number: 100 * number for number in range(4)}


def test_the_default_number_is_that_of_the_processors_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_is_alone", [True])
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5}, raising=False)
    assert threads.num_threads() == 3
    threads.share_processors_by_default()
    assert threads.num_threads() == 1
    threads.set_num_threads(2)
    assert threads.num_threads() == 2


def test_no_thread_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 thread, not 0"):
        threads.set_num_threads(0)


@pytest.mark.multiprocess
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked off here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_process_that_is_forked_off_has_threads_of_its_own() -> None:
    threads.run_parts(lambda: None, [(), ()])
    child = os.fork()
    if child == 0:
        os._exit(0 if _runs_two_parts() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _runs_two_parts() -> bool:
    seen: list[int] = []
    threads.run_parts(seen.append, [(1,), (2,)])
    return sorted(seen) == [1, 2]
