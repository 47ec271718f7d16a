"""The backward pass: from the newest node to the oldest, each once, adding up what arrives at it.

Rules of this file: plain arrays and boxes only. A gradient has the dtype of the value it belongs to. Sums are formed
in the order in which nodes are visited, which is the reverse of the order in which they were recorded.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from heapq import heappop, heappush
from typing import Any

import autograd.numpy as anp
import numpy as np
from autograd.core import sparse_add, sparse_object_types, vspace
from autograd.numpy.numpy_boxes import ArrayBox

from distopt.autodiff.nodes import ROW_SPARSE, Node, derivative, dtype_of
from distopt.autodiff.rows import Rows, concatenate, densify

_ndarray = np.ndarray


class _Sum:
    """What has arrived at one node so far."""

    __slots__ = ("node", "owned", "rows", "total")

    def __init__(self, node: Node) -> None:
        self.node = node
        self.total: Any = None
        self.owned = False  # whether ``total`` is an array that nobody else holds
        self.rows: list[Rows] | None = None


def backward_pass(
    seeds: Iterable[tuple[Node, Any]], wanted: Collection[int], trace: int, *, release: bool, replay: bool
) -> dict[int, Any]:
    """Return the gradients of the nodes whose ``order`` is in ``wanted``: arrays, boxes or :class:`Rows`.

    ``seeds`` are target nodes with the gradient each starts from. With ``release``, nodes forget their arguments once
    they were visited. With ``replay``, the computation is itself recorded on the tape with number ``trace``.
    """
    pending: dict[int, _Sum] = {}
    heap: list[int] = []
    found: dict[int, Any] = {}
    if not wanted:
        return found
    oldest = min(wanted)
    for node, gradient in seeds:
        _add(pending, heap, node, gradient, False)
    while heap:
        order = -heappop(heap)
        entry = pending.pop(order)
        node = entry.node
        gradient = entry.total
        owned = entry.owned
        if order in wanted:
            if entry.rows is not None:
                rows = concatenate(entry.rows[::-1])
                gradient = rows if gradient is None else anp.add(gradient, densify(rows))
            found[order] = gradient
            owned = False
        parents = node.parents
        if not parents:
            continue
        fused = node.fused
        if fused is not None and not replay and type(gradient) is not ArrayBox:
            fresh = fused.fresh
            gradients = fused.backward(node, gradient, owned)
        else:
            fresh = False
            gradients = _differentiate(node, gradient, trace if replay else None)
        for parent, contribution in zip(parents, gradients, strict=False):
            if parent.order >= oldest:
                _add(pending, heap, parent, contribution, fresh)
        if release:
            node.release()
    return found


def _add(pending: dict[int, _Sum], heap: list[int], node: Node, gradient: Any, fresh: bool) -> None:
    entry = pending.get(node.order)
    if entry is None:
        entry = pending[node.order] = _Sum(node)
        heappush(heap, -node.order)
    if type(gradient) is Rows:
        entry.rows = [gradient] if entry.rows is None else [*entry.rows, gradient]
    elif entry.total is None:
        entry.total = gradient
        entry.owned = fresh
    elif entry.owned and type(entry.total) is _ndarray and type(gradient) is not ArrayBox:
        np.add(entry.total, gradient, out=entry.total)
    else:
        entry.total = anp.add(entry.total, gradient)
        entry.owned = type(entry.total) is _ndarray


def _differentiate(node: Node, gradient: Any, replay_trace: int | None) -> Sequence[Any]:
    """Return the gradients of one node by autograd's rules; they are recorded by every tape that follows an input."""
    if replay_trace is None and node.parents[0].is_variable and len(node.parents) == 1:
        row_sparse = ROW_SPARSE.get(node.function)
        rows = None if row_sparse is None else row_sparse(node, gradient)
        if rows is not None:
            return (rows,)
    value, args = node.value, node.args
    if replay_trace is not None:
        value = ArrayBox(value, replay_trace, node)
        args = list(args)
        for argnum, parent in zip(node.argnums, node.parents, strict=True):
            args[argnum] = ArrayBox(args[argnum], replay_trace, parent)
    gradients = derivative(node.function)(node.argnums, value, args, node.kwargs)(gradient)
    return [_like(part, parent) for part, parent in zip(gradients, node.parents, strict=True)]


def _like(gradient: Any, parent: Node) -> Any:
    """Return ``gradient`` as a dense value in the dtype of the value of ``parent``."""
    if type(gradient) in sparse_object_types:
        gradient = sparse_add(vspace(gradient), None, gradient)
    dtype = dtype_of(parent.value)
    if dtype_of(gradient) == dtype:
        return gradient
    return anp._astype(gradient, dtype) if type(gradient) is ArrayBox else np.asarray(gradient).astype(dtype)
