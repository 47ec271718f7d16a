"""Every recorded fact is asked for by a test, or stands on the list of what has no counterpart here."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.parity.facts import FACTS, OUT_OF_SCOPE

TESTS = Path(__file__).parents[1]


def asked_for(source: str) -> set[str]:
    """Return the ids of the facts that a test file looks up: the literal argument of each call of ``fact``."""
    return {
        str(node.args[0].value)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "fact"
        and node.args
        and isinstance(node.args[0], ast.Constant)
    }


def facts_used() -> set[str]:
    return {identity for path in sorted(TESTS.rglob("test_*.py")) for identity in asked_for(path.read_text())}


def test_the_scan_sees_a_literal_id_in_a_call_and_nothing_else() -> None:
    assert asked_for('expected = fact("F001")["result"]\nfact(other)\nprint("F002")') == {"F001"}


def test_every_fact_is_met_by_a_test_or_out_of_scope_for_a_reason() -> None:
    assert set(FACTS) - facts_used() - set(OUT_OF_SCOPE) == set()


def test_facts_out_of_scope_exist_have_a_reason_and_are_met_nowhere() -> None:
    assert set(OUT_OF_SCOPE) <= set(FACTS)
    assert all(len(reason.split()) > 3 for reason in OUT_OF_SCOPE.values())
    assert not facts_used() & set(OUT_OF_SCOPE)


def test_only_facts_that_exist_are_asked_for() -> None:
    assert facts_used() <= set(FACTS)
