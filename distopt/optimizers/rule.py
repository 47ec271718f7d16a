"""What an update rule declares about itself, beside its arithmetic."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


class Kind(enum.Enum):
    """How much of a variable a rule has to see at once; this decides where owners may cut it.

    ``ELEMENT_WISE``: one element of the variable, its slots and its gradient. Rules that need per-variable norms first,
    or whole variables, are kinds of their own.
    """

    ELEMENT_WISE = "element-wise"


class Rows(enum.Enum):
    """Which rows a row-sparse gradient touches."""

    TOUCHED = "touched"  # those of the summed gradient, "lazy"
    ALL = "all"  # every row: the others see a gradient of zero
    OCCURRENCES = "occurrences"  # each occurrence by itself, in order: duplicates are not summed first


@dataclass(frozen=True)
class SparseUse:
    """How a rule takes a row-sparse gradient.

    ``step`` is the function for it where it differs from the dense one, else ``None``. ``variable`` and ``slots`` say
    which rows of each are written.
    """

    variable: Rows
    slots: Rows
    step: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        if (self.variable is Rows.OCCURRENCES) != (self.slots is Rows.OCCURRENCES):
            raise ValueError("a rule takes occurrences one by one for the variable and its slots, or for neither")
        if self.variable is Rows.ALL and self.slots is Rows.TOUCHED:
            raise ValueError("a rule that moves every row of the variable needs every row of its slots")


@dataclass(frozen=True)
class Rule:
    """An element-wise update rule.

    ``step(variable, *slots, gradient, *scalars)`` returns the new variable, or ``(variable, *slots)`` where there are
    slots. It is a pure function of values in the variable's dtype, without numeric literals, called with arrays by the
    NumPy engine and with single elements by the compiled one. ``slots`` and ``scalars`` name its arguments, in order.

    ``numpy_only``: both engines run it on NumPy, because it has an operation (a power, an exponential) whose last bits
    are not those of compiled code.
    """

    name: str
    step: Callable[..., Any]
    slots: tuple[str, ...]
    scalars: tuple[str, ...]
    sparse: SparseUse
    kind: Kind = Kind.ELEMENT_WISE
    numpy_only: bool = False

    @property
    def sparse_step(self) -> Rule:
        """The rule that a row-sparse gradient is run with."""
        if self.sparse.step is None:
            return self
        return dataclasses.replace(self, name=f"{self.name}_sparse", step=self.sparse.step)
