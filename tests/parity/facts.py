"""The single facts of ``golden.json``: what the reference does in a stated scenario, looked up by id.

A test that meets a fact asks for it by its id, as a literal, runs the scenario on distopt, and compares:

    expected = fact("F052")["result"]

``test_facts.py`` reads the tests and fails on a fact that none of them asks for, unless it is listed below.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

FACTS: dict[str, dict[str, Any]] = {
    each["id"]: each for each in json.loads((Path(__file__).parent / "golden.json").read_text())["facts"]
}

OUT_OF_SCOPE: dict[str, str] = {
    "F057": "of the Keras generation of 2.11 to 2.15, which is not offered: the legacy classes apply both clips (F052)",
}
"""Facts about the reference's own machinery that have no counterpart here, with the reason of each."""


def fact(identity: str) -> dict[str, Any]:
    """Return the recorded fact: its ``topic``, its ``scenario`` in words, and the ``result`` that the reference gave.

    >>> fact("F077")["result"]
    [0.001, 0.5]
    """
    return FACTS[identity]


def outcome(action: Callable[[], Any]) -> str:
    """Return the name of the exception that ``action`` raises, as the facts have it, or ``"no error"``.

    Our own errors count as the built-in ones that they derive from.
    """
    try:
        action()
    except Exception as error:  # noqa: BLE001 - which one it is, is what is asked
        return next(cls.__name__ for cls in type(error).__mro__ if cls.__module__ == "builtins")
    return "no error"
