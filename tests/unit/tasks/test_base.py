"""Tasks are found by name."""

from __future__ import annotations

from typing import Any

import pytest

from distopt.tasks import find_task
from distopt.tasks.digits import Digits


@pytest.mark.parametrize("name", ["digits", "distopt.tasks.digits:Digits"])
def test_find_task_by_name_or_path(name: str) -> None:
    found: Any = find_task(name)
    assert found is Digits


@pytest.mark.parametrize("name", ["digit", ":Digits", "distopt.tasks.digits:", "distopt.tasks.digits:Digit"])
def test_find_task_unknown_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="unknown task"):
        find_task(name)


def test_find_task_of_a_missing_module_is_refused() -> None:
    with pytest.raises(ImportError):
        find_task("distopt_no_such_package.tasks:Mine")


def test_find_task_of_something_else_names_what_it_lacks() -> None:
    with pytest.raises(TypeError, match="per_example_loss"):
        find_task("collections:OrderedDict")
