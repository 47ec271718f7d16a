"""Symbolic tensors: what ``Input`` returns, and layers and operations make of it, until a model is called with data.

They are the deferred tensors of :mod:`distopt.graph`, in a graph that nobody runs and that keeps nothing: a model holds
the operations between its inputs and its outputs. A layer is one operation, so that it knows at each call whether it is
trained.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from distopt.graph import Deferred, Graph, Operation, defer
from distopt.graph.operations import operands_in, replaced, try_on_zeros


class _Symbols(Graph):
    """Numbers operations, and forgets them."""

    def __init__(self) -> None:
        super().__init__()
        self._count = itertools.count()

    def add(self, operation: Operation) -> int:  # noqa: ARG002 - not kept
        return next(self._count)

    def unique_name(self, name: str) -> str:
        return name


_symbols = _Symbols()
_layer_of: weakref.WeakKeyDictionary[Operation, Any] = weakref.WeakKeyDictionary()


def placeholder(shape: Sequence[int | None], dtype: Any, name: str) -> Deferred:
    """Return a tensor that stands for data of that shape, its first length usually None."""
    operation = Operation(_symbols, "Placeholder", _no_value, name=name)
    operation.outputs = (Deferred(operation, 0, shape, dtype),)
    return operation.outputs[0]


def is_placeholder(value: Any) -> bool:
    """Return whether ``value`` is what :func:`placeholder` returned."""
    return is_symbolic(value) and value.op.compute is _no_value


def is_symbolic(value: Any) -> bool:
    """Return whether ``value`` is, or is a structure that holds, a symbolic tensor."""
    return any(operand.graph is _symbols for operand in operands_in(value))


def record(layer: Any, inputs: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return what stands for ``layer(inputs, *args, **kwargs)``, which builds the layer.

    Raises: what the layer raises for zeros of the inputs' shapes.
    """
    try_on_zeros(layer, (inputs, *args), kwargs)
    result = defer(layer, (inputs, *args), kwargs, name=layer.name)
    _layer_of[next(iter(operands_in(result))).op] = layer
    return result


class Computation:
    """The operations that lead from some placeholders to some symbolic tensors.

    Raises: TypeError for other inputs or outputs; ValueError for an output that needs an input which is not listed.
    """

    def __init__(self, inputs: Sequence[Any], outputs: Any) -> None:
        for tensor in inputs:
            if not is_placeholder(tensor):
                raise TypeError(f"the inputs of a model are what keras.Input returns, not {tensor!r}")
        found = list(operands_in(outputs))
        if not found or any(not is_symbolic(tensor) for tensor in found):
            raise TypeError(f"the outputs of a model are made from its inputs by layers, not {outputs!r}")
        self._inputs = tuple(inputs)
        self._outputs = outputs
        given = {tensor.op for tensor in inputs}
        self._operations = [op for op in _ancestors(found) if op not in given]
        for op in self._operations:
            if op.compute is _no_value:
                raise ValueError(f"an output needs the input {op.name!r}, which is not among {_names(inputs)}")

    @property
    def layers(self) -> list[Any]:
        """The layers on the way, in the order of their calls, each once."""
        called = [_layer_of[op] for op in self._operations if op in _layer_of]
        return list({id(layer): layer for layer in called}.values())

    def __call__(self, values: Sequence[Any]) -> Any:
        """Return the outputs for one value for each input."""
        known = _Values(zip((tensor.op for tensor in self._inputs), values, strict=True))
        for op in self._operations:
            known.of[op] = op.compute(known)
        return known.plain(self._outputs)


class _Values:
    """The values of operations, as these ask for them."""

    def __init__(self, given: Iterable[tuple[Operation, Any]]) -> None:
        self.of = dict(given)

    def value_of(self, operand: Any) -> Any:
        value = self.of[operand.op]
        return value[operand.index] if isinstance(value, tuple) else value

    def plain(self, value: Any) -> Any:
        return replaced(value, self.value_of)

    dense = plain


def _no_value(_scope: Any) -> Any:
    raise TypeError("an Input has no value: make a model of it, and call that")


def _ancestors(tensors: Iterable[Deferred]) -> list[Operation]:
    found: set[Operation] = set()
    waiting = [tensor.op for tensor in tensors]
    while waiting:
        op = waiting.pop()
        if op not in found:
            found.add(op)
            waiting += op.waits_for
    return sorted(found, key=lambda op: op.position)


def _names(tensors: Iterable[Any]) -> list[str]:
    return [tensor.op.name for tensor in tensors]


def as_input(value: Any, like: Deferred) -> Any:
    """Return data for a placeholder: an array or tensor; numbers in its dtype."""
    from distopt import ops

    array = value if hasattr(value, "dtype") else np.asarray(value)
    if array.dtype.kind in "USO" or array.dtype == like.dtype:
        return array
    return ops.cast(array, like.dtype)
