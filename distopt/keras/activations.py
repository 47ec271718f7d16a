"""Activation functions by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from distopt import nn

ActivationLike: TypeAlias = "str | Callable[[Any], Any] | None"


def linear(x: Any) -> Any:
    """Return ``x``."""
    return x


_BY_NAME: dict[str, Callable[[Any], Any]] = {
    "linear": linear,
    "relu": nn.relu,
    "sigmoid": nn.sigmoid,
    "tanh": nn.tanh,
    "softmax": nn.softmax,
}


def get(identifier: ActivationLike) -> Callable[[Any], Any]:
    """Return the activation that ``identifier`` stands for: a name, a callable, or ``None`` for the identity.

    Raises: ValueError for an unknown name; TypeError for anything else that cannot be called.
    """
    if identifier is None:
        return linear
    if isinstance(identifier, str):
        if identifier not in _BY_NAME:
            raise ValueError(f"unknown activation {identifier!r}; known are {', '.join(_BY_NAME)}")
        return _BY_NAME[identifier]
    if callable(identifier):
        return identifier
    raise TypeError(f"an activation is a name or a callable, not {identifier!r}")
