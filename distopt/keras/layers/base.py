"""Layers: parts of a model that make their variables when they first see an input.

Once built, a call costs a check of two attributes over what its arithmetic costs; ``Sequential`` calls ``call`` itself.
"""

from __future__ import annotations

import inspect
import itertools
import math
import threading
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np

from distopt import initializers, ops
from distopt.graph import Deferred
from distopt.initializers import InitializerLike
from distopt.keras import regularizers, symbolic
from distopt.keras.regularizers import RegularizerLike
from distopt.nest import map_structure
from distopt.types import Array, Shape
from distopt.variable import Variable

InputShape = tuple[int | None, ...]

_making_locks = threading.Lock()
_build_locks: weakref.WeakKeyDictionary[Layer, threading.RLock] = weakref.WeakKeyDictionary()
"""One a layer, kept here so that layers can be copied; ranks that are threads wait for each other while they build."""
_names: dict[str, Iterator[int]] = defaultdict(itertools.count)


_training: ContextVar[bool] = ContextVar("distopt_training", default=False)


def is_training() -> bool:
    """Return whether layers are called to be trained here: what the nearest caller said, or False."""
    return _training.get()


@contextmanager
def training_phase(training: bool) -> Iterator[None]:
    """Have layers called in this ``with`` block know whether they are trained."""
    token = _training.set(training)
    try:
        yield
    finally:
        _training.reset(token)


