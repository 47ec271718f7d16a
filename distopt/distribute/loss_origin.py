"""Where the loss that a gradient was taken of came from: was it divided by the global batch, or by the local one?

A tape is asked for gradients of a target. From its node this goes back over additions alone: a term that was scaled in
any other way may have been scaled right, so nothing is said of it.
"""

from __future__ import annotations

import enum
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import autograd.numpy as anp

from distopt import replica_context
from distopt.indexed_slices import IndexedSlices
from distopt.ops.reductions import DIVIDED_SUMS, MEANS

_MOST_TERMS = 16


class LossKind(enum.Enum):
    """How a loss was scaled."""

    AVERAGED = enum.auto()
    LOCAL_MEAN = enum.auto()


AVERAGED = LossKind.AVERAGED
"""A term was divided by a size that was given, as ``compute_average_loss`` does."""
LOCAL_MEAN = LossKind.LOCAL_MEAN
"""A term is the mean over all that one replica has, and was not scaled after that."""


class Origin:
    """What is known of the gradients that a replica took last; ``kind`` of their loss."""

    __slots__ = ("_first", "kind")

    def __init__(self, kind: LossKind, first: Any) -> None:
        self.kind = kind
        self._first = weakref.ref(first)

    def is_of(self, pairs: Iterable[tuple[Any, Any]]) -> bool:
        """Return whether ``pairs`` hold these gradients, not merely some for the same variables."""
        first = self._first()
        return first is not None and any(_values_of(gradient) is first for gradient, _ in pairs)


def note_origin(node: Any, gradients: Sequence[Any]) -> None:
    """Keep for the current replica what kind of loss ``gradients`` are of; called by tapes with the target's node."""
    context: Any = replica_context.current().replica
    if context is None:
        return
    context.origin = None
    kind = AVERAGED if node.function in DIVIDED_SUMS else _kind_of(node)
    if kind is None:
        return
    for gradient in gradients:
        if gradient is not None:
            context.origin = Origin(kind, _values_of(gradient))
            return


def _values_of(gradient: Any) -> Any:
    return gradient.values if isinstance(gradient, IndexedSlices) else gradient


def _kind_of(node: Any) -> LossKind | None:
    terms = [node]
    found: LossKind | None = None
    for term in terms:
        function = term.function
        if function is anp.add and len(terms) < _MOST_TERMS:
            terms += term.parents
        elif function in DIVIDED_SUMS:
            found = found or AVERAGED
        elif function in MEANS and term.value.ndim == 0 and term.parents[0].value.size > 1:
            return LOCAL_MEAN
    return found
