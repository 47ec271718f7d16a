"""Nested structures keep their form."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from distopt import nest


class Point(NamedTuple):
    x: int
    y: int


def test_flatten_visits_dictionaries_in_sorted_order() -> None:
    assert nest.flatten({"b": (1, [2]), "a": Point(3, 4)}) == [3, 4, 1, 2]


def test_map_structure_keeps_containers_and_their_types() -> None:
    mapped = nest.map_structure(lambda n: n * 10, {"b": (1, [2]), "a": Point(3, 4)})
    assert mapped == {"b": (10, [20]), "a": Point(30, 40)}
    assert isinstance(mapped["a"], Point)
    assert list(mapped) == ["b", "a"]


@pytest.mark.parametrize(("one", "other"), [((1, 2), (1,)), ({"a": 1}, {"b": 1}), (1, (1,)), ((1,), 1)])
def test_map_structure_of_different_structures_is_refused(one: object, other: object) -> None:
    with pytest.raises(ValueError, match="structures differ"):
        nest.map_structure(lambda a, b: (a, b), one, other)
