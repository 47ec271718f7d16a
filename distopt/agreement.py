"""Whether those who make a step together mean the same variables, and if not, which mistake it is.

Replicas of one process can compare variables themselves, processes only what is known of them; both end here.
Processes describe their variables to each other once for each list. Every exchange after that carries a
:class:`Label`, in the messages of the numbers themselves.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Self, TypeVar

from distopt.errors import (
    DifferentVariablesError,
    MergeOrderError,
    MissingGradientError,
    MistakeError,
    UnequalDtypesError,
    UnequalHypersError,
    UnequalShapesError,
    UnequalStepsError,
    VariableOrderError,
    VariablePerReplicaError,
)

Key = TypeVar("Key")

_MOST_NAMES = 8
_LABEL: Final = struct.Struct("<QQq")
LABEL_BYTES: Final = _LABEL.size
pack_label: Final = _LABEL.pack
"""``Label(...).encode()``, for every step."""


class Label(NamedTuple):
    """What a process takes a reduction to be of; equal on all of them. ``hypers`` and ``step`` are 0 for values."""

    what: int
    """A digest of the kind of reduction and of what is reduced."""
    hypers: int = 0
    """Digests of the numbers of this step (the lower 32 bits) and of the optimizer's settings (the upper ones)."""
    step: int = 0
    """The optimizer's ``iterations``."""

    def encode(self) -> bytes:
        """Return the label as :data:`LABEL_BYTES` bytes."""
        return _LABEL.pack(*self)

    @classmethod
    def decode(cls, encoded: bytes) -> Self:
        """Return the label that :meth:`encode` made; all zero for no bytes."""
        return cls(*_LABEL.unpack(encoded)) if encoded else cls(0)


def digest_of(*parts: Any) -> int:
    """Return a number that is the same in every process for parts with the same ``repr``.

    >>> digest_of("sum", (2, 3)) == digest_of("sum", (2, 3)) != digest_of("sum", (3, 2))
    True
    """
    text = repr(parts).encode()
    return zlib.crc32(text) | zlib.adler32(text) << 32


def label_mismatch(who: str, mine: bytes, other_who: str, theirs: bytes) -> MistakeError:
    """Return the error for two encoded labels that differ.

    >>> str(label_mismatch("rank 0", Label(7, step=0).encode(), "rank 2", Label(7, step=1).encode())).partition(":")[0]
    'rank 0 is at step 0 where rank 2 is at step 1'
    """
    ours, other = Label.decode(mine), Label.decode(theirs)
    if ours.what != other.what:
        return MergeOrderError(
            f"{who} and {other_who} reduce different things with each other: gradients of other variables, values of "
            "another shape or dtype, or by another operation; every process must make the same all_reduce and "
            "apply_gradients calls in the same order"
        )
    if ours.step != other.step:
        return UnequalStepsError(
            f"{who} is at step {ours.step} where {other_who} is at step {other.step}: the optimizer's iterations "
            "differ; restore or assign them on every process alike"
        )
    if ours.hypers >> 32 != other.hypers >> 32:
        return UnequalHypersError(
            f"{who} and {other_who} have different settings of the optimizer at step {ours.step}, such as epsilon or a "
            "clip limit: one was changed after the first step on some processes only; change it alike on every process",
            of_digests="settings",
        )
    return UnequalHypersError(
        f"{who} and {other_who} have different hypers at step {ours.step}, such as the learning rate: set numbers "
        "alike on every process (a callable or a schedule is asked once, by the host of replica 0)",
        of_digests="hypers",
    )


def describe_names(names: Sequence[str]) -> list[Hashable]:
    """Return a key for each variable by which processes compare lists of them.

    Counters in names may run differently in another process, which has made other layers as well; so they only tell
    which of several variables in the list comes first.

    >>> describe_names(["dense_4/kernel:0", "dense_3/kernel:0"])
    [('dense/kernel:0', 1), ('dense/kernel:0', 0)]
    """
    stems = [stem_of(name) for name in names]
    counters = [tuple(map(int, _COUNTER.findall(name))) for name in names]
    places = {stem: sorted({c for c, s in zip(counters, stems, strict=True) if s == stem}) for stem in set(stems)}
    return [(stem, places[stem].index(counter)) for stem, counter in zip(stems, counters, strict=True)]


def stem_of(name: str) -> str:
    """Return a name without the numbers that layers and optimizers count theirs with.

    >>> stem_of("sgd_1/dense_4/kernel:0")
    'sgd/dense/kernel:0'
    """
    return _COUNTER.sub("", name)


def odd_ones(values: Mapping[Key, Hashable]) -> tuple[Key | None, tuple[Key, ...]]:
    """Return a representative of the largest group with one value, and everyone outside of that group.

    Among groups of one size the one that appears first in ``values`` is taken.

    >>> odd_ones({"rank 0": "a", "rank 1": "b", "rank 2": "b"})
    ('rank 1', ('rank 0',))
    """
    groups: dict[Hashable, list[Key]] = {}
    for key, value in values.items():
        groups.setdefault(value, []).append(key)
    if not groups:
        return None, ()
    largest = max(groups.values(), key=len)
    return largest[0], tuple(key for key in values if key not in largest)


class Odd(NamedTuple):
    """A rank whose value is not that of most ranks; ``reference`` is one of these."""

    rank: int
    reference: int
    most: str
    """What a message calls most ranks: by one of them, and how many they are."""

    @property
    def name(self) -> str:
        """What a message calls the odd rank."""
        return f"rank {self.rank}"

    def describe(self, differences: Iterable[tuple[str, str, str]]) -> str:
        """Return ``differences`` for a message: the name of each, what most ranks have, and what the odd one has."""
        return "; ".join(
            f"{what} is {mine} on {self.most} and {other} on {self.name}" for what, mine, other in differences
        )


def find_odd(values: Mapping[int, Hashable]) -> Odd | None:
    """Return the first rank whose value is not that of most; None where all are equal. See :func:`odd_ones`.

    >>> find_odd({0: "a", 1: "b", 2: "b", 3: "b", 4: "b"})
    Odd(rank=0, reference=1, most='rank 1 (as 4 of 5)')
    >>> find_odd({0: "a", 1: "b"}).most
    'rank 0'
    """
    reference, odd = odd_ones(values)
    if reference is None or not odd:
        return None
    size = len(values)
    agree = "" if size == 2 else f" (as {size - len(odd)} of {size})"
    return Odd(odd[0], reference, f"rank {reference}{agree}")


_COUNTER = re.compile(r"_(\d+)(?=[/:]|$)")


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
