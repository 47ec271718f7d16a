"""What decides an optimizer's updates beside the hypers, which are compared, or travel, as numbers with every step.

That is the plain content of ``get_config``: ``epsilon``, ``amsgrad``, clip limits, features; and the aggregator. It is
read anew when an attribute of an optimizer has changed (:mod:`distopt.optimizers.changes`).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np

from distopt.aggregation import GradientAggregator
from distopt.agreement import find_odd
from distopt.optimizers.clip_options import CLIP_OPTIONS
from distopt.optimizers.feature_options import FEATURE_OPTIONS

_ELSEWHERE = frozenset({"decay", "slot_dtype", *CLIP_OPTIONS, *FEATURE_OPTIONS})
"""What is found among the clips and the features, or never changes."""

_STATE = frozenset({"keeps_slots"})
"""Attributes that say how far a training is, not how it goes."""

_PLAIN = frozenset({bool, int, float, complex, str, type(None)})


class OptimizerSettings:
    """The settings of one optimizer, as of the latest :meth:`digest`."""

    def __init__(self, optimizer: Any) -> None:
        self._attributes = vars(optimizer)
        self._get_config = getattr(optimizer, "get_config", dict)
        self._hypers = optimizer._hypers
        self._digest = 0
        self.current: Mapping[str, str] = {}
        """By name, as text that is equal in every process."""
        self._aggregator: dict[str, str] = {}
        self._watched: Callable[[dict[str, Any]], Any] = _nothing
        self._read()

    def digest(self) -> int:
        """Return 32 bits that are the same in every process with the same settings; they are read anew if changed."""
        if self._state() != self._seen:
            self._read()
        return self._digest

    def _state(self) -> tuple[Any, int, int]:
        attributes = self._attributes
        return self._watched(attributes), attributes["clips"].change, attributes["features"].change

    def _read(self) -> None:
        try:
            config: dict[str, Any] = self._get_config()
        except (NotImplementedError, AttributeError):
            # Of a class, or a schedule, of the user's, which has no configuration that works: the attributes must do.
            config = {
                name: value
                for name, value in self._attributes.items()
                if not name.startswith("_") and name not in _STATE
            }
        plain = {
            name: repr(value)
            for name, value in config.items()
            if name != "name" and name not in self._hypers and _is_plain(value)
        }
        attributes = self._attributes
        aggregator = attributes.get("gradient_aggregator")
        if isinstance(aggregator, GradientAggregator):
            self._aggregator = {"gradient_aggregator": aggregator.settings}
        own = [name if name in attributes else f"_{name}" for name in plain if name not in _ELSEWHERE]
        if all(name in attributes for name in own):
            self._watched = itemgetter(*own) if own else _nothing
        else:  # a class of the user's that keeps something under another name than it has in the configuration
            self._watched = _plain_values
        self._seen = self._state()
        plain |= self._aggregator
        self.current = plain
        self._digest = zlib.crc32(repr(sorted(plain.items())).encode())


def differing(first: Mapping[str, str], other: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Return name and both values of each setting that differs; ``(absent)`` for a missing one.

    >>> differing({"epsilon": "1e-07"}, {"epsilon": "0.001"})
    [('epsilon', '1e-07', '0.001')]
    """
    names = sorted({*first, *other})
    values = [(name, first.get(name, "(absent)"), other.get(name, "(absent)")) for name in names]
    return [(name, mine, theirs) for name, mine, theirs in values if mine != theirs]


def describe_differing(told: Sequence[Mapping[str, str]]) -> str:
    """Return how a rank differs from most in what all ranks have told, for a message; empty where none does.

    >>> describe_differing([{"replicas": "6"}, {"replicas": "4"}, {"replicas": "6"}])
    'replicas is 6 on rank 0 (as 2 of 3) and 4 on rank 1'
    """
    odd = find_odd({rank: tuple(sorted(of_rank.items())) for rank, of_rank in enumerate(told)})
    return "" if odd is None else odd.describe(differing(told[odd.reference], told[odd.rank]))


def _nothing(attributes: Mapping[str, Any]) -> None:  # noqa: ARG001
    return None


def _plain_values(attributes: Mapping[str, Any]) -> list[Any]:
    return [value for name, value in attributes.items() if name != "_change" and type(value) in _PLAIN]


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return type(value) in _PLAIN or isinstance(value, np.generic)
