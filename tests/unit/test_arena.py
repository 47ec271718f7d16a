from __future__ import annotations

import numpy as np
import pytest

from distopt.arena import ALIGNMENT, place, runs
from distopt.variable import Variable


def variables(*sizes: int, dtype: type = np.float32) -> list[Variable]:
    return [Variable(np.arange(n, dtype=dtype) + i, name=f"v{i}") for i, n in enumerate(sizes)]


def test_placed_variables_keep_their_values_and_become_aligned_views_of_one_buffer() -> None:
    placed = variables(3, 16, 17)
    before = [v.numpy() for v in placed]
    place(placed)
    segment = placed[0].placement[0]
    for variable, value in zip(placed, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
        assert np.shares_memory(variable.storage, segment.buffer)
        assert variable.storage.ctypes.data % ALIGNMENT == 0
    assert segment.offsets == (0, 16, 32)
    assert segment.buffer.size == 64


def test_padding_of_a_segment_is_zero() -> None:
    (variable,) = variables(3)
    place([variable])
    segment, _ = variable.placement
    np.testing.assert_array_equal(segment.buffer[3:], np.zeros(13))


def test_variables_of_two_dtypes_lie_in_two_segments() -> None:
    single, double = Variable(np.float32([1, 2])), Variable(np.float64([3]))
    place([single, double])
    assert single.placement[0].dtype == np.float32
    assert double.placement[0].dtype == np.float64


def test_a_placed_variable_is_not_moved_and_later_ones_add_a_segment() -> None:
    first, second = variables(4, 4)
    place([first])
    kept = first.placement
    place([first, second, second])
    assert first.placement is kept
    assert second.placement[0] is not kept[0]
    assert second.placement[0].index > kept[0].index


def test_a_scalar_variable_can_be_placed() -> None:
    scalar = Variable(np.float32(2.5))
    place([scalar])
    scalar.assign_add(np.float32(1))
    assert scalar.placement[0].buffer[0] == 3.5


def test_runs_of_all_variables_are_one_run_whatever_their_order() -> None:
    placed = variables(3, 5, 100)
    place(placed)
    (run,) = runs(reversed(placed))
    assert (run.start, run.stop) == (0, 16 + 16 + 112)
    assert [v.name for v in run.variables] == ["v0:0", "v1:0", "v2:0"]


def test_a_missing_variable_splits_the_run_it_lies_in() -> None:
    placed = variables(3, 5, 100)
    place(placed)
    assert [(run.start, run.stop) for run in runs([placed[0], placed[2]])] == [(0, 16), (32, 144)]


def test_runs_refuse_a_variable_listed_twice_or_without_a_place() -> None:
    placed = variables(3, 5)
    place(placed)
    with pytest.raises(ValueError, match=r"v1:0.*twice"):
        runs([*placed, placed[1]])
    with pytest.raises(ValueError, match="no place"):
        runs([Variable(1.0)])
