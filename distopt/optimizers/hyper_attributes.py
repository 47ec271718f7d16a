"""Hypers as attributes of an optimizer: ``optimizer.learning_rate = 0.05``, or ``lr``."""

from __future__ import annotations

from typing import Any

import numpy as np

from distopt import schedules
from distopt.optimizers.core import OptimizerCore
from distopt.optimizers.hypers import as_number, rounded
from distopt.tensor import Operand, Tensor


class HyperAttributes(OptimizerCore):
    """An optimizer whose hypers are read and overwritten as attributes of their names.

    Source: tf_keras ``OptimizerV2``: ``_set_hyper``, ``_get_hyper``, ``__getattribute__``, ``__setattr__``.
    """

    def _set_hyper(self, name: str, value: Any) -> None:
        """Set the hyper ``name`` to a number, variable, callable or schedule."""
        self._hypers.set(name, value)

    def _get_hyper(self, name: str, dtype: Any = None) -> Any:
        """Return the hyper ``name``, cast to ``dtype`` if given; a schedule comes back uncalled."""
        value = self._hypers.get(name)
        if dtype is None or isinstance(value, schedules.LearningRateSchedule):
            return value
        return Tensor(np.asarray(rounded(value), dtype))

    def _serialize_hyperparameter(self, name: str) -> Any:
        """Return the hyper as a configuration holds it: a number, or the dictionary of a schedule."""
        value = self._hypers.raw(name)
        if isinstance(value, schedules.LearningRateSchedule):
            return schedules.serialize(value)
        return as_number(value() if callable(value) and not isinstance(value, Operand) else value)

    def __getattr__(self, name: str) -> Any:
        hypers = self.__dict__.get("_hypers", ())
        name = "learning_rate" if name == "lr" else name
        if name in hypers:
            return self._get_hyper(name)
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        name = "learning_rate" if name == "lr" else name
        if name in self.__dict__.get("_hypers", ()):
            self._set_hyper(name, value)
        else:
            object.__setattr__(self, name, value)

    def __dir__(self) -> list[str]:
        hypers = list(self._hypers)
        return sorted({*super().__dir__(), *hypers, *(["lr"] if "learning_rate" in hypers else [])})
