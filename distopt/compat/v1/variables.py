"""``Variable`` with the arguments of TensorFlow 1, in its order."""

# ruff: noqa: ARG004  (TensorFlow's arguments, some of which have no meaning here)
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from distopt import deferral
from distopt.graph import GraphVariable
from distopt.variable import Variable as _Variable
from distopt.variable import VariableAggregation, VariableSynchronization


class _AnyVariable(type):
    """Makes every variable an instance of :class:`Variable`."""

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, _Variable)


class Variable(metaclass=_AnyVariable):
    """A :class:`distopt.Variable`, in a graph one of the graph.

    ``collections`` are those that it joins in a graph, by default GLOBAL_VARIABLES and, if it is ``trainable``,
    TRAINABLE_VARIABLES. ``expected_shape`` is ``shape``. ``use_resource``, ``validate_shape``, ``caching_device`` and
    ``import_scope`` have no effect: there is one kind of variable.

    Source: ``tf.compat.v1.Variable``.
    """

    def __new__(  # type: ignore[misc]  # what is made is a variable of another class, on purpose
        cls,
        initial_value: Any = None,
        trainable: bool | None = None,
        collections: Sequence[str] | None = None,
        validate_shape: bool = True,
        caching_device: Any = None,
        name: str | None = None,
        variable_def: Any = None,
        dtype: Any = None,
        expected_shape: Sequence[int | None] | None = None,
        import_scope: Any = None,
        constraint: Callable[[Any], Any] | None = None,
        use_resource: bool | None = None,
        synchronization: VariableSynchronization = VariableSynchronization.AUTO,
        aggregation: VariableAggregation = VariableAggregation.NONE,
        shape: Sequence[int | None] | None = None,
    ) -> _Variable:
        """Return the variable."""
        arguments: dict[str, Any] = {
            "trainable": trainable,
            "name": name,
            "variable_def": variable_def,
            "dtype": dtype,
            "constraint": constraint,
            "synchronization": synchronization,
            "aggregation": aggregation,
            "shape": expected_shape if shape is None else shape,
        }
        if deferral.building() is None:
            return _Variable(initial_value, **arguments)
        return GraphVariable(initial_value, collections=collections, **arguments)
