"""Options that know when they were changed, so that who read them need not compare all of them to find out."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

_next_change: Callable[[], int] = itertools.count(1).__next__


class Changing:
    """Base of options that are plain attributes."""

    change = 0
    """A number that no options had before the latest assignment to an attribute of these."""

    def __setattr__(self, name: str, value: Any) -> None:
        own = self.__dict__
        own[name] = value
        own["change"] = _next_change()
