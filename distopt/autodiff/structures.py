"""Nested lists, tuples and dictionaries, taken apart and put together again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def flatten(structure: Any) -> list[Any]:
    """Return the leaves of nested lists, tuples and dictionaries, in order.

    >>> flatten([1, (2, {"a": 3})])
    [1, 2, 3]
    """
    if isinstance(structure, list | tuple):
        return [leaf for part in structure for leaf in flatten(part)]
    if isinstance(structure, dict):
        return [leaf for part in structure.values() for leaf in flatten(part)]
    return [structure]


def pack_like(structure: Any, leaves: list[Any]) -> Any:
    """Return a copy of ``structure`` in which ``leaves`` stand for the leaves.

    >>> pack_like([1, (2, {"a": 3})], ["x", "y", "z"])
    ['x', ('y', {'a': 'z'})]
    """
    return _pack(structure, iter(leaves))


def _pack(structure: Any, leaves: Iterator[Any]) -> Any:
    if isinstance(structure, tuple) and hasattr(structure, "_fields"):
        return type(structure)(*[_pack(part, leaves) for part in structure])
    if isinstance(structure, list | tuple):
        return type(structure)([_pack(part, leaves) for part in structure])
    if isinstance(structure, dict):
        return {name: _pack(part, leaves) for name, part in structure.items()}
    return next(leaves)
