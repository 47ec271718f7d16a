"""What is wrong with an argument of ``apply_gradients`` that is no list of pairs; looked for where something failed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from distopt.optimizers.pipeline import name_of
from distopt.variable import Variable

WRONG_PAIRS = (TypeError, ValueError, IndexError, AttributeError, NotImplementedError)
"""What an argument that is no list of pairs may lead to."""

_WANTED = "apply_gradients takes pairs (gradient, variable), as zip(gradients, variables) makes them"


def wrong_pair(given: Iterable[Any]) -> Exception | None:
    """Return the error for the first item that is no gradient, or None, with a variable; None if there is no such item.

    It is a ValueError for what is no pair; NotImplementedError for a pair without a variable in the second place, as
    in TensorFlow.

    >>> wrong_pair([(0.5, Variable(1.0)), (Variable(1.0, name="w"), 0.5)])
    NotImplementedError("only variables can be updated, and item 1 is (variable 'w:0', a float): apply_gradients \
takes pairs (gradient, variable), as zip(gradients, variables) makes them")
    """
    for position, item in enumerate(given):
        if not isinstance(item, tuple | list) or len(item) != 2:
            return ValueError(f"{_WANTED}, but item {position} is {_describe(item)}")
        if not isinstance(item[1], Variable):
            pair = f"({_describe(item[0])}, {_describe(item[1])})"
            return NotImplementedError(f"only variables can be updated, and item {position} is {pair}: {_WANTED}")
    return None


def returned_by(hook: Any, pairs: Any) -> Any:
    """Return ``pairs``, which ``hook``, an aggregator or transformer, has returned.

    Raises: TypeError if it has returned None.
    """
    if pairs is None:
        wanted = "an aggregator or transformer returns the pairs (gradient, variable)"
        raise TypeError(f"{name_of(hook)} returned None; {wanted}")
    return pairs


def _describe(value: Any) -> str:
    if isinstance(value, Variable):
        return f"variable {value.name!r}"
    many = f" of {len(value)}" if isinstance(value, tuple | list) else ""
    return f"a {type(value).__name__}{many}"
