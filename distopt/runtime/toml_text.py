"""Writing TOML; the standard library only reads it."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_BARE_KEY = re.compile(r"^[A-Za-z0-9_-]+$")


def document(table: Mapping[str, Any]) -> str:
    """Return ``table`` as a TOML document: plain values first, then sub-tables; None values are left out.

    >>> print(document({"seed": 1, "task": {"name": "digits", "hidden": [256]}}), end="")
    seed = 1
    <BLANKLINE>
    [task]
    name = "digits"
    hidden = [256]
    """
    return "\n".join(_lines(table, ())).lstrip("\n") + "\n"


def inline(value: Any) -> str:
    """Return ``value`` as it stands to the right of ``key =``.

    Raises: TypeError for a type that TOML does not have.

    >>> inline({"a": [1, 2.5, True, 'say "hi"']})
    '{a = [1, 2.5, true, "say \\\\"hi\\\\""]}'
    """
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str():
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case datetime.datetime() | datetime.date() | datetime.time():
            return value.isoformat()
        case Mapping():
            return "{" + ", ".join(f"{_key(k)} = {inline(v)}" for k, v in value.items() if v is not None) + "}"
        case Sequence():
            return "[" + ", ".join(inline(item) for item in value) + "]"
    raise TypeError(f"TOML has no value for {value!r} of type {type(value).__name__}")


def _lines(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    for key, value in table.items():
        if value is not None and not isinstance(value, Mapping):
            yield f"{_key(key)} = {inline(value)}"
    for key, value in table.items():
        if isinstance(value, Mapping):
            inner = (*path, key)
            yield ""
            yield f"[{'.'.join(_key(part) for part in inner)}]"
            yield from _lines(value, inner)


def _key(key: str) -> str:
    return key if _BARE_KEY.match(key) else inline(key)
