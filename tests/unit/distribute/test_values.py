"""Regrouping per-replica values and selecting components again."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest

from distopt.distribute import values
from distopt.distribute.values import PerReplica


class Pair(NamedTuple):
    left: Any
    right: Any


def test_regroup_nested_structures_is_undone_by_select() -> None:
    of_replica = [{"a": [i, (i + 0.5, None)], "b": Pair(i, "same")} for i in (1000, 2000, 3000)]
    merged = values.regroup(of_replica)
    assert isinstance(merged["b"], Pair)
    assert merged["b"].right == "same"
    assert [values.select(merged, i) for i in range(3)] == of_replica


def test_regroup_of_one_object_keeps_it() -> None:
    shared = object()
    assert values.regroup([shared, shared]) is shared


def test_regroup_of_different_structures_is_refused() -> None:
    with pytest.raises(ValueError, match="differ"):
        values.regroup([{"a": 1}, {"b": 1}])
    with pytest.raises(ValueError, match="differ"):
        values.regroup([[1, 2], [1]])


def test_per_replica_as_array_is_refused() -> None:
    with pytest.raises(ValueError, match=r"strategy\.reduce"):
        np.asarray(PerReplica([1.0, 2.0]))
