"""Penalties on the size of weights, added to the loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from distopt import ops

RegularizerLike: TypeAlias = "str | Callable[[Any], Any] | None"


class L1L2:
    """``l1 * sum(|w|) + l2 * sum(w * w)``."""

    def __init__(self, l1: float = 0.0, l2: float = 0.0) -> None:
        self.l1, self.l2 = l1, l2

    def __call__(self, weight: Any) -> Any:
        penalty: Any = 0.0
        if self.l1:
            penalty = penalty + self.l1 * ops.reduce_sum(ops.abs(weight))
        if self.l2:
            penalty = penalty + self.l2 * ops.reduce_sum(ops.square(weight))
        return penalty


class L1(L1L2):
    """``l1 * sum(|w|)``."""

    def __init__(self, l1: float = 0.01) -> None:
        super().__init__(l1=l1)


class L2(L1L2):
    """``l2 * sum(w * w)``; without the half that some definitions have."""

    def __init__(self, l2: float = 0.01) -> None:
        super().__init__(l2=l2)


def get(identifier: RegularizerLike) -> Callable[[Any], Any] | None:
    """Return the regularizer that ``identifier`` stands for: a name (with its default rate), a callable, or ``None``.

    Raises: ValueError for an unknown name; TypeError for anything else that cannot be called.
    """
    if identifier is None:
        return None
    if isinstance(identifier, str):
        known = {"l1": L1, "l2": L2}
        if identifier.lower() not in known:
            raise ValueError(f"unknown regularizer {identifier!r}; known are l1 and l2")
        return known[identifier.lower()]()
    if callable(identifier):
        return identifier
    raise TypeError(f"a regularizer is a name or a callable, not {identifier!r}")
