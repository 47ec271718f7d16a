"""Hypers as attributes of an optimizer: ``optimizer.learning_rate = 0.05``, or ``lr``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from distopt import schedules
from distopt.optimizers.core import OptimizerCore
from distopt.optimizers.hypers import as_number, rounded
from distopt.tensor import Operand, Tensor


class HyperAttribute:
    """The attribute of a class whose objects may have a hyper of that name; to others it is an ordinary one.

    Not ``__getattr__``: a class that has it is slower in every attribute of its objects.
    """

    def __init__(self, attribute: str, hyper: str) -> None:
        self._attribute = attribute
        self._hyper = hyper

    def __get__(self, optimizer: Any, owner: type) -> Any:
        if optimizer is None:
            return self
        if self._hyper in optimizer._hypers:
            return optimizer._get_hyper(self._hyper)
        try:
            return optimizer.__dict__[self._attribute]
        except KeyError:
            raise AttributeError(f"{owner.__name__} has no attribute {self._attribute!r}") from None

    def __set__(self, optimizer: Any, value: Any) -> None:
        if self._hyper in optimizer._hypers:
            optimizer._set_hyper(self._hyper, value)
        else:
            optimizer.__dict__[self._attribute] = value


def _give_attribute(optimizer_class: type, attribute: str, hyper: str | None = None) -> None:
    """Let ``optimizer_class`` have the attribute of a hyper, unless the class has something else of that name."""
    if not hasattr(optimizer_class, attribute):
        setattr(optimizer_class, attribute, HyperAttribute(attribute, hyper or attribute))


class HyperAttributes(OptimizerCore):
    """An optimizer whose hypers are read and overwritten as attributes of their names.

    Source: tf_keras ``OptimizerV2``: ``_set_hyper``, ``_get_hyper``, ``__getattribute__``, ``__setattr__``.
    """

    def _set_hyper(self, name: str, value: Any) -> None:
        """Set the hyper ``name`` to a number, variable, callable or schedule."""
        self._hypers.set(name, value)
        _give_attribute(type(self), name)
        if name == "learning_rate":
            _give_attribute(type(self), "lr", name)

    def _get_hyper(self, name: str, dtype: Any = None) -> Any:
        """Return the hyper ``name``, cast to ``dtype`` if given; a schedule comes back uncalled."""
        value = self._hypers.get(name)
        if dtype is None or isinstance(value, schedules.LearningRateSchedule):
            return value
        return Tensor(np.asarray(rounded(value), dtype))

    def _serialize_hyperparameter(self, name: Any) -> Any:
        """Return the hyper ``name``, or a given value, as a configuration holds it: a number, or a dictionary."""
        value = self._hypers.raw(name) if isinstance(name, str) else name
        if isinstance(value, schedules.LearningRateSchedule):
            return schedules.serialize(value)
        return as_number(value() if callable(value) and not isinstance(value, Operand) else value)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def __dir__(self) -> list[str]:
        hypers = list(self._hypers)
        return sorted({*super().__dir__(), *hypers, *(["lr"] if "learning_rate" in hypers else [])})
