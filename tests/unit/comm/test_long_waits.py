"""When ranks that wait are known to wait for ever, and what is said of it."""

from __future__ import annotations

import pytest

from distopt.agreement import Label
from distopt.comm.long_waits import Called, LongWait, Standstill, calls_differ, waiting_for_ever
from distopt.errors import MergeOrderError, UnequalStepsError

APPLY = Called("the gradients of all are ready", Label(1, 2, 3).encode())
REDUCE = Called("a reduction of values", Label(7).encode())


def meeting(missing: tuple[int, ...], num_exchanges: int, num_meetings: int) -> LongWait:
    """Return a wait for ranks of the own host."""
    return LongWait(APPLY, 3, missing, True, num_exchanges, num_meetings)


def reduction(missing: tuple[int, ...], num_exchanges: int, num_meetings: int) -> LongWait:
    """Return a wait for ranks anywhere."""
    return LongWait(REDUCE, 2, missing, False, num_exchanges, num_meetings)


def test_ranks_that_wait_for_each_other_in_different_calls_wait_for_ever() -> None:
    waits = {0: meeting((1,), 4, 9), 1: reduction((0, 2), 5, 8), 2: meeting((1,), 4, 9)}
    assert waiting_for_ever(waits) == {0, 1, 2}


def test_ranks_of_two_hosts_that_wait_in_a_ring_wait_for_ever() -> None:
    # Host A is rank 0, host B ranks 1 and 2; rank 0 awaits sums of rank 1, which waits for rank 2.
    waits = {0: reduction((1,), 5, 9), 1: meeting((2,), 4, 9), 2: reduction((0, 1), 6, 8)}
    assert waiting_for_ever(waits) == {0, 1, 2}


def test_ranks_in_different_calls_of_one_exchange_wait_for_ever_also_in_a_ring() -> None:
    # Hosts are ranks 0, 1 and 2, 3: rank 3 awaits something else of rank 0, which awaits sums of rank 2.
    waits = {0: reduction((2,), 5, 9), 2: meeting((3,), 4, 9), 3: LongWait(Called("x", b""), 2, (0,), False, 5, 8)}
    assert waiting_for_ever(waits) == {0, 2, 3}


@pytest.mark.parametrize(
    "waits",
    [
        pytest.param({0: meeting((1,), 4, 9), 2: meeting((1,), 4, 9)}, id="rank 1 is late"),
        pytest.param({0: meeting((1,), 4, 9), 1: reduction((2,), 5, 8)}, id="rank 2 is late"),
        pytest.param({0: meeting((1,), 5, 9), 1: reduction((0,), 5, 8)}, id="what rank 0 sent is on its way to rank 1"),
        pytest.param({0: meeting((1,), 4, 9), 1: reduction((0,), 5, 9)}, id="rank 1 told it, came, and was elsewhere"),
        pytest.param({0: reduction((1,), 5, 8), 1: reduction((0,), 5, 8)}, id="both are in one exchange"),
        pytest.param(
            {0: reduction((1,), 5, 8), 1: LongWait(Called(REDUCE.what, b""), 2, (0,), False, 5, 8)},
            id="the labels of their messages will say what differs",
        ),
        pytest.param({}, id="nobody waits"),
    ],
)
def test_ranks_of_which_one_may_yet_come_do_not_wait_for_ever(waits: dict[int, LongWait]) -> None:
    assert waiting_for_ever(waits) == set()


def test_error_waits_for_those_that_may_yet_say_where_they_are_but_not_for_long() -> None:
    standstill = Standstill()
    waits = {0: meeting((1,), 4, 9), 1: reduction((0, 2), 5, 8)}
    assert standstill.error(waits, {2}, now_s=10.0) is None
    told = standstill.error(waits | {2: meeting((1,), 4, 9)}, (), now_s=10.1)
    assert str(told).startswith(f"rank 0 (as 2 of 3) comes to '{APPLY.what}' where rank 1 comes to '{REDUCE.what}';")
    assert str(standstill.error(waits, {2}, now_s=11.0)).startswith("rank 0 comes to")
    assert standstill.error({0: waits[0]}, {1, 2}, now_s=12.0) is None
    assert standstill.error(waits, {2}, now_s=13.0) is None


def test_ranks_of_one_call_are_told_how_their_labels_differ() -> None:
    later = Called(APPLY.what, Label(1, 2, 4).encode())
    assert isinstance(calls_differ({0: APPLY, 1: later, 2: APPLY}), UnequalStepsError)
    assert isinstance(calls_differ({0: APPLY, 1: REDUCE, 2: APPLY}), MergeOrderError)
    assert calls_differ({0: APPLY, 1: Called("the same, by another name", APPLY.label)}) is None
