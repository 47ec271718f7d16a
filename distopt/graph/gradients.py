"""Deferred gradients: a tape that is opened when a session computes them."""

# ruff: noqa: ARG001  (TensorFlow's arguments, in its order, some of which have no meaning here)
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from distopt import deferral
from distopt.autodiff.completions import GATE_GRAPH, GATE_NONE, GATE_OP, gated
from distopt.autodiff.nodes import strip_all
from distopt.autodiff.tape import GradientTape
from distopt.graph.operations import Deferred, Operation
from distopt.graph.session import Run, Scope
from distopt.graph.variables import GraphVariable
from distopt.indexed_slices import IndexedSlices
from distopt.nest import flatten
from distopt.tensor import Operand, Tensor


def gradients(
    ys: Any,
    xs: Any,
    grad_ys: Any = None,
    name: str = "gradients",
    colocate_gradients_with_ops: bool = False,
    gate_gradients: int | bool = GATE_NONE,
    aggregation_method: int | None = None,
    stop_gradients: Any = None,
    unconnected_gradients: Any = "none",
) -> list[Any]:
    """Return the deferred gradient of the sum of ``ys`` with respect to each of ``xs``; None where there is none.

    ``grad_ys`` weighs the elements of ``ys``; ``stop_gradients`` are held constant. ``gate_gradients`` says what has
    been computed before one gradient may be used: GATE_NONE (0) that gradient, GATE_OP (1, or True) also those of the
    other inputs of the operations that its ``x`` goes into, GATE_GRAPH (2) all of them. Values do not depend on it. The
    terms of a gradient are always added in the order in which the tape meets them, so ``aggregation_method`` and
    ``colocate_gradients_with_ops`` change nothing.

    Raises: RuntimeError where things run eagerly; TypeError for what is not deferred; ValueError for ``grad_ys`` that
    do not fit ``ys``.
    """
    targets, sources = flatten(ys), flatten(xs)
    if not any(hasattr(y, "graph") for y in targets):
        if deferral.building() is None:
            raise RuntimeError("tf.gradients works on deferred tensors; where things run eagerly, use tf.GradientTape")
        return [None] * len(sources)
    weights = [None] * len(targets) if grad_ys is None else flatten(grad_ys)
    if len(weights) != len(targets):
        raise ValueError(f"{len(targets)} ys need as many grad_ys, not {len(weights)}")
    for x in sources:
        if not isinstance(x, Deferred | GraphVariable):
            raise TypeError(f"a deferred gradient needs deferred tensors or variables of a graph, not {x!r}")
    return _GradientPart.of(
        targets, sources, weights, flatten(stop_gradients or []), name, int(gate_gradients), unconnected_gradients
    )


