"""Who owns which spans."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distopt.arena import Span
from distopt.protocol.assignment import Extent, assign_spans


@st.composite
def extents(draw: st.DrawFn) -> list[Extent]:
    found = []
    for segment in range(draw(st.integers(1, 3))):
        bounds = sorted(draw(st.sets(st.integers(0, 200), min_size=2, max_size=12)))
        itemsize = draw(st.sampled_from([2, 4, 8]))
        found.append(Extent(segment, bounds[0], bounds[-1], itemsize, cuts=tuple(bounds[1:-1])))
    return found


@given(extents(), st.integers(1, 20))
def test_assigned_spans_cover_all_in_order_and_are_cut_only_where_allowed(
    parts: list[Extent], num_servers: int
) -> None:
    owned = assign_spans(parts, num_servers)
    assert len(owned) == num_servers
    elements = [(span.segment_index, i) for spans in owned for span in spans for i in range(span.start, span.stop)]
    assert elements == [(part.segment_index, i) for part in parts for i in range(part.start, part.stop)]
    legal = {(p.segment_index, bound) for p in parts for bound in (p.start, *p.cuts, p.stop)}
    for span in (span for spans in owned for span in spans):
        assert {(span.segment_index, span.start), (span.segment_index, span.stop)} <= legal


@pytest.mark.parametrize("num_servers", [1, 2, 3, 5, 8])
def test_assigned_bytes_are_as_equal_as_blocks_allow(num_servers: int) -> None:
    parts = [Extent(0, 0, 4000, 4, tuple(range(10, 4000, 10))), Extent(1, 0, 1000, 8, tuple(range(10, 1000, 10)))]
    itemsizes = {0: 4, 1: 8}
    sizes = [
        sum((s.stop - s.start) * itemsizes[s.segment_index] for s in spans)
        for spans in assign_spans(parts, num_servers)
    ]
    assert sum(sizes) == 24000
    assert max(sizes) - min(sizes) <= 2 * 80


def test_more_servers_than_blocks_leave_some_without_spans() -> None:
    owned = assign_spans([Extent(0, 0, 30, 4, cuts=(10, 20))], 8)
    assert sorted(owned, key=len)[-3:] == [(Span(0, 0, 10),), (Span(0, 10, 20),), (Span(0, 20, 30),)]
    assert sum(map(len, owned)) == 3


def test_no_variables_leave_all_servers_without_spans() -> None:
    assert assign_spans([], 2) == ((), ())


@pytest.mark.parametrize(
    ("start", "stop", "cuts"), [(0, 0, ()), (5, 3, ()), (-1, 3, ()), (0, 9, (10,)), (0, 9, (5, 3)), (2, 9, (1,))]
)
def test_extent_with_bounds_out_of_order_is_refused(start: int, stop: int, cuts: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"extent needs elements|do not ascend"):
        Extent(0, start, stop, 4, cuts)


def test_assignment_to_no_server_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 server, not 0"):
        assign_spans([], 0)
