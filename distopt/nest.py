"""Structures of tuples, named tuples, lists and dictionaries, with anything else as leaves.

Dictionaries are visited in the order of their sorted keys, as in TensorFlow's ``tf.nest``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any


def is_nested(structure: Any) -> bool:
    """Return whether ``structure`` is a container rather than a leaf."""
    return isinstance(structure, (tuple, list)) or _is_mapping(structure)


def _is_mapping(structure: Any) -> bool:
    # The abstract class is asked last: that takes ten times as long as the others together.
    return isinstance(structure, dict) or (hasattr(structure, "keys") and isinstance(structure, Mapping))


def flatten(structure: Any) -> list[Any]:
    """Return the leaves, in order.

    >>> flatten({"b": [1, 2], "a": (3,)})
    [3, 1, 2]
    """
    leaves: list[Any] = []
    _collect(structure, leaves)
    return leaves


def map_structure(function: Callable[..., Any], structure: Any, *others: Any) -> Any:
    """Return ``structure`` with each leaf replaced by ``function`` of it and of its counterparts in ``others``.

    Raises: ValueError if one of ``others`` is built differently.

    >>> map_structure(lambda a, b: a + b, (1, {"x": 2}), (10, {"x": 20}))
    (11, {'x': 22})
    """
    if isinstance(structure, (tuple, list)):
        for other in others:
            if not isinstance(other, (tuple, list)) or len(other) != len(structure):
                raise ValueError(f"structures differ: {structure!r} and {other!r}")
        return rebuild(structure, [map_structure(function, *parts) for parts in zip(structure, *others, strict=True)])
    if _is_mapping(structure):
        for other in others:
            if not isinstance(other, Mapping) or sorted(other) != sorted(structure):
                raise ValueError(f"structures differ: {structure!r} and {other!r}")
        mapped = {k: map_structure(function, structure[k], *(o[k] for o in others)) for k in sorted(structure)}
        return {key: mapped[key] for key in structure}
    if any(is_nested(other) for other in others):
        raise ValueError(f"structures differ: {structure!r} is a leaf, and {others!r} are not")
    return function(structure, *others)


def assert_same_structure(nest1: Any, nest2: Any) -> None:
    """Check that two structures are built alike.

    Raises: ValueError if they are not.
    """
    map_structure(lambda *_: None, nest1, nest2)


def pack_sequence_as(structure: Any, flat_sequence: Iterable[Any]) -> Any:
    """Return the leaves ``flat_sequence``, in the order of :func:`flatten`, in a structure like ``structure``.

    Raises: ValueError if their number differs.

    >>> pack_sequence_as({"b": [0, 0], "a": 0}, [1, 2, 3])
    {'b': [2, 3], 'a': 1}
    """
    leaves, places = list(flat_sequence), len(flatten(structure))
    if len(leaves) != places:
        raise ValueError(f"a structure with {places} leaves cannot hold {len(leaves)}")
    following = iter(leaves)
    return map_structure(lambda _: next(following), structure)


def rebuild(like: Any, items: list[Any]) -> Any:
    """Return ``items`` in a container of the type of ``like``: a list, a tuple or a named tuple."""
    if hasattr(like, "_fields"):
        return type(like)(*items)
    return items if isinstance(like, list) else tuple(items)


def _collect(structure: Any, leaves: list[Any]) -> None:
    if isinstance(structure, (tuple, list)):
        for item in structure:
            _collect(item, leaves)
    elif _is_mapping(structure):
        for key in sorted(structure):
            _collect(structure[key], leaves)
    else:
        leaves.append(structure)


__all__ = ["assert_same_structure", "flatten", "is_nested", "map_structure", "pack_sequence_as"]
