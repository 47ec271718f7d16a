"""Ranks that come late are logged, and named in errors with their phase."""

from __future__ import annotations

import pytest

from distopt.comm.arrivals import LateRanks
from distopt.comm.in_process import InProcessGroup


def test_ranks_that_come_more_than_a_second_after_the_median_are_logged_with_their_phase(
    caplog: pytest.LogCaptureFixture,
) -> None:
    owner = InProcessGroup(4).communicators[0]
    owner.step, owner.phase = 7, "gradient"
    late = LateRanks(owner, "the update", started_s=10.0)
    late.note(range(4), missing=[2, 3], now_s=10.1)
    late.note(range(4), missing=[3], now_s=11.0)
    assert not caplog.records
    said = "rank 3 would come 4.9 s later than the median of the others in phase 'gradient'"
    assert late.would_come([3], now_s=15.0) == said
    late.note(range(4), missing=[], now_s=15.0)
    (record,) = caplog.records
    assert record.getMessage() == (
        "rank 3 came 4.9 s later than the median of the others in phase 'gradient' at step 7: the update"
    )
