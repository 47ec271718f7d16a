"""``Tensor``, and ``call``: the one place where an operation meets the tapes.

Rules of this file: nothing else unwraps tensors or creates nodes. An operation is an autograd primitive; ``call``
takes its arguments out of tensors and variables, runs it, and wraps what comes back.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import autograd.numpy as anp
import numpy as np
from autograd.numpy.numpy_boxes import ArrayBox
from autograd.tracer import trace_primitives_map

from distopt.autodiff.nodes import FUSED, NOT_RECORDED, Node, dtype_of, holds_box, is_followed, state, strip, strip_all
from distopt.autodiff.numpy_functions import is_differentiable, recordable, unsupported
from distopt.types import Array, Shape

_ndarray = np.ndarray
_float64 = np.float64
# A tuple, since `isinstance(x, A | B)` builds the union anew each time.
_ARRAYS = (np.ndarray, np.generic)


class Operand:
    """What operations take: tensors and variables. Has the operators and NumPy's protocols, but no value."""

    __slots__ = ()
    # NumPy's own operators would otherwise treat a tensor as an object array where __array_ufunc__ is not asked.
    __array_priority__ = 200
    defers = False
    """Whether operations on it are recorded in a graph now, by :meth:`record`, instead of being carried out."""

    def record(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Return what stands for ``function(*args, **kwargs)`` until a session computes it."""
        raise NotImplementedError

    def read_operand(self) -> Any:
        """Return the array, or the box around it, that an operation is to use."""
        raise NotImplementedError

    @property
    def shape(self) -> Shape:
        """The length of each axis."""
        raise NotImplementedError

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the elements."""
        raise NotImplementedError

    def numpy(self) -> Array:
        """Return the value as an array."""
        raise NotImplementedError

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        count = 1
        for length in self.shape:
            count *= length
        return count

    def get_shape(self) -> Shape:
        """Return ``shape``."""
        return self.shape

    def __add__(self, other: Any) -> Tensor:
        return call(anp.add, self, _weak(other))

    def __radd__(self, other: Any) -> Tensor:
        return call(anp.add, _weak(other), self)

    def __sub__(self, other: Any) -> Tensor:
        return call(anp.subtract, self, _weak(other))

    def __rsub__(self, other: Any) -> Tensor:
        return call(anp.subtract, _weak(other), self)

    def __mul__(self, other: Any) -> Tensor:
        return call(anp.multiply, self, _weak(other))

    def __rmul__(self, other: Any) -> Tensor:
        return call(anp.multiply, _weak(other), self)

    def __truediv__(self, other: Any) -> Tensor:
        return call(anp.true_divide, self, _weak(other))

    def __rtruediv__(self, other: Any) -> Tensor:
        return call(anp.true_divide, _weak(other), self)

    def __floordiv__(self, other: Any) -> Tensor:
        return call(anp.floor_divide, self, _weak(other))

    def __rfloordiv__(self, other: Any) -> Tensor:
        return call(anp.floor_divide, _weak(other), self)

    def __mod__(self, other: Any) -> Tensor:
        return call(anp.mod, self, _weak(other))

    def __rmod__(self, other: Any) -> Tensor:
        return call(anp.mod, _weak(other), self)

    def __pow__(self, other: Any) -> Tensor:
        return call(anp.power, self, _weak(other))

    def __rpow__(self, other: Any) -> Tensor:
        return call(anp.power, _weak(other), self)

    def __matmul__(self, other: Any) -> Tensor:
        return call(anp.matmul, self, other)

    def __rmatmul__(self, other: Any) -> Tensor:
        return call(anp.matmul, other, self)

    def __neg__(self) -> Tensor:
        return call(anp.negative, self)

    def __pos__(self) -> Tensor:
        return call(anp.positive, self)

    def __abs__(self) -> Tensor:
        return call(anp.abs, self)

    def __eq__(self, other: object) -> Tensor:  # type: ignore[override]  # element-wise, as NumPy and TensorFlow have it
        return call(anp.equal, self, other)

    def __ne__(self, other: object) -> Tensor:  # type: ignore[override]  # as __eq__
        return call(anp.not_equal, self, other)

    def __lt__(self, other: Any) -> Tensor:
        return call(anp.less, self, other)

    def __le__(self, other: Any) -> Tensor:
        return call(anp.less_equal, self, other)

    def __gt__(self, other: Any) -> Tensor:
        return call(anp.greater, self, other)

    def __ge__(self, other: Any) -> Tensor:
        return call(anp.greater_equal, self, other)

    def __invert__(self) -> Tensor:
        return call(anp.logical_not, self)

    def __and__(self, other: Any) -> Tensor:
        return call(anp.logical_and, self, other)

    def __or__(self, other: Any) -> Tensor:
        return call(anp.logical_or, self, other)

    # ``==`` is element-wise, yet every operand is its own key in a dictionary: hashes of living objects differ.
    def __hash__(self) -> int:
        return id(self)

    def __getitem__(self, index: Any) -> Tensor:
        return call(ArrayBox.__getitem__, self, _plain_index(index))

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("a scalar has no length")
        return self.shape[0]

    def __bool__(self) -> bool:
        return bool(self.numpy())

    def __float__(self) -> float:
        return float(self.numpy())

    def __int__(self) -> int:
        return int(self.numpy())

    def __index__(self) -> int:
        return int(self.numpy().__index__())

    def __format__(self, spec: str) -> str:
        return str(self) if self.defers else format(self.numpy()[()], spec)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        inputs = tuple(map(_weak, inputs))
        values = [_operand_value(value) for value in inputs]
        if not any(map(is_followed, values)):
            out = kwargs.get("out")
            if out is not None and any(isinstance(target, Operand) for target in out):
                return NotImplemented
            values = [strip_all(value) for value in values]
            kwargs = {name: strip_all(_operand_value(value)) for name, value in kwargs.items()}
            result = getattr(ufunc, method)(*values, **kwargs)
            return result if out is not None or isinstance(result, tuple) else Tensor(result)
        primitive = trace_primitives_map.get(ufunc)
        if method != "__call__" or kwargs or not is_differentiable(primitive):
            raise unsupported(f"np.{ufunc.__name__}" + ("" if method == "__call__" else f".{method}"))
        return call(primitive, *inputs)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        values, named = _plain_tree(args), _plain_tree(kwargs)
        if not holds_box(values) and not holds_box(named):
            result = function(*values, **named)
            return Tensor(result) if isinstance(result, _ARRAYS) else result
        primitive = recordable(function)
        if primitive is None or holds_box(named):
            raise unsupported(f"np.{function.__name__}")
        return call(primitive, *args, **kwargs)


class Tensor(Operand):
    """A value that operations produce and take: an array, or an array that a tape follows.

    ``value`` may be an array (which is not copied), a number, or nested lists of numbers; Python floats become
    float32 and Python integers int32. A tensor does not change; an array taken out of it should not be changed either.
    """

    __slots__ = ("__weakref__", "_value")
    _value: Any

    def __init__(self, value: Any) -> None:
        kind = type(value)
        if kind is _ndarray or kind is ArrayBox or isinstance(value, np.generic):
            self._value = value
        elif isinstance(value, Operand):
            self._value = value._value if isinstance(value, Tensor) else value.numpy()
        else:
            self._value = to_array(value)

    def read_operand(self) -> Any:
        return self._value

    @property
    def shape(self) -> Shape:
        value = self._value
        if type(value) is ArrayBox:
            value = value._value
        shape: Shape = value.shape if type(value) is _ndarray else np.shape(strip_all(value))
        return shape

    @property
    def dtype(self) -> np.dtype[Any]:
        value = self._value
        if type(value) is ArrayBox:
            value = value._value
        dtype: np.dtype[Any] = value.dtype if type(value) is _ndarray else dtype_of(value)
        return dtype

    def numpy(self) -> Array:
        """Return the value as an array; of a scalar, an array without axes. The array is not to be written to."""
        value = self._value
        return value if type(value) is _ndarray else np.asarray(strip_all(value))

    def __float__(self) -> float:
        return float(strip_all(self._value))

    def __iter__(self) -> Iterator[Tensor]:
        for position in range(len(self)):
            yield self[position]

    def __repr__(self) -> str:
        return f"<Tensor: shape={self.shape}, dtype={self.dtype}, numpy={self.numpy()!r}>"

    def __str__(self) -> str:
        return f"Tensor({self.numpy()}, shape={self.shape}, dtype={self.dtype})"


_new_tensor: Callable[[type[Tensor]], Tensor] = object.__new__
_new_box: Callable[[type[ArrayBox]], ArrayBox] = object.__new__


def tensor_of(value: Any) -> Tensor:
    """Return ``Tensor(value)`` of an array or a box; it is not looked at."""
    tensor = _new_tensor(Tensor)
    tensor._value = value
    return tensor


def call(primitive: Any, /, *args: Any, **kwargs: Any) -> Tensor:
    """Run an autograd primitive (or a function made of them) on tensors, variables, arrays and numbers.

    Returns a Tensor, or a tuple of them if the function returns a sequence. It is followed by every tape that records
    in this thread and follows an argument. Under a single ordinary tape variables are read as views, else as copies.
    """
    tape = state.sole
    if tape is None:
        if state.active:
            return _call_nested(primitive, args, kwargs)
        trace = -1
    else:
        trace = tape.trace
    run = getattr(primitive, "fun", None)
    if run is None:
        return _call_nested(primitive, args, kwargs)
    values = list(args)
    parents: list[Node] = []
    argnums: list[int] = []
    reads_variable = False
    for position, kind in _operands(tuple(map(type, args))):
        argument = values[position]
        if kind is Tensor:
            argument = argument._value
        elif kind is not ArrayBox:
            if argument.defers:
                deferred: Tensor = argument.record(call, (primitive, *args), kwargs)
                return deferred
            reads_variable = True
            if tape is not None:
                node = tape.read(argument)
                if node is not None:
                    parents.append(node)
                    argnums.append(position)
                    values[position] = node.value
                    continue
            argument = argument.read_operand()
        if type(argument) is ArrayBox:
            value = argument._value
            if argument._trace != trace or type(value) is ArrayBox:
                argument = strip(argument, state.active)
                if type(argument) is ArrayBox:
                    return _call_nested(primitive, args, kwargs)
            else:
                parents.append(argument._node)
                argnums.append(position)
                argument = value
        values[position] = argument
    fused = FUSED.get(primitive)
    if not parents or (fused is None and primitive in NOT_RECORDED):
        result = run(*values, **kwargs)
        if type(result) is not _ndarray:
            wrapped: Tensor = _wrap(result)
            return wrapped
        if reads_variable and result.base is not None:
            result = _own(result, values)
        return tensor_of(result)
    saved = None
    if fused is None or fused.forward is None:
        result = run(*values, **kwargs)
    else:
        result, saved = fused.forward(argnums, *values, **kwargs)
    if type(result) is _ndarray:
        if reads_variable and result.base is not None:
            result = _own(result, values)
    elif isinstance(result, tuple | list):
        return _call_nested(primitive, args, kwargs)
    if fused is None and result.dtype.kind in "biu":
        return tensor_of(result)
    tensor = _new_tensor(Tensor)
    tensor._value = box = _new_box(ArrayBox)
    box._value = result
    box._trace = trace
    box._node = Node(result, primitive, values, kwargs, argnums, parents, fused, saved)
    return tensor


@functools.cache
def _operands(kinds: tuple[type, ...]) -> tuple[tuple[int, type], ...]:
    """Return position and type of those arguments that :func:`call` has to take a value out of."""
    return tuple((i, kind) for i, kind in enumerate(kinds) if kind is ArrayBox or issubclass(kind, Operand))


def _call_nested(primitive: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """``call`` where autograd's own dispatch must find the boxes: several tapes, persistent ones, lists of tensors."""
    for argument in args:
        if isinstance(argument, Operand) and argument.defers:
            return argument.record(call, (primitive, *args), kwargs)
    named = _plain_tree(kwargs)
    if holds_box(named):
        name = getattr(primitive, "__name__", primitive)
        raise TypeError(f"{name}: give tensors that a tape follows as positional arguments")
    result: Tensor = _wrap(primitive(*_plain_tree(args), **named))
    return result


def to_array(value: Any, dtype: Any = None) -> Array:
    """Return ``value`` as an array of ``dtype``; by default Python floats make float32 and Python integers int32.

    >>> to_array([1.0, 2]).dtype, to_array(np.float64(1)).dtype, to_array(3).dtype
    (dtype('float32'), dtype('float64'), dtype('int32'))
    """
    if isinstance(value, Operand):
        value = value.numpy()
    array = np.asarray(value, dtype=dtype)
    if dtype is not None or isinstance(value, _ARRAYS):
        return array
    leaf = value
    while isinstance(leaf, list | tuple) and leaf:
        leaf = leaf[0]
    if isinstance(leaf, (Operand, *_ARRAYS)) or hasattr(leaf, "__array__"):
        return array
    if array.dtype == np.float64:
        return array.astype(np.float32)
    if array.dtype == np.int64 and np.array_equal(array, array.astype(np.int32)):
        return array.astype(np.int32)
    return array


def _own(result: Array, values: list[Any]) -> Array:
    """Return ``result``, copied if it is a view of an argument: a variable's memory will change."""
    for value in values:
        if type(value) is _ndarray and np.may_share_memory(result, value):
            return result.copy()
    return result


def _wrap(result: Any) -> Any:
    if isinstance(result, tuple | list):
        return tuple(_wrap(part) for part in result)
    if type(result) is ArrayBox:
        return Tensor(strip_all(result) if dtype_of(result).kind in "biu" else result)
    if hasattr(result, "_value") and hasattr(result, "__iter__"):
        return tuple(_wrap(part) for part in result)
    return Tensor(result) if isinstance(result, (*_ARRAYS, int, float)) else result


def _weak(value: Any) -> Any:
    # NumPy takes np.float64 for a strong type, although it is a Python float, and would widen a float32 tensor.
    return float(value) if type(value) is _float64 else value


def _operand_value(value: Any) -> Any:
    if isinstance(value, Operand):
        return strip(value.read_operand(), state.active)
    return value


def _plain_tree(value: Any) -> Any:
    """Replace operands in tuples, lists and dictionaries by their arrays or boxes."""
    kind = type(value)
    if isinstance(value, Operand):
        # A function may return a view of its argument; a variable's memory will change.
        return strip(value.read_operand(), state.active) if kind is Tensor or state.active else value.numpy()
    if kind is ArrayBox:
        return strip(value, state.active)
    if kind is tuple or kind is list:
        return kind(map(_plain_tree, value))
    if kind is dict:
        return {name: _plain_tree(part) for name, part in value.items()}
    return value


def _plain_index(index: Any) -> Any:
    if isinstance(index, tuple):
        return tuple(map(_plain_index, index))
    return index.numpy() if isinstance(index, Operand) else index