class _GradientPart:
    """The operations between some sources and some targets, which are computed again under a tape."""

    @classmethod
    def of(
        cls,
        targets: Sequence[Any],
        sources: Sequence[Any],
        weights: Sequence[Any],
        stopped: Sequence[Any],
        name: str,
        gate: int,
        unconnected: Any,
    ) -> list[Any]:
        part = cls(targets, sources, weights, stopped, gate)
        connected = list({id(source): source for source in sources if part.reaches(source)}.values())
        outputs = part.record(connected, name).outputs if connected else ()
        found: dict[int, Any] = {id(source): out for source, out in zip(connected, outputs, strict=True)}
        if getattr(unconnected, "value", unconnected) == "zero":
            zeros = {id(x): Tensor(np.zeros(x.shape, x.dtype)) for x in sources if id(x) not in found}
            found.update(zeros)
        return [found.get(id(source)) for source in sources]

    def __init__(
        self, targets: Sequence[Any], sources: Sequence[Any], weights: Sequence[Any], stopped: Sequence[Any], gate: int
    ) -> None:
        self.targets = [y for y in targets if hasattr(y, "graph")]
        self.weights = [w for y, w in zip(targets, weights, strict=True) if hasattr(y, "graph")]
        self.gate = gate
        self._stopped = {id(operand) for operand in stopped}
        before = _ancestors(y.op for y in self.targets if isinstance(y, Deferred))
        self._downstream = self._affected(before, sources)
        self._reachable = self._read_by_targets(before)

    def reaches(self, source: Any) -> bool:
        """Return whether a target depends on ``source`` in a differentiable way."""
        return source.dtype.kind not in "biu" and id(source) in self._reachable

    def record(self, sources: Sequence[Any], name: str) -> Operation:
        """Record the operation that computes the gradients with respect to ``sources``."""
        ids = {id(source) for source in sources}
        self.sources = list(sources)
        self.region = [op for op in self._downstream if any(id(out) in self._reachable for out in op.outputs)]
        inside = self._inside = set(self.region)
        boundary: list[Any] = [w for w in self.weights if isinstance(w, Deferred | GraphVariable)]
        control: list[Operation] = []
        for op in self.region:
            boundary += [o for o in op.inputs if isinstance(o, GraphVariable) or o.op not in inside]
            control += [c for c in op.control_inputs if c not in inside]
        boundary += [y for y in self.targets if isinstance(y, GraphVariable) or y.op not in inside]
        boundary += [x for x in sources if isinstance(x, GraphVariable) or x.op not in inside]
        self.neighbours: dict[int, set[int]] = {id(source): {id(source)} for source in sources}
        for op in self.region:
            together = {id(operand) for operand in op.inputs} & ids
            for one in together:
                self.neighbours[one] |= together
        graph = sources[0].graph
        unique = list({id(operand): operand for operand in boundary}.values())
        operation = Operation(
            graph, "Gradients", self._compute, unique, name=name, control_inputs=control, differentiable=True
        )
        operation.outputs = tuple(Deferred(operation, i, _shape(x), x.dtype) for i, x in enumerate(sources))
        self.operation = operation
        return operation

    def _compute(self, scope: Scope) -> tuple[Any, ...]:
        chosen = self._chosen(scope)
        chosen_ids = {id(x) for x in chosen}
        tape = GradientTape(watch_accessed_variables=False)
        inner = Scope(scope.session, scope.fed, scope)
        values: dict[int, Any] = {}
        with tape:
            for x in chosen:
                if isinstance(x, GraphVariable):
                    x.check_initialized(scope.session)
                    tape.watch(x)
                    values[id(x)] = x
                elif x.op not in self._inside:
                    self._follow(tape, inner, x, values, scope.value_of(x))
            for op in self.region:
                if any(out in scope.fed for out in op.outputs):
                    raise ValueError(
                        f"{op.name} was fed a value, but a gradient through it was asked for; feed a placeholder"
                    )
                inner.values[op] = op.compute(inner)
                for out in op.outputs:
                    if id(out) in chosen_ids:
                        self._follow(tape, inner, out, values, inner.value_of(out))
            ys = [_value(y, inner) for y in self.targets]
        weights = None
        if any(w is not None for w in self.weights):
            weights = [
                np.ones(y.shape, y.dtype) if w is None else scope.plain(w)
                for y, w in zip(ys, self.weights, strict=True)
            ]
        with gated(self.gate):
            found = tape.gradient(ys, [values[id(x)] for x in chosen], weights, unconnected_gradients="zero")
        if type(scope) is Run:
            for op in self.region:
                scope.values.setdefault(op, _without_boxes(inner.values[op]))
        by_source = {id(x): gradient for x, gradient in zip(chosen, found, strict=True)}
        return tuple(by_source.get(id(x)) for x in self.sources)

    def _follow(self, tape: GradientTape, inner: Scope, x: Deferred, values: dict[int, Any], value: Any) -> None:
        """Let the tape follow the value of a source that is no variable."""
        tensor = Tensor(value)
        tape.watch(tensor)
        values[id(x)] = tensor
        if len(x.op.outputs) == 1:
            inner.values[x.op] = tensor
        else:
            parts = list(inner.values.get(x.op) or (inner.value_of(out) for out in x.op.outputs))
            parts[x.index] = tensor
            inner.values[x.op] = tuple(parts)

    def _chosen(self, scope: Scope) -> list[Any]:
        """Return the sources whose gradients are computed: those that are used, and what the gate adds."""
        if self.gate == GATE_GRAPH or type(scope) is not Run:
            return self.sources
        used = {id(x) for x, out in zip(self.sources, self.operation.outputs, strict=True) if out in scope.run.wanted}
        if not used:
            return self.sources
        if self.gate == GATE_OP:
            used = set().union(*(self.neighbours[one] for one in used))
        return [x for x in self.sources if id(x) in used]

    def _affected(self, before: Sequence[Operation], sources: Sequence[Any]) -> list[Operation]:
        """Return the operations among ``before``, oldest first, whose results depend on a source."""
        known = {id(x) for x in sources}
        affected = []
        for op in before:
            if op.differentiable and any(id(o) in known and id(o) not in self._stopped for o in op.inputs):
                floats = [out for out in op.outputs if out.dtype.kind not in "biu"]
                if floats:
                    affected.append(op)
                    known.update(id(out) for out in floats)
        return affected

    def _read_by_targets(self, before: Sequence[Operation]) -> set[int]:
        """Return the ids of the operands that a target depends on in a differentiable way."""
        reached = {id(y) for y in self.targets}
        for op in reversed(before):
            if op.differentiable and any(id(out) in reached and out.dtype.kind not in "biu" for out in op.outputs):
                reached.update(id(operand) for operand in op.inputs if id(operand) not in self._stopped)
        return reached


def _value(operand: Any, scope: Scope) -> Any:
    return operand.value() if isinstance(operand, GraphVariable) else scope.value_of(operand)


def _shape(operand: Any) -> Any:
    return operand.static_shape if isinstance(operand, Deferred) else operand.shape


def _without_boxes(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_without_boxes, value))
    if isinstance(value, IndexedSlices) or not isinstance(value, Operand):
        return value
    return Tensor(strip_all(value.read_operand()))


def _ancestors(operations: Any) -> list[Operation]:
    """Return the operations and all that they use, oldest first."""
    found: set[Operation] = set()
    waiting = list(operations)
    while waiting:
        op = waiting.pop()
        if op not in found:
            found.add(op)
            waiting += [operand.op for operand in op.inputs if isinstance(operand, Deferred)]
    return sorted(found, key=lambda op: op.position)