class Layer:
    """Base of layers. A subclass makes variables in ``build`` with ``add_weight`` and computes in ``call``.

    Variables and layers that are set as attributes, or in a list or tuple, are found by ``variables``, in that order.
    """

    def __init__(
        self,
        name: str | None = None,
        trainable: bool = True,
        dtype: Any = np.float32,
        input_shape: Sequence[int] | None = None,
    ) -> None:
        self.name = name or _unique_name(type(self).__name__.lower())
        self.trainable = trainable
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self.built = False
        self.batch_input_shape: InputShape | None = None if input_shape is None else (None, *input_shape)
        self._regularized: list[tuple[Callable[[Any], Any], Variable]] = []
        self._penalties: list[Callable[[], Any]] = []

    _takes_training = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._takes_training = "training" in inspect.signature(cls.call).parameters

    def __setattr__(self, attribute: str, value: Any) -> None:
        object.__setattr__(self, attribute, value)
        if not attribute.startswith("_"):
            self._track(value)

    def build(self, input_shape: InputShape) -> None:
        """Make the variables; ``input_shape`` is that of the first input, its first dimension ``None``.

        Of a structure of inputs it is the structure of their shapes.
        """

    def call(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the outputs; a subclass may take ``training``, too, which is then always given."""
        raise NotImplementedError(f"{type(self).__name__} defines no call()")

    def __call__(self, inputs: Any, *args: Any, training: bool | None = None, **kwargs: Any) -> Any:
        """Return the outputs of ``inputs``, building the layer at the first call.

        Floating-point inputs of another dtype are cast to the layer's; integers, which may be indices, are not. For
        what ``Input`` returned, and what was made of that, the call is recorded, for a model of inputs and outputs.
        ``training`` holds for the layers within, too; None: what holds for the caller, at the outside False.
        """
        dtype = getattr(inputs, "dtype", None)
        if (dtype is None or type(inputs) is Deferred) and symbolic.is_symbolic(inputs):
            return symbolic.record(self, inputs, args, {**kwargs, "training": training})
        if dtype is not self.dtype:
            inputs = self._cast(inputs)
        if not self.built:
            self._build_once(inputs)
        if training is not None:
            with training_phase(bool(training)):
                return self.call_in_phase(inputs, *args, **kwargs)
        if self._takes_training:
            return self.call_in_phase(inputs, *args, **kwargs)
        return self.call(inputs, *args, **kwargs)

    def call_in_phase(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Return ``call``, told whether this is training if it wants to know."""
        if self._takes_training:
            kwargs["training"] = is_training()
        return self.call(inputs, *args, **kwargs)

    def add_weight(
        self,
        name: str,
        shape: Shape,
        initializer: InitializerLike = "glorot_uniform",
        regularizer: RegularizerLike = None,
        trainable: bool = True,
        dtype: Any = None,
        constraint: Callable[[Any], Any] | None = None,
    ) -> Variable:
        """Return a new variable of this layer."""
        wanted = self.dtype if dtype is None else np.dtype(dtype)
        draw = initializers.get(initializer)
        variable = Variable(
            lambda: draw(tuple(shape), dtype=wanted),  # a function: of several replicas only the first draws
            trainable=trainable,
            name=f"{self.name}/{name}",
            dtype=wanted,
            constraint=constraint,
            shape=tuple(shape),
        )
        penalty = regularizers.get(regularizer)
        if penalty is not None:
            self._regularized.append((penalty, variable))
        self._track(variable)
        return variable

    def add_loss(self, penalty: Callable[[], Any]) -> None:
        """Add ``penalty()``, a scalar, to ``losses``; it is called at each step.

        Raises: TypeError if it cannot be called: a value would be that of one step for ever.
        """
        if not callable(penalty):
            raise TypeError("add_loss takes a function without arguments, which is called at each step")
        self._penalties.append(penalty)

    @property
    def losses(self) -> list[Any]:
        """The penalties of this layer and those below it, computed now; those of a layer that others share, once."""
        found: list[Any] = []
        for layer in self._with_those_below():
            found += [penalty(variable) for penalty, variable in layer._regularized]
            found += [penalty() for penalty in layer._penalties]
        return found

    @property
    def variables(self) -> list[Variable]:
        """All variables, in order of creation within a layer, and layer by layer; one that layers share, once."""
        found: list[Variable] = []
        for item in self._tracked():
            found += item.variables if isinstance(item, Layer) else [item]
        return _each_once(found)

    @property
    def trainable_variables(self) -> list[Variable]:
        """The trainable ones among ``variables``; none if the layer's ``trainable`` is false."""
        if not self.trainable:
            return []
        found: list[Variable] = []
        for item in self._tracked():
            if isinstance(item, Layer):
                found += item.trainable_variables
            elif item.trainable:
                found.append(item)
        return _each_once(found)

    @property
    def non_trainable_variables(self) -> list[Variable]:
        """Those of ``variables`` that are not in ``trainable_variables``."""
        trainable = {id(variable) for variable in self.trainable_variables}
        return [variable for variable in self.variables if id(variable) not in trainable]

    weights = variables
    trainable_weights = trainable_variables
    non_trainable_weights = non_trainable_variables

    def count_params(self) -> int:
        """Return the number of elements of all variables."""
        return sum(math.prod(variable.shape) for variable in self.variables)

    def get_weights(self) -> list[Array]:
        """Return copies of the values of ``variables``."""
        return [variable.numpy() for variable in self.variables]

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Assign to each of ``variables``.

        Raises: ValueError if number or shapes differ; nothing is assigned then.
        """
        variables = self.variables
        values = [np.asarray(weight) for weight in weights]
        if [value.shape for value in values] != [tuple(variable.shape) for variable in variables]:
            raise ValueError(
                f"{self.name} has weights of shapes {[tuple(v.shape) for v in variables]}, "
                f"and was given {[value.shape for value in values]}"
            )
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)

    def _build_once(self, inputs: Any) -> None:
        # Threads may share a layer: the first to arrive builds it.
        with _making_locks:
            lock = _build_locks.setdefault(self, threading.RLock())
        with lock:
            if not self.built:
                self.build(map_structure(lambda part: (None, *part.shape[1:]), inputs))
                self.built = True

    def _cast(self, inputs: Any) -> Any:
        if isinstance(inputs, (tuple, dict)):
            return inputs
        if not hasattr(inputs, "dtype"):
            inputs = np.asarray(inputs)
        if inputs.dtype.kind in "biuUSO" or inputs.dtype == self.dtype:
            return inputs
        return ops.cast(inputs, self.dtype)

    def _track(self, value: Any) -> None:
        if isinstance(value, (Variable, Layer)):
            tracked = self.__dict__.setdefault("_items", [])
            if not any(item is value for item in tracked):
                tracked.append(value)
        elif isinstance(value, (list, tuple)):
            for item in value:
                self._track(item)

    def _tracked(self) -> list[Any]:
        items: list[Any] = self.__dict__.get("_items", [])
        return items

    def _with_those_below(self) -> list[Layer]:
        found = {id(self): self}
        for layer in self._sublayers():
            found.update({id(below): below for below in layer._with_those_below()})
        return list(found.values())

    def _sublayers(self) -> list[Layer]:
        return [item for item in self._tracked() if isinstance(item, Layer)]


class InputLayer(Layer):
    """The shape of one sample; a ``Sequential`` that starts with it is built at once."""

    def call(self, inputs: Any) -> Any:
        """Return ``inputs``."""
        return inputs


def Input(
    shape: Sequence[int | None], batch_size: int | None = None, name: str | None = None, dtype: Any = np.float32
) -> Deferred:
    """Return what stands for the data of a model: a symbolic tensor; ``shape`` is that of one sample.

    A ``Sequential`` may start with it, and layers and operations take it, for ``Model(inputs, outputs)``.
    """
    return symbolic.placeholder((batch_size, *shape), np.dtype(dtype), name or _unique_name("input"))


def _each_once(variables: list[Variable]) -> list[Variable]:
    return list({id(variable): variable for variable in variables}.values())


def _unique_name(kind: str) -> str:
    number = next(_names[kind])
    return f"{kind}_{number}" if number else kind
