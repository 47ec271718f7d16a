"""``Operation`` and ``Deferred``: a call that was recorded, and what stands for its results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from distopt import deferral
from distopt.autodiff.nodes import NOT_RECORDED, state
from distopt.graph.graph import Graph, session_for
from distopt.indexed_slices import IndexedSlices
from distopt.tensor import Operand, Tensor, call
from distopt.types import Array, Shape

Compute = Callable[[Any], Any]
"""What computes an operation: a function of the scope (:class:`distopt.graph.session.Scope`) that has its inputs."""


class Operation:
    """One recorded call: ``compute(scope)`` returns the value of its output, or a tuple of them.

    ``inputs`` are the deferred tensors and variables that it uses, ``control_inputs`` operations that come before it.
    ``writes``: it changes something, so whatever else can be computed is computed before it. ``differentiable``: its
    results depend on its inputs in a way that a gradient can follow.
    """

    def __init__(
        self,
        graph: Graph,
        kind: str,
        compute: Compute,
        inputs: Iterable[Any] = (),
        *,
        name: str | None = None,
        control_inputs: Iterable[Operation] = (),
        writes: bool = False,
        differentiable: bool = False,
    ) -> None:
        self.graph = graph
        self.type = kind
        self.name = graph.unique_name(name or kind)
        self.compute = compute
        self.inputs = tuple(inputs)
        self.control_inputs: tuple[Operation, ...] = tuple(dict.fromkeys((*graph.control_inputs, *control_inputs)))
        self.writes = writes
        self.differentiable = differentiable
        self.outputs: tuple[Deferred, ...] = ()
        producers = [operand.op for operand in self.inputs if isinstance(operand, Deferred)]
        self.waits_for: tuple[Operation, ...] = tuple(dict.fromkeys((*producers, *self.control_inputs)))
        """The operations that are computed before this one."""
        self.position = graph.add(self)

    def run(self, feed_dict: Any = None, session: Any = None) -> None:
        """Compute the operation in ``session``, by default the default one.

        Raises: ValueError if there is no session; and as :meth:`Session.run`.
        """
        session_for(session, f"{self.name}.run()").run(self, feed_dict)

    def __repr__(self) -> str:
        return f"<Operation {self.name!r} type={self.type}>"


class Deferred(Operand):
    """A tensor that has no value until a session computes it; operations on it are recorded.

    A length of ``shape`` that is not known is None.
    """

    __slots__ = ("__weakref__", "_dtype", "_shape", "index", "op")

    def __init__(self, op: Operation, index: int, shape: Sequence[int | None] | None, dtype: Any) -> None:
        self.op = op
        self.index = index
        self._shape = None if shape is None else tuple(shape)
        self._dtype: np.dtype[Any] = np.dtype(dtype)

    @property
    def defers(self) -> bool:  # type: ignore[override]  # a variable of a graph does so in some modes only
        """Always: there is no value to compute with."""
        return True

    @property
    def graph(self) -> Graph:
        """The graph that it belongs to."""
        return self.op.graph

    @property
    def name(self) -> str:
        """The operation's name and the number of the output."""
        return f"{self.op.name}:{self.index}"

    @property
    def static_shape(self) -> tuple[int | None, ...] | None:
        """``shape``, or None if not even the number of axes is known."""
        return self._shape

    @property
    def shape(self) -> Shape:
        if self._shape is None:
            raise ValueError(f"the shape of {self.name} is not known before it is computed")
        return self._shape  # type: ignore[return-value]  # None for a length that is not known

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._dtype

    def record(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return defer(function, args, kwargs, graph=self.graph)

    def read_operand(self) -> Any:
        return self.numpy()

    def value(self) -> Deferred:
        """Return the tensor itself."""
        return self

    def numpy(self) -> Array:
        """Return the value, if a session is computing it now.

        Raises: TypeError if not.
        """
        run = deferral.evaluation()
        if run is None:
            raise TypeError(
                f"{self.name} has no value before a session computes it: use session.run(tensor), tensor.eval(), or an "
                "operation of distopt instead of one of NumPy or Python"
            )
        return np.asarray(run.look_up(self))

    def eval(self, feed_dict: Any = None, session: Any = None) -> Any:
        """Return the value as computed in ``session``, by default the default one."""
        return session_for(session, f"{self.name}.eval()").run(self, feed_dict)

    def __iter__(self) -> Any:
        raise TypeError(f"{self.name} is deferred, so it cannot be iterated over; index it, or run it in a session")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        return defer_ufunc(ufunc, method, inputs, kwargs)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        return defer(_array_function, (function, args, kwargs), {})

    def __str__(self) -> str:
        return f'Tensor("{self.name}", shape={self._shape}, dtype={self._dtype})'

    def __repr__(self) -> str:
        return f"<Tensor {self.name!r} shape={self._shape} dtype={self._dtype}>"


def defers(value: Any) -> bool:
    """Return whether ``value`` is, or is a structure that holds, an operand whose operations are recorded now."""
    return any(operand.defers for operand in operands_in(value))


def defer(
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: dict[str, Any] | None = None,
    *,
    graph: Graph | None = None,
    name: str | None = None,
    writes: bool = False,
) -> Any:
    """Record ``function(*args, **kwargs)`` and return what stands for its result, or a tuple of such.

    Deferred tensors among the arguments, also in tuples, lists and dictionaries, arrive as tensors.

    Raises: ValueError if it fails on zeros of the shapes and dtypes of the arguments, all of which are known, or if
    arguments belong to different graphs.
    """
    args, kwargs = tuple(args), dict(kwargs or {})
    inputs = list(operands_in((args, kwargs)))
    graphs = {id(operand.graph): operand.graph for operand in inputs}
    if len(graphs) > 1:
        raise ValueError(f"{[operand.name for operand in inputs]} belong to different graphs")
    home: Graph = graph or next(iter(graphs.values()), None) or deferral.building()
    primitive = args[0] if function is call else None
    kind = _kind_of(function if primitive is None else primitive)
    results, is_sequence = _results_on_zeros(function, args, kwargs, inputs, kind)

    def compute(scope: Any) -> Any:
        values = scope.plain if primitive is None else scope.dense
        return function(*values(args), **values(kwargs))

    operation = Operation(
        home,
        kind,
        compute,
        inputs,
        name=name,
        writes=writes,
        differentiable=(function if primitive is None else primitive) not in NOT_RECORDED,
    )
    operation.outputs = tuple(Deferred(operation, i, shape, dtype) for i, (shape, dtype) in enumerate(results))
    return operation.outputs if is_sequence else operation.outputs[0]


def defer_ufunc(ufunc: Any, method: str, inputs: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Record a call of one of NumPy's universal functions."""
    return defer(_call_ufunc, (ufunc, method, tuple(inputs), kwargs))


def operands_in(value: Any) -> Iterable[Any]:
    """Yield the operands of graphs in tuples, lists and dictionaries: deferred tensors and variables of a graph."""
    if isinstance(value, Operand):
        if hasattr(value, "graph"):
            yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from operands_in(part)
    elif isinstance(value, dict):
        for part in value.values():
            yield from operands_in(part)


def replaced(value: Any, substitute: Callable[[Any], Any]) -> Any:
    """Return ``value`` with each operand of a graph in it replaced by ``substitute`` of it."""
    if isinstance(value, Operand):
        return substitute(value) if hasattr(value, "graph") else value
    kind = type(value)
    if kind is tuple or kind is list:
        return kind([replaced(part, substitute) for part in value])
    if kind is dict:
        return {key: replaced(part, substitute) for key, part in value.items()}
    return value


def _call_ufunc(ufunc: Any, method: str, inputs: Any, kwargs: Any) -> Any:
    return getattr(ufunc, method)(*inputs, **kwargs)


def _array_function(function: Any, args: Any, kwargs: Any) -> Any:
    return function(*args, **kwargs)


_KINDS = {
    "add": "AddV2",
    "subtract": "Sub",
    "multiply": "Mul",
    "true_divide": "RealDiv",
    "negative": "Neg",
    "power": "Pow",
    "matmul": "MatMul",
    "sum": "Sum",
    "mean": "Mean",
}


def _kind_of(function: Any) -> str:
    function = getattr(function, "fun", function)
    name = str(getattr(function, "__name__", type(function).__name__)).strip("_<>").replace(".", "_") or "op"
    return _KINDS.get(name) or "".join(part[:1].upper() + part[1:] for part in name.split("_"))


def _results_on_zeros(
    function: Any, args: Any, kwargs: Any, inputs: Sequence[Any], kind: str
) -> tuple[list[tuple[tuple[int | None, ...] | None, Any]], bool]:
    """Return shape and dtype of each result, and whether the function returns a sequence.

    A length that is not known is tried as 2 and as 3: where the results differ, theirs is not known either.
    """
    shapes = [static_shape(operand) for operand in inputs]
    is_known = all(shape is not None and None not in shape for shape in shapes)
    found = []
    if all(shape is not None for shape in shapes):
        for length in (2,) if is_known else (2, 3):
            try:
                found.append(_shapes_with(function, args, kwargs, length))
            except Exception as error:
                if is_known:
                    described = ", ".join(f"{o.name}: {o.dtype}{list(o.shape)}" for o in inputs)
                    raise ValueError(f"{kind} cannot be computed on {described}: {error}") from error
                found = []
                break
    if not found:
        dtypes = [operand.dtype for operand in inputs]
        return [(None, np.result_type(*dtypes) if dtypes else np.float32)], False
    (first, is_sequence), (second, _) = found[0], found[-1]
    merged: list[tuple[tuple[int | None, ...] | None, Any]] = []
    for (shape, dtype), (other, _) in zip(first, second, strict=True):
        alike = len(shape) == len(other)
        merged.append(
            (tuple(a if a == b else None for a, b in zip(shape, other, strict=True)) if alike else None, dtype)
        )
    return merged, is_sequence


def static_shape(operand: Any) -> tuple[int | None, ...] | None:
    """Return the shape of a deferred tensor or variable as far as it is known."""
    return operand.static_shape if isinstance(operand, Deferred) else tuple(operand.shape)


def _shapes_with(function: Any, args: Any, kwargs: Any, length: int) -> tuple[list[tuple[Shape, Any]], bool]:
    def zeros(operand: Any) -> Tensor:
        shape = tuple(length if n is None else n for n in static_shape(operand) or ())
        return Tensor(np.zeros(shape, operand.dtype))

    tapes = state.active, state.sole
    state.active, state.sole = (), None
    try:
        with deferral.evaluate(_OnZeros()), np.errstate(all="ignore"):
            result = function(*replaced(args, zeros), **replaced(kwargs, zeros))
    finally:
        state.active, state.sole = tapes
    is_sequence = isinstance(result, (tuple, list))
    return [_description(part) for part in (result if is_sequence else (result,))], is_sequence


def try_on_zeros(function: Any, args: Any, kwargs: Any) -> None:
    """Call a function on zeros in place of deferred tensors; lengths that are not known are 2.

    Raises: what the function does.
    """
    _shapes_with(function, args, kwargs, 2)


def is_finding_shapes() -> bool:
    """Return whether a function is being called on zeros, to see what it returns."""
    return isinstance(deferral.evaluation(), _OnZeros)


class _OnZeros:
    """Stands for a session's run while shapes are found: functions are called on zeros, nothing else is there."""

    def look_up(self, operand: Any) -> Any:
        raise TypeError(f"{operand.name} is used by a function that was not given it as an argument")


def _description(value: Any) -> tuple[Shape, Any]:
    if isinstance(value, IndexedSlices):
        return value.dense_shape or value.values.shape, value.dtype
    array = value if isinstance(value, Operand) else np.asarray(value)
    return array.shape, array.dtype
