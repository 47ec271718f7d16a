"""Names for optimizers that were given none."""

from __future__ import annotations

import re
import threading
from collections import Counter

_used: Counter[str] = Counter()
_counting = threading.Lock()


def unique_name(class_name: str) -> str:
    """Return the class's name in snake case, with a number from the second time on: ``sgd``, ``sgd_1``."""
    base = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", class_name).lower()
    with _counting:
        count = _used[base]
        _used[base] += 1
    return f"{base}_{count}" if count else base
