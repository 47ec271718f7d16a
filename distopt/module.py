"""``tf.Module``: an object that finds the variables in its attributes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from distopt.nest import flatten
from distopt.variable import Variable


class Module:
    """Base of objects that hold variables, and other modules, as attributes or in nested structures of them.

    They are found in the order of the attributes' names, as in the reference, each once.

    >>> class Line(Module):
    ...     def __init__(self):
    ...         super().__init__(name="line")
    ...         self.slope, self.offset = Variable(2.0), Variable(0.5, trainable=False)
    >>> line = Line()
    >>> len(line.variables), len(line.trainable_variables)
    (2, 1)
    """

    def __init__(self, name: str | None = None) -> None:
        self.name = name or type(self).__name__.lower()

    @property
    def variables(self) -> tuple[Variable, ...]:
        """All variables of this module and of those in it."""
        return tuple(part for part in self._parts(set()) if isinstance(part, Variable))

    @property
    def trainable_variables(self) -> tuple[Variable, ...]:
        """The trainable ones among ``variables``."""
        return tuple(variable for variable in self.variables if variable.trainable)

    @property
    def non_trainable_variables(self) -> tuple[Variable, ...]:
        """Those of ``variables`` that are not trainable."""
        return tuple(variable for variable in self.variables if not variable.trainable)

    @property
    def submodules(self) -> tuple[Module, ...]:
        """The modules in this one, and in those."""
        return tuple(part for part in self._parts(set()) if isinstance(part, Module))

    def _parts(self, seen: set[int]) -> Iterator[Any]:
        seen.add(id(self))
        for _, attribute in sorted(vars(self).items()):
            for part in flatten(attribute):
                if id(part) in seen or not isinstance(part, Variable | Module):
                    continue
                seen.add(id(part))
                yield part
                if isinstance(part, Module):
                    yield from part._parts(seen)
