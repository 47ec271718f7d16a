"""What an aggregator remembers from one step to the next, by variable, and by replica where each has its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from distopt.types import Array

PREFIX = "aggregator."
"""What the names of these arrays begin with, in the state of an optimizer."""

SHARED = "all"
"""The replica of what all replicas have alike."""


class Memory:
    """Arrays by kind, replica and variable.

    Their names are ``aggregator.<kind>.<replica>.<position of the variable>``; a process remembers what belongs to the
    replicas that it hosts, and what is shared.

    >>> memory, variable = Memory(), object()
    >>> memory.put("residual", 3, variable, np.ones(2))
    >>> memory.named([variable])
    {'aggregator.residual.3.0': array([1., 1.])}
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[str, int | str, int], tuple[Any, Array]] = {}
        self._waiting: dict[str, Array] = {}

    def get(self, kind: str, replica: int | str, variable: Any) -> Array | None:
        """Return what was put, or None."""
        found = self._kept.get((kind, replica, id(variable)))
        return None if found is None else found[1]

    def put(self, kind: str, replica: int | str, variable: Any, array: Array) -> None:
        """Remember ``array``, which is not copied."""
        self._kept[kind, replica, id(variable)] = variable, array

    def kept(self) -> dict[Any, Any]:
        """Return what is remembered now, for :meth:`go_back`."""
        return dict(self._kept)

    def go_back(self, kept: dict[Any, Any]) -> None:
        """Remember what :meth:`kept` returned, and nothing that came later."""
        self._kept = dict(kept)

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()
        self._waiting.clear()

    def named(self, variables: Sequence[Any]) -> dict[str, Array]:
        """Return copies of what is remembered of ``variables``, by name."""
        position_of = {id(variable): i for i, variable in enumerate(variables)}
        return {
            f"{PREFIX}{kind}.{replica}.{position_of[variable]}": array.copy()
            for (kind, replica, variable), (_, array) in self._kept.items()
            if variable in position_of
        }

    def load(self, name: str, array: Array, variables: Sequence[Any]) -> None:
        """Remember a copy of what :meth:`named` gave; of a variable that is not there yet, from :meth:`place` on."""
        self._waiting[name] = np.array(array)
        self.place(variables)

    def place(self, variables: Sequence[Any]) -> None:
        """Take up what was loaded before the variables were there."""
        for name in list(self._waiting):
            kind, replica, position = name.removeprefix(PREFIX).split(".")
            if int(position) < len(variables):
                array = self._waiting.pop(name)
                self.put(kind, replica if replica == SHARED else int(replica), variables[int(position)], array)


def of_replicas(named: Mapping[str, Array], replicas: Sequence[int]) -> dict[str, Array]:
    """Return what of ``named``, which may hold other names too, is shared, or belongs to one of ``replicas``.

    >>> of_replicas({"aggregator.residual.1.0": np.ones(1), "aggregator.factor.all.0": np.ones(1)}, [0])
    {'aggregator.factor.all.0': array([1.])}
    """
    wanted = {SHARED, *map(str, replicas)}
    return {
        name: array
        for name, array in named.items()
        if not name.startswith(PREFIX) or name.removeprefix(PREFIX).split(".")[1] in wanted
    }
