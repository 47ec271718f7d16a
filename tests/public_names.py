"""Which names are public: those in ``__all__`` of a module that users see, or defined there without an underscore."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from types import ModuleType
from typing import Any

import distopt


def modules() -> list[str]:
    """Return the names of all modules of distopt that can be imported here."""
    found = [module.name for module in pkgutil.walk_packages(distopt.__path__, "distopt.")]
    return ["distopt", *(name for name in found if not name.endswith("__main__"))]


def offered(module: ModuleType) -> dict[str, Any]:
    """Return the public names of ``module`` and what they stand for."""
    listed = getattr(module, "__all__", None)
    if listed is None:
        listed = [
            name
            for name, value in vars(module).items()
            if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
        ]
    return {name: getattr(module, name) for name in listed}


def public_modules() -> list[str]:
    """Return the modules that are reached from ``distopt`` through names in ``__all__``, in order."""
    found, waiting = [], ["distopt"]
    while waiting:
        name = waiting.pop(0)
        if name in found:
            continue
        found.append(name)
        module = importlib.import_module(name)
        waiting += [
            value.__name__
            for value in offered(module).values()
            if inspect.ismodule(value) and value.__name__.startswith("distopt")
        ]
    return found
