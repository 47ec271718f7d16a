"""What the options of aggregators and compressions have in common."""

from __future__ import annotations

import operator
from typing import Any


def whole_number(name: str, value: Any, least: int) -> int:
    """Return the option ``name``, a whole number from ``least`` on.

    Raises: ValueError for a smaller one; TypeError for what is no whole number.

    >>> whole_number("trim", 2, least=0)
    2
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, but is {value!r}") from None
    if number < least:
        raise ValueError(f"{name} must be at least {least}, but is {number}")
    return number
