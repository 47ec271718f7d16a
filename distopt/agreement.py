"""Whether those who make a step together mean the same variables, and if not, which mistake it is.

Replicas of one process can compare variables themselves, processes only what is known of them; both end here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import NamedTuple

from distopt.errors import (
    DifferentVariablesError,
    MissingGradientError,
    MistakeError,
    UnequalDtypesError,
    UnequalShapesError,
    VariableOrderError,
    VariablePerReplicaError,
)

_MOST_NAMES = 8


class Described(NamedTuple):
    """One variable as others see it. ``key``: equal for the same variable; its name, where processes compare."""

    key: Hashable
    name: str
    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}{list(self.shape)}"


def disagreement(who: str, first: Sequence[Described], other_who: str, other: Sequence[Described]) -> MistakeError:
    """Return the error for two lists of variables that differ: what ``who`` applies gradients to, and ``other_who``.

    >>> w, b = Described(1, "w", (2,), "float32"), Described(2, "b", (), "float32")
    >>> type(disagreement("replica 0", [w, b], "replica 1", [w])).__name__
    'MissingGradientError'
    >>> type(disagreement("replica 0", [w, b], "replica 1", [b, w])).__name__
    'VariableOrderError'
    """
    ours, theirs = Counter(v.key for v in first), Counter(v.key for v in other)
    lists = f"{who} applies gradients to {_names(first)}, {other_who} to {_names(other)}"
    if ours == theirs:
        for a, b in zip(sorted(first, key=_name), sorted(other, key=_name), strict=True):
            if a.shape != b.shape:
                return UnequalShapesError(
                    f"{a.name} has shape {list(a.shape)} on {who}, {list(b.shape)} on {other_who}"
                )
            if a.dtype != b.dtype:
                return UnequalDtypesError(f"{a.name} is {a.dtype} on {who}, {b.dtype} on {other_who}")
        return VariableOrderError(f"{lists}: the same variables in another order; list them alike on every replica")
    for has, has_not, lacks, lacking in ((who, other_who, ours - theirs, theirs - ours),
                                         (other_who, who, theirs - ours, ours - theirs)):  # fmt: skip
        if not lacking:
            missing = _names([v for v in (*first, *other) if v.key in lacks])
            return MissingGradientError(
                f"{has_not} has no gradient for {missing}, for which {has} has one: a None on some replicas only, or a "
                "shorter list; give zeros where a replica's loss does not depend on a variable"
            )
    if [v[1:] for v in first] == [v[1:] for v in other]:
        return VariablePerReplicaError(
            f"{who} and {other_who} each have variables of their own named {_names(first)}; create them once, under "
            "`strategy.scope()` before `strategy.run`, so that all replicas share them"
        )
    return DifferentVariablesError(f"the replicas apply gradients to different variables: {lists}")


def _name(variable: Described) -> str:
    return variable.name


def _names(variables: Sequence[Described]) -> str:
    names = list(dict.fromkeys(v.name for v in variables))
    shown = ", ".join(names[:_MOST_NAMES])
    return shown if len(names) <= _MOST_NAMES else f"{shown} and {len(names) - _MOST_NAMES} more"
