"""Eager functions made to work on deferred arguments, too."""

from __future__ import annotations

import functools
import inspect
from types import ModuleType
from typing import Any

from distopt import deferral
from distopt.graph import defer, defers


def lifted(function: Any) -> Any:
    """Return ``function``; called with deferred arguments, it is recorded as one operation instead of being run."""

    @functools.wraps(function)
    def call_or_record(*args: Any, **kwargs: Any) -> Any:
        if deferral.evaluation() is None and (defers(args) or defers(kwargs)):
            return defer(function, args, kwargs, name=kwargs.get("name"))
        return function(*args, **kwargs)

    return call_or_record


class LiftedModule:
    """The public names of ``module``, its functions lifted."""

    def __init__(self, module: ModuleType) -> None:
        self.__doc__ = module.__doc__
        self.__name__ = module.__name__
        self._module = module

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name)
        return lifted(found) if inspect.isfunction(found) else found

    def __dir__(self) -> list[str]:
        return [name for name in dir(self._module) if not name.startswith("_")]
