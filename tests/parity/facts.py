"""The single facts of ``golden.json``: what the reference does in a stated scenario, looked up by id.

A test that meets a fact asks for it by its id, as a literal, runs the scenario on distopt, and compares:

    expected = fact("F052")["result"]

``test_facts.py`` reads the tests and fails on a fact that none of them asks for, unless it is listed below.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FACTS: dict[str, dict[str, Any]] = {
    each["id"]: each for each in json.loads((Path(__file__).parent / "golden.json").read_text())["facts"]
}

OUT_OF_SCOPE: dict[str, str] = {}
"""Facts about the reference's own machinery that have no counterpart here, with the reason of each."""

NOT_YET: frozenset[str] = frozenset(FACTS)
"""Facts that no test asks for yet. Goes away once every fact is met."""


def fact(identity: str) -> dict[str, Any]:
    """Return the recorded fact: its ``topic``, its ``scenario`` in words, and the ``result`` that the reference gave.

    >>> fact("F077")["result"]
    [0.001, 0.5]
    """
    return FACTS[identity]
