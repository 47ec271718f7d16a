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
from distopt.tensor import Tensor

_MOST_TERMS = 16


class LossKind(enum.Enum):
    """How a loss was scaled."""

    AVERAGED = enum.auto()
    LOCAL_MEAN = enum.auto()


AVERAGED = LossKind.AVERAGED
"""A term was divided by a size that was given, as ``compute_average_loss`` does."""
LOCAL_MEAN = LossKind.LOCAL_MEAN
"""A term is the mean over all that one replica has, and was not scaled after that."""


Origin = tuple[LossKind, weakref.ref[Any]]
"""What is known of the gradients that a replica took last: the kind of their loss; with it the first of them."""


def is_of(origin: Origin, pairs: Iterable[tuple[Any, Any]]) -> bool:
    """Return whether ``pairs`` hold the gradients of ``origin``, not merely some for the same variables."""
    first = origin[1]()
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
            context.origin = kind, weakref.ref(gradient if type(gradient) is Tensor else _values_of(gradient))
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
