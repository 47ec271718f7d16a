"""Eager functions made to work on deferred arguments, too."""

from __future__ import annotations

import functools
import inspect
from types import ModuleType
from typing import Any

from distopt import deferral
from distopt.graph import defer, defers


def lifted(function: Any, *, always: bool = False) -> Any:
    """Return ``function``; called with deferred arguments, it is recorded as one operation instead of being run.

    ``always``: while a graph is being built it is recorded whatever its arguments are, so that each run computes it.
    """

    @functools.wraps(function)
    def call_or_record(*args: Any, **kwargs: Any) -> Any:
        is_building = always and deferral.building() is not None
        if deferral.evaluation() is None and (is_building or defers(args) or defers(kwargs)):
            return defer(function, args, kwargs, name=kwargs.get("name"))
        return function(*args, **kwargs)

    return call_or_record


class LiftedModule:
    """The public names of ``module``, its functions lifted; ``always`` as in :func:`lifted`."""

    def __init__(self, module: ModuleType, *, always: bool = False) -> None:
        self._always = always
        self.__doc__ = module.__doc__
        self.__name__ = module.__name__
        self._module = module

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name)
        return lifted(found, always=self._always) if inspect.isfunction(found) else found

    def __dir__(self) -> list[str]:
        return [name for name in dir(self._module) if not name.startswith("_")]
