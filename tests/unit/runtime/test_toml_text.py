"""TOML that is written reads back."""

from __future__ import annotations

import datetime
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distopt.runtime.toml_text import document, inline

_KEYS = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
_VALUES = st.recursive(
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(_KEYS, _VALUES, max_size=4))
def test_document_of_any_table_reads_back(table: dict[str, Any]) -> None:
    assert tomllib.loads(document(table)) == table


def test_document_leaves_out_none() -> None:
    assert document({"a": None, "b": {"c": None, "d": 1}}) == "[b]\nd = 1\n"


def test_inline_of_dates_is_bare() -> None:
    assert inline([datetime.date(2024, 5, 17), datetime.time(1, 2)]) == "[2024-05-17, 01:02:00]"


def test_inline_of_what_toml_lacks_is_refused() -> None:
    with pytest.raises(TypeError, match="TOML has no value for None"):
        inline([None])
