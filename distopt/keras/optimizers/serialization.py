"""Optimizers as names and dictionaries, and back."""

from __future__ import annotations

import inspect
from typing import Any

from distopt import optimizers
from distopt.optimizers.keras_legacy import Optimizer
from distopt.optimizers.scaled import ScaledOptimizer

AnyOptimizer = Optimizer | ScaledOptimizer

MODULE = "keras.optimizers.legacy"
"""The module under which our classes are serialised, so that configurations travel between libraries."""


def get(identifier: Any) -> AnyOptimizer:
    """Return the optimizer that ``identifier`` stands for: an optimizer, a name in any case, or a dictionary.

    Raises: ValueError for anything else, and for a name that is not known.

    >>> get("rmsprop").get_config()["rho"]
    0.9
    """
    if isinstance(identifier, AnyOptimizer):
        return identifier
    if isinstance(identifier, str):
        return deserialize({"class_name": identifier, "config": {}})
    if isinstance(identifier, dict):
        return deserialize(identifier)
    raise ValueError(f"an optimizer is an object, a name or a dictionary, not {identifier!r}")


def serialize(optimizer: AnyOptimizer | None, use_legacy_format: bool = False) -> dict[str, Any] | None:
    """Return the dictionary from which :func:`deserialize` makes an equal optimizer; functions are not in it.

    ``use_legacy_format`` leaves ``class_name`` and ``config`` alone in it. ``None`` gives ``None``.

    Raises: ValueError for anything but an optimizer.
    """
    if optimizer is None:
        return None
    if not isinstance(optimizer, AnyOptimizer):
        raise ValueError(f"only an optimizer can be serialized, not {optimizer!r}")
    cls = type(optimizer)
    described = {"class_name": cls.__name__, "config": optimizer.get_config()}
    if use_legacy_format:
        return described
    is_ours = _by_lower_name().get(cls.__name__.lower()) is cls
    return {
        "module": MODULE if is_ours else cls.__module__,
        **described,
        "registered_name": None if is_ours else cls.__name__,
    }


def deserialize(
    config: dict[str, Any],
    custom_objects: dict[str, Any] | None = None,
    use_legacy_format: bool = False,  # noqa: ARG001 - both formats are told apart by their keys
) -> AnyOptimizer:
    """Return the optimizer that ``config`` describes, in either format of :func:`serialize`.

    ``custom_objects`` maps names to classes of one's own, of optimizers and schedules; ours may be in any case.

    Raises: ValueError for a dictionary without a known ``class_name``; TypeError for arguments that its class lacks.
    """
    name = config.get("class_name")
    if not isinstance(name, str):
        raise ValueError(f"an optimizer's dictionary has a class_name and a config, unlike {config!r}")
    known = _by_lower_name()
    cls = (custom_objects or {}).get(name) or known.get(name.lower())
    if cls is None:
        names = ", ".join(sorted(cls.__name__ for cls in known.values()))
        raise ValueError(f"unknown optimizer {name!r}; known are {names}, and what custom_objects holds")
    arguments = dict(config.get("config", {}))
    if "custom_objects" in inspect.signature(cls.from_config).parameters:
        made: AnyOptimizer = cls.from_config(arguments, custom_objects=custom_objects)
    else:
        made = cls.from_config(arguments)
    return made


def _by_lower_name() -> dict[str, Any]:
    return {
        name.lower(): cls
        for name, cls in vars(optimizers).items()
        if isinstance(cls, type) and issubclass(cls, AnyOptimizer) and cls is not Optimizer
    }
