"""What a job trains: the protocol of a task, and how one is found by name.

A task is built from its options and the job's seed alone, so every process of a job has the same one. Its data stay
where they are made: a step reads rows of :meth:`Task.train_data` by number, and those numbers are a function of
(seed, epoch, step) (:mod:`distopt.sampling`).
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import msgspec

from distopt.types import Array


class Model(Protocol):
    """What a job needs of a model: to be called, and its variables in a fixed order."""

    @property
    def variables(self) -> Sequence[Any]: ...

    @property
    def trainable_variables(self) -> Sequence[Any]: ...

    def __call__(self, inputs: Any) -> Any: ...


class Task(Protocol):
    """A model, its loss and its data.

    ``Options`` is a frozen msgspec struct; the constructor takes an instance of it, and the job's seed. The functions
    of one replica (``per_example_loss``, ``count_correct``) are called from several threads at once.
    """

    name: ClassVar[str]
    Options: ClassVar[type[msgspec.Struct]]

    def __init__(self, options: Any, seed: int) -> None: ...

    def build(self, seed: int) -> Model:
        """Return a new model. Its variables exist, in a fixed order, and their values are a function of ``seed``."""
        ...

    def train_data(self) -> tuple[Array, Array]:
        """Return ``(x, y)`` alike in their first dimension; the same in every process."""
        ...

    def test_data(self) -> tuple[Array, Array]:
        """Return ``(x, y)`` that no step trains on."""
        ...

    def per_example_loss(self, model: Any, x: Array, y: Array) -> Any:
        """Return the losses of one replica's rows, a tensor of shape ``[b]``; ``b`` may be 0.

        The caller sums it and divides by the size of the global batch.
        """
        ...

    def count_correct(self, model: Any, x: Array, y: Array) -> tuple[int, Array]:
        """Return how many rows the model gets right, and the loss of each, shape ``[b]``; not differentiated."""
        ...


_BUILT_IN = {"digits": "distopt.tasks.digits:Digits"}


def find_task(name: str) -> type[Task]:
    """Return the class of a built-in task by its name, or of any other as ``"package.module:Class"``.

    Importing it runs the module's code.

    Raises: ValueError for an unknown name; ImportError if the module cannot be imported; TypeError if what is there
        has not the methods of a task.
    """
    module_name, separator, class_name = _BUILT_IN.get(name, name).partition(":")
    if not separator or not module_name or not class_name:
        known = ", ".join(_BUILT_IN)
        raise ValueError(f"unknown task {name!r}: built in are {known}; others are 'package.module:Class'")
    found = getattr(importlib.import_module(module_name), class_name, None)
    if found is None:
        raise ValueError(f"unknown task {name!r}: module {module_name} has no {class_name}")
    needed = ("name", "Options", "build", "train_data", "test_data", "per_example_loss", "count_correct")
    if missing := [attribute for attribute in needed if not hasattr(found, attribute)]:
        raise TypeError(f"{name} is no task: it has no {', '.join(missing)}")
    task: type[Task] = found
    return task
