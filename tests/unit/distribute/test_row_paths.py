"""Rows as they travel between hosts."""

from __future__ import annotations

import numpy as np
import pytest

from distopt.distribute.row_memory import Shape
from distopt.distribute.row_paths import Interval, Packed, Slot, _Box, divide_rows, pack, within
from distopt.errors import RemoteProtocolError
from distopt.row_lists import PlacedRows
from distopt.row_sums import RowSum

PART = Interval(100, 164)
SHAPE = Shape(1000, 2, np.dtype(np.float32))


def rows_at(*indices: int) -> RowSum:
    where = np.array(indices, np.int64)
    return RowSum(where, np.stack([where, where * 0.5], axis=1).astype(np.float32))


def received(packed: Packed, slot: Slot) -> RowSum:
    box = _Box(1, slot, packed.code)
    assert [array.nbytes for array in box.arrays] == [array.nbytes for array in packed.arrays]
    for target, sent in zip(box.arrays, packed.arrays, strict=True):
        target.view(np.uint8)[...] = np.ascontiguousarray(sent).view(np.uint8)
    return box.rows()


@pytest.mark.parametrize(
    ("rows", "num_bytes"),
    [
        (rows_at(), 0),
        (rows_at(163), 4 + 8),
        (rows_at(163, 100), 2 * (4 + 8)),
        (rows_at(101, 102, 163), 8 + 3 * 8),
        (rows_at(163, 102, 102), 3 * (4 + 8)),
        (rows_at(*range(*PART)), 64 * 8),
    ],
)
def test_rows_arrive_as_they_were_in_the_fewest_bytes(rows: RowSum, num_bytes: int) -> None:
    packed = pack(rows, PART)
    assert sum(array.nbytes for array in packed.arrays) == num_bytes
    got = received(packed, Slot(PART, SHAPE))
    np.testing.assert_array_equal(got.indices, rows.indices)
    np.testing.assert_array_equal(got.values, rows.values)


def test_all_rows_of_a_part_are_received_where_they_belong() -> None:
    place = np.zeros((PART.size, 2), np.float32)
    assert received(pack(rows_at(*range(*PART)), PART), Slot(PART, SHAPE, place)).values is place
    np.testing.assert_array_equal(place, rows_at(*range(*PART)).values)


def test_rows_that_do_not_lie_in_the_part_are_refused() -> None:
    with pytest.raises(RemoteProtocolError, match=r"rank 1 told of 65 of the 64 rows 100\.\.163"):
        _Box(1, Slot(PART, SHAPE), -66)
    box = _Box(1, Slot(PART, SHAPE), 1)
    box.arrays[0][...] = 64
    with pytest.raises(RemoteProtocolError, match=r"rank 1 sent rows that are not of 100\.\.163"):
        box.rows()
    box = _Box(1, Slot(PART, SHAPE), -1 - 3)
    box.arrays[0][...] = 0
    with pytest.raises(RemoteProtocolError, match="rank 1 sent rows that are not of"):
        box.rows()


def test_rows_within_a_part_are_views_with_every_occurrence() -> None:
    rows = rows_at(3, 5, 5, 9)
    found = within(rows, Interval(5, 9))
    assert isinstance(found, RowSum)
    assert found.indices.tolist() == [5, 5]
    assert np.shares_memory(found.values, rows.values)
    elsewhere = PlacedRows(rows.indices, np.array([3, 2, 0, 1]), rows.values)
    found = within(elsewhere, Interval(5, 9))
    assert isinstance(found, PlacedRows)
    assert (found.indices.tolist(), found.positions.tolist()) == ([5, 5], [2, 0])
    assert found.values is rows.values


@pytest.mark.parametrize("hosts", [[(0,)], [(0, 1)], [(0, 2), (1,)], [(0, 1, 2), (3, 4), (5,)]])
def test_every_row_has_one_owner(hosts: list[tuple[int, ...]]) -> None:
    ranks = [rank for of_host in hosts for rank in of_host]
    for num_rows in (0, 1, 7, 1000):
        parts = [divide_rows(num_rows, hosts, rank) for rank in ranks]
        assert [row for part in parts for row in range(*part)] == list(range(num_rows))
        if num_rows == 1000:
            assert max(part.size for part in parts) - 1000 / len(hosts) / min(map(len, hosts)) <= 1
