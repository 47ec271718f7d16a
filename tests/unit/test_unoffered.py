"""A name of TensorFlow that is not offered raises an error that says what to use."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest

import distopt
from distopt.errors import DistoptError, NotOfferedError
from distopt.unoffered import ELSEWHERE, UNOFFERED, guard


def _holder(qualified: str) -> ModuleType:
    prefix = qualified.rpartition(".")[0]
    return importlib.import_module(f"distopt.{prefix}" if prefix else "distopt")


@pytest.mark.parametrize("qualified", UNOFFERED)
def test_name_in_the_table_is_refused_with_what_to_use(qualified: str) -> None:
    holder, name = _holder(qualified), qualified.rpartition(".")[2]
    assert name not in vars(holder)
    with pytest.raises(NotOfferedError) as raised:
        getattr(holder, name)
    assert str(raised.value) == f"tf.{qualified} is not offered by distopt: {UNOFFERED[qualified]}"


@pytest.mark.parametrize("prefix", ELSEWHERE)
def test_name_that_no_table_has_is_refused_with_what_the_module_is_for(prefix: str) -> None:
    with pytest.raises(NotOfferedError, match="is not offered by distopt: ") as raised:
        _ = importlib.import_module(f"distopt.{prefix}").quixotry
    assert str(raised.value).endswith(ELSEWHERE[prefix])


def test_misspelt_name_is_refused_with_the_one_that_was_meant() -> None:
    with pytest.raises(NotOfferedError, match=r"tf.reduce_summ is not offered by distopt: perhaps reduce_sum"):
        _ = distopt.reduce_summ  # type: ignore[attr-defined]
    with pytest.raises(NotOfferedError, match=r"docs/api.md"):
        _ = distopt.quixotry  # type: ignore[attr-defined]


def test_refusal_is_an_attribute_error_so_that_hasattr_and_imports_work() -> None:
    assert issubclass(NotOfferedError, AttributeError)
    assert issubclass(NotOfferedError, DistoptError)
    assert not hasattr(distopt, "device")
    assert getattr(distopt, "device", None) is None
    with pytest.raises(ImportError):
        from distopt import device  # type: ignore[attr-defined]  # noqa: F401
    assert importlib.import_module("distopt.cli") is distopt.cli  # type: ignore[attr-defined]


def test_private_names_are_refused_as_python_does() -> None:
    with pytest.raises(AttributeError, match="has no attribute '__wrapped__'") as raised:
        _ = distopt.__wrapped__  # type: ignore[attr-defined]
    assert not isinstance(raised.value, NotOfferedError)


def test_guarded_module_still_has_its_names() -> None:
    module = ModuleType("distopt.fine")
    module.present = 1  # type: ignore[attr-defined]
    guard(module)
    assert module.present == 1
    with pytest.raises(NotOfferedError, match=r"tf\.fine\.absent"):
        _ = module.absent
