"""docs/api.md lists every public name, and no other."""

from __future__ import annotations

import importlib

import pytest

from tests import api_page
from tests.public_names import offered, public_modules

TEXT = api_page.PAGE.read_text("utf-8")


def test_page_is_what_the_code_says() -> None:
    assert api_page.render(api_page.parse(TEXT)) == TEXT, "renew it: python -m tests.api_page"


def test_every_public_name_is_on_the_page_in_its_section() -> None:
    sections = {part.partition("`\n")[0]: part for part in TEXT.split("## `tf")[1:]}
    for module_name in public_modules():
        section = sections[module_name.removeprefix("distopt")]
        assert [name for name in offered(importlib.import_module(module_name)) if f"`{name}`" not in section] == []


@pytest.mark.parametrize("entry", api_page.parse(TEXT), ids=lambda entry: ".".join(entry))
def test_difference_is_told_of_a_name_that_exists(entry: tuple[str, str]) -> None:
    prefix, name = entry
    assert name in offered(importlib.import_module(f"distopt.{prefix}" if prefix else "distopt"))


def test_listing_a_name_that_does_not_exist_is_noticed() -> None:
    assert "no_such_name" not in api_page.render({("", "no_such_name"): "x"})
