"""docs/aggregators.md says what the code does: every cell of its tables is tried."""

from __future__ import annotations

from tests import aggregators_page

TEXT = aggregators_page.PAGE.read_text("utf-8")


def test_tables_are_what_the_code_does() -> None:
    assert aggregators_page.render(TEXT) == TEXT, "renew them: python -m tests.aggregators_page"


def test_every_name_of_a_job_file_is_explained() -> None:
    names = (*aggregators_page.AGGREGATORS, *aggregators_page.COMPRESSIONS, "local_steps")
    assert [name for name in names if f"| `{name}` |" not in TEXT] == []
