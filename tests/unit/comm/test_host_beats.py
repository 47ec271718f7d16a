"""Who is heard of, and who no more, at times that are handed in."""

from __future__ import annotations

from distopt.comm.host_beats import SILENT_S, HostBeats


def test_hosts_that_go_on_speaking_are_never_silent() -> None:
    own, other = HostBeats(), HostBeats()
    for second in range(60):
        own.hear({2: other.next({2, 3})}, float(second))
        assert own.silent(second + 1.0) == (frozenset(), 0.0)
    assert own.came == {2, 3}


def test_host_whose_number_stands_still_is_silent_with_all_who_came_there() -> None:
    own, other, third = HostBeats(), HostBeats(), HostBeats()
    last = other.next([2, 3])
    for second in range(int(SILENT_S) + 1):
        own.hear({2: last, 4: third.next([4])}, float(second))
    assert own.silent(SILENT_S - 0.5) == (frozenset(), 0.0)
    assert own.silent(SILENT_S + 0.5) == (frozenset({2, 3}), SILENT_S + 0.5)


def test_host_that_never_spoke_or_has_withdrawn_is_not_silent() -> None:
    own, other = HostBeats(), HostBeats()
    assert own.silent(100.0) == (frozenset(), 0.0)
    own.hear({2: other.next([2])}, 100.0)
    own.hear({}, 101.0)
    assert own.silent(200.0) == (frozenset(), 0.0)
    assert own.came == frozenset()
