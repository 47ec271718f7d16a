"""Values that differ between replicas, and the two moves between one value and many.

:func:`regroup` turns what the hosted replicas hold into one value for cross-replica code; :func:`select` is its
inverse. Containers are walked leaf by leaf; everything else is a leaf.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from distopt.errors import PerReplicaAsTensorError
from distopt.nest import map_structure


class DistributedValues:
    """One component per replica that this process hosts, in the order of replica ids."""

    __slots__ = ("values",)

    def __init__(self, values: Sequence[Any]) -> None:
        self.values = tuple(values)

    def __repr__(self) -> str:
        parts = ", ".join(f"{i}: {value!r}" for i, value in enumerate(self.values))
        return f"{type(self).__name__}({parts})"


class PerReplica(DistributedValues):
    """A value of its own on each replica; not usable as a tensor or number outside of them."""

    __slots__ = ()

    def _refuse(self, *_: Any) -> Any:
        raise PerReplicaAsTensorError(
            "a PerReplica value is one value a replica; use `strategy.reduce` for one result or "
            "`strategy.experimental_local_results` for all of them"
        )

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return self._refuse()

    __float__ = __int__ = __neg__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _refuse
    __lt__ = __le__ = __gt__ = __ge__ = _refuse


class Mirrored(DistributedValues):
    """A value that is the same on every replica; usable as an array anywhere."""

    __slots__ = ()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return np.array(self.values[0], dtype=dtype)


def regroup(values: Sequence[Any], *, always_wrap: bool = False) -> Any:
    """Return one value from those of the hosted replicas.

    A single replica's value, and a leaf that is the very same object everywhere, come back as they are, unless
    ``always_wrap``; other leaves become :class:`PerReplica`.

    >>> regroup([{"a": 1.5, "b": None}, {"a": 2.5, "b": None}])
    {'a': PerReplica(0: 1.5, 1: 2.5), 'b': None}
    """
    if len(values) == 1 and not always_wrap:
        return values[0]

    def leaf(*components: Any) -> Any:
        first = components[0]
        return first if not always_wrap and all(c is first for c in components) else PerReplica(components)

    return map_structure(leaf, *values)


# A tuple of classes, none of them abstract: such a check takes a tenth of the time.
_CONTAINERS = (tuple, list, dict)


def select(value: Any, index: int) -> Any:
    """Return the component of ``value`` for the ``index``-th hosted replica; plain leaves are shared.

    >>> select([PerReplica([1.0, 2.0]), 3], 1)
    [2.0, 3]
    """

    if isinstance(value, DistributedValues):
        return value.values[index]
    kind = type(value)
    if kind is tuple or kind is list:
        return kind([select(item, index) for item in value])
    return map_structure(lambda item: select(item, index), value) if isinstance(value, _CONTAINERS) else value


def select_arguments(arguments: Sequence[Any], index: int) -> tuple[Any, ...]:
    """Return :func:`select` of each argument, for a call on the ``index``-th hosted replica."""
    return tuple([select(argument, index) for argument in arguments])


def local_components(value: Any, num_hosted: int) -> tuple[Any, ...]:
    """Return the component of ``value`` for each hosted replica; a plain value stands for all of them."""
    return value.values if isinstance(value, DistributedValues) else (value,) * num_hosted
