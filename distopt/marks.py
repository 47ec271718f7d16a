"""Marks on arrays that came out of a reduction, so that reducing them once more can be noticed.

Rules of this file: a mark lives as long as its array and holds nothing alive; looking one up costs a dictionary access,
and nothing where nothing is marked.
"""

from __future__ import annotations

import weakref
from typing import Any

from distopt.types import Array

marked: dict[int, tuple[weakref.ref[Array], str]] = {}
"""The arrays that have a mark, by identity."""


def mark(array: Array, note: str) -> None:
    """Mark ``array`` with ``note``: how it was reduced. A later mark replaces an earlier one."""
    key = id(array)

    def forget(reference: Any) -> None:
        # Another array may have got the same identity, and a mark of its own, meanwhile.
        known = marked.get(key)
        if known is not None and known[0] is reference:
            del marked[key]

    marked[key] = weakref.ref(array, forget), note


def mark_of(array: Array | None) -> str | None:
    """Return the note on ``array``, or None where there is none.

    >>> import numpy as np
    >>> total = np.ones(2)
    >>> mark(total, "SUM")
    >>> mark_of(total), mark_of(np.ones(2))
    ('SUM', None)
    """
    if not marked or array is None:
        return None
    found = marked.get(id(array))
    return found[1] if found is not None and found[0]() is array else None


def inherit(source: Array, target: Array) -> None:
    """Give ``target``, which was made of ``source`` alone, the same mark, if there is one."""
    note = mark_of(source)
    if note is not None:
        mark(target, note)
