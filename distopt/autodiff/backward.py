"""The backward pass: from the newest node to the oldest, each once, adding up what arrives at it.

Rules of this file: plain arrays and boxes only. A gradient has the dtype of the value it belongs to. Sums are formed
in the order in which nodes are visited, the reverse of that in which they were recorded.
A pass keeps its state to itself, so that several may run on a persistent tape at once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import autograd.numpy as anp
import numpy as np
from autograd.core import sparse_add, sparse_object_types, vspace
from autograd.numpy.numpy_boxes import ArrayBox
from autograd.tracer import getval, new_box

from distopt.autodiff.nodes import ROW_SPARSE, VARIABLE, Node, Recording, derivative, dtype_of
from distopt.autodiff.rows import Rows, concatenate, densify

_ndarray = np.ndarray


def backward_pass(
    recording: Recording,
    seeds: Iterable[tuple[Node, Any]],
    wanted: Collection[int],
    *,
    release: bool,
    replay_trace: int | None,
) -> list[Any]:
    """Return a list that holds, at each ``order`` in ``wanted``, that node's gradient: an array, box or :class:`Rows`.

    ``seeds`` are target nodes with the gradient each starts from. With ``release``, nodes forget their arguments once
    they were visited. With ``replay_trace``, the computation is itself recorded by the tape of that trace.
    """
    count = recording.count
    totals: list[Any] = [None] * count
    if not wanted:
        return totals
    owned = bytearray(count)  # whether a total is an array that nobody else holds
    rows: dict[int, list[Rows]] = {}  # by order of a variable's root: nothing else gets row-sparse gradients
    for node, gradient in seeds:
        order = node.order
        totals[order] = gradient if totals[order] is None else _plus(totals[order], gradient)
    first = min(wanted)
    operations: Iterable[Node] = reversed(recording.operations)
    if recording.completions is not None:
        operations = recording.completions.walk(operations, totals)
    for node in operations:
        order = node.order
        if order < first:
            break
        gradient = totals[order]
        if gradient is None:
            continue
        fused = node.fused
        if fused is None or replay_trace is not None or type(gradient) is ArrayBox:
            gradients = _differentiate(node, gradient, replay_trace)
            fresh = False
        else:
            fresh = fused.fresh
            gradients = fused.backward(node, gradient, owned[order] == 1 and order not in wanted)
            if gradients is NotImplemented:
                gradients = _differentiate(node, gradient, replay_trace)
                fresh = False
        for parent, contribution in zip(node.parents, gradients, strict=True):
            target = parent.order
            earlier = totals[target]
            if earlier is None and type(contribution) is not Rows:
                totals[target] = contribution
                owned[target] = fresh
            elif type(contribution) is Rows:
                rows.setdefault(target, []).append(contribution)
            elif owned[target] and type(earlier) is _ndarray and type(contribution) is not ArrayBox:
                np.add(earlier, contribution, out=earlier)
            else:
                totals[target] = _plus(earlier, contribution)
                owned[target] = type(totals[target]) is _ndarray
        if release:
            node.args = node.saved = None
    for order, parts in rows.items():
        gradient = concatenate(parts[::-1])
        totals[order] = gradient if totals[order] is None else anp.add(totals[order], densify(gradient))
    return totals


def _differentiate(node: Node, gradient: Any, replay_trace: int | None) -> Sequence[Any]:
    """Return the gradients of one node by autograd's rules; they are recorded by every tape that follows an input."""
    if len(node.parents) == 1 and node.parents[0].function is VARIABLE:
        row_sparse = ROW_SPARSE.get(node.function)
        rows = None if row_sparse is None else row_sparse(node, gradient)
        if rows is not None:
            return (rows,)
    value, args = node.value, node.args
    if replay_trace is not None:
        value = new_box(value, replay_trace, node)
        args = list(args)
        for argnum, parent in zip(node.argnums, node.parents, strict=True):
            args[argnum] = new_box(args[argnum], replay_trace, parent)
    gradients = derivative(node.function)(node.argnums, value, args, node.kwargs)(gradient)
    return [_like(part, parent) for part, parent in zip(gradients, node.parents, strict=True)]


def _plus(a: Any, b: Any) -> Any:
    return vspace(a).add(a, b) if isinstance(getval(a), tuple) else anp.add(a, b)


def _like(gradient: Any, parent: Node) -> Any:
    """Return ``gradient`` as a dense value in the dtype of the value of ``parent``."""
    if type(gradient) in sparse_object_types:
        gradient = sparse_add(vspace(gradient), None, gradient)
    if isinstance(getval(parent.value), tuple):  # several results; their parts are nodes of their own
        return gradient
    dtype = dtype_of(parent.value)
    if dtype_of(gradient) == dtype:
        return gradient
    return anp._astype(gradient, dtype) if type(gradient) is ArrayBox else np.asarray(gradient).astype(dtype)
