"""What an update rule declares about itself, beside its arithmetic."""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from distopt.types import Shape


class Kind(enum.Enum):
    """How much of a variable a rule has to see at once; this decides where owners may cut it."""

    ELEMENT_WISE = "element-wise"
    """One element of the variable, its slots and its gradient: cut anywhere."""

    AFTER_NORMS = "element-wise after per-variable norms"
    """The same, in two passes with the norms of the whole variable in between: cut at norm blocks, whose sums of
    squares the owners exchange."""

    WHOLE_VARIABLE = "whole-variable"
    """Everything at once; slots may have shapes of their own: never cut."""


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


ALL_ROWS = SparseUse(variable=Rows.ALL, slots=Rows.ALL)
"""A row-sparse gradient counts as a dense one, zero in the rows that it lacks."""


@dataclass(frozen=True)
class AfterNorms:
    """The second pass of a rule of kind ``AFTER_NORMS``, whose first pass returned a direction for each element.

    ``factor(variable_norm, direction_norm, one)`` returns one number for the whole variable from two norms, in the
    variable's dtype. ``move`` is an element-wise rule without slots: ``step(variable, direction, factor, *scalars)``.
    """

    factor: Callable[..., Any]
    move: Rule


@dataclass(frozen=True)
class Rule:
    """An update rule.

    ``step(variable, *slots, gradient, *scalars)`` returns the new variable, or ``(variable, *slots)`` where there are
    slots. It is a pure function of values in the variable's dtype, without numeric literals. ``slots`` and ``scalars``
    name its arguments, in order. What it is called with depends on ``kind``:

    - element-wise: arrays by the NumPy engine, single elements by the compiled one;
    - after norms: likewise, but ``step`` returns ``(direction, *slots)``, and ``after_norms`` says how the variable
      moves in that direction;
    - whole-variable: always arrays, in the shapes of the variable and of its slots, by both engines.

    ``slot_shapes(shape)`` returns the shapes of the slots of a variable of that shape; without it they have the
    variable's. ``decayed`` is the same rule with weight decay made before it in the same pass, its further scalars
    ``weight_decay`` and ``learning_rate``; without it the decay is a pass of its own.

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
    after_norms: AfterNorms | None = None
    slot_shapes: Callable[[Shape], tuple[Shape, ...]] | None = None
    decayed: Rule | None = None

    def __post_init__(self) -> None:
        if (self.kind is Kind.AFTER_NORMS) != (self.after_norms is not None):
            raise ValueError(f"rule {self.name}: a second pass belongs to rules of kind AFTER_NORMS, and to no others")
        if self.slot_shapes is not None and self.kind is not Kind.WHOLE_VARIABLE:
            raise ValueError(f"rule {self.name}: slots of an {self.kind.value} rule have the variable's shape")
        if self.kind is not Kind.ELEMENT_WISE and self.sparse != ALL_ROWS:
            raise ValueError(f"rule {self.name} needs whole gradients, so row-sparse ones must touch all rows")

    def __hash__(self) -> int:
        return hash((self.name, self.step))  # kernels are looked up by rules in every step, and equal ones have these

    @property
    def is_element_wise(self) -> bool:
        """Whether one pass over single elements carries out the rule."""
        return self.kind is Kind.ELEMENT_WISE

    @functools.cached_property
    def sparse_step(self) -> Rule:
        """The rule that a row-sparse gradient is run with."""
        if self.sparse.step is None:
            return self
        return dataclasses.replace(self, name=f"{self.name}_sparse", step=self.sparse.step)

    @property
    def element_wise_rules(self) -> tuple[Rule, ...]:
        """Every rule that an engine runs for this one: itself, its second pass, the form with weight decay."""
        own = () if self.kind is Kind.WHOLE_VARIABLE else (self,)
        second = () if self.after_norms is None else (self.after_norms.move,)
        return (*own, *second, *(() if self.decayed is None else (self.decayed,)))

    def shapes_of_slots(self, shape: Shape) -> tuple[Shape, ...]:
        """Return the shapes of the slots of a variable of ``shape``."""
        return (shape,) * len(self.slots) if self.slot_shapes is None else self.slot_shapes(shape)
