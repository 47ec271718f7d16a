"""Docstrings of public names: there is one, its parts stand in order, it tells what is raised, and examples run."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from tests.public_names import modules, offered, public_modules

PARTS = ("Shapes", "Units", "Raises", "Source")
"""In the order in which CONTRIBUTING.md has them; an example comes last."""


def _documented() -> dict[str, Any]:
    """Return every public function and class, and the public methods that distopt's classes define."""
    found: dict[str, Any] = {}
    for module_name in public_modules():
        for value in offered(importlib.import_module(module_name)).values():
            if inspect.isfunction(value):
                found.setdefault(f"{value.__module__}.{value.__qualname__}", value)
            elif inspect.isclass(value) and value.__module__.startswith("distopt"):
                found.setdefault(f"{value.__module__}.{value.__qualname__}", value)
                for method, member in vars(value).items():
                    member = getattr(member, "__func__", getattr(member, "fget", member))
                    if not method.startswith("_") and inspect.isfunction(member):
                        found.setdefault(f"{member.__module__}.{member.__qualname__}", member)
    return found


DOCUMENTED = _documented()


def _inherits_docstring(qualified: str, value: Any) -> bool:
    """Whether ``value`` is a method that a base class of its class documents."""
    rest = qualified.rpartition(".")[2]
    holder = getattr(importlib.import_module(value.__module__), value.__qualname__.partition(".")[0], None)
    if not inspect.isclass(holder) or inspect.isclass(value):
        return False
    return any(getattr(vars(base).get(rest), "__doc__", None) for base in holder.__mro__[1:])


@pytest.mark.parametrize("qualified", DOCUMENTED)
def test_public_name_has_a_docstring_whose_first_line_is_a_sentence(qualified: str) -> None:
    value = DOCUMENTED[qualified]
    text = value.__doc__
    if text is None and _inherits_docstring(qualified, value):
        return
    assert text, f"{qualified} has no docstring"
    first = inspect.cleandoc(text).split("\n\n")[0]
    assert re.search(r"[.:;]$", first) or ">>>" in text, f"the docstring of {qualified} does not begin with a sentence"


@pytest.mark.parametrize("qualified", DOCUMENTED)
def test_parts_of_a_docstring_stand_in_order(qualified: str) -> None:
    text = inspect.cleandoc(DOCUMENTED[qualified].__doc__ or "")
    parts = re.findall(rf"^({'|'.join(PARTS)})\b[^:\n]*:", text, re.MULTILINE)
    assert parts == sorted(parts, key=PARTS.index), f"{qualified} has {parts}; the order is {PARTS}"
    if parts and ">>>" in text:
        last = max(match.start() for match in re.finditer(rf"^{parts[-1]}\b", text, re.MULTILINE))
        assert text.index(">>>") > last or parts[-1] == "Source", f"{qualified}: an example comes after {parts[-1]}"


@pytest.mark.parametrize("qualified", DOCUMENTED)
def test_docstring_tells_of_the_errors_that_the_body_raises(qualified: str) -> None:
    value = DOCUMENTED[qualified]
    raised = sorted(set(_raised(value)))
    text = value.__doc__ or ""
    if raised and not _inherits_docstring(qualified, value):
        assert re.search(r"\b[Rr]aise[sd]?\b|\brefused?\b", text), f"{qualified} raises {raised} and does not tell"


def _raised(value: Any) -> Iterator[str]:
    """Yield the names of the errors that stand in ``raise`` statements of a function, or of a class's ``__init__``."""
    if inspect.isclass(value):
        value = None if getattr(value, "_is_protocol", False) else vars(value).get("__init__")
        if not inspect.isfunction(value):
            return
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(value)))
    except (OSError, SyntaxError):  # made by a decorator or from text
        return
    inner = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.Lambda)][1:]
    hidden = {id(part) for node in inner for part in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and id(node) not in hidden:
            name = node.exc.func
            called = name.id if isinstance(name, ast.Name) else name.attr if isinstance(name, ast.Attribute) else ""
            if called.endswith("Error") and called != "NotImplementedError":
                yield called


# ---------------------------------------------------------------- examples


def _with_examples() -> list[str]:
    return [name for name in modules() if ">>>" in _source(importlib.import_module(name))]


def _source(module: ModuleType) -> str:
    try:
        return inspect.getsource(module)
    except OSError:  # an empty file
        return ""


@pytest.mark.parametrize("name", _with_examples())
def test_examples_in_docstrings_of_a_module_run(name: str) -> None:
    results = doctest.testmod(importlib.import_module(name), verbose=False)
    assert results.attempted > 0, "the examples of the module are not where doctest finds them"
    assert results.failed == 0


def test_rules_complain_about_what_they_are_for() -> None:
    def tells_nothing(x: int) -> None:
        if x < 0:
            raise ValueError("negative")

    assert list(_raised(tells_nothing)) == ["ValueError"]

    def hides() -> Any:
        def inner() -> None:
            raise ValueError("inside")

        return inner

    assert list(_raised(hides)) == []
