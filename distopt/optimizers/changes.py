"""Objects that know when an attribute of theirs was assigned to, so that a step need not compare all of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

_next_change: Callable[[], int] = itertools.count(1).__next__

latest = 0
"""The number of the latest assignment to an attribute of any of these objects."""


class Changing:
    """Base of optimizers and of their options."""

    _change = 0
    """:data:`latest` as it was after the latest assignment to an attribute of this object."""

    def __setattr__(self, name: str, value: Any) -> None:
        global latest
        object.__setattr__(self, name, value)
        latest = self.__dict__["_change"] = _next_change()

    @property
    def change(self) -> int:
        """A number that no such object had before the latest assignment to an attribute of this one."""
        return self._change
