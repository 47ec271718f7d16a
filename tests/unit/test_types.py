from __future__ import annotations

import pytest

from distopt.types import ReduceOp


@pytest.mark.parametrize("value", ["sum", "SUM", "Sum", ReduceOp.SUM])
def test_reduce_op_from_member_or_name_in_any_case_is_the_member(value: ReduceOp | str) -> None:
    assert ReduceOp.parse(value) is ReduceOp.SUM


@pytest.mark.parametrize("value", ["max", "", 1, None])
def test_reduce_op_from_anything_else_is_refused_with_the_choices(value: object) -> None:
    with pytest.raises(ValueError, match="SUM, MEAN"):
        ReduceOp.parse(value)  # type: ignore[arg-type]  # the wrong type is the point
