"""The clip limits of an optimizer, and gradients clipped by them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from distopt.arena import flattened
from distopt.clipping import clip_by_global_norm, clip_by_norm, clip_by_value
from distopt.norms import add_sums
from distopt.optimizers.changes import Changing
from distopt.optimizers.engine import get_engine
from distopt.types import Array
from distopt.variable import Variable


@dataclass
class Clips(Changing):
    """The clip limits of an optimizer; ``None``: not clipped that way."""

    value: float | None = None
    norm: float | None = None
    global_norm: float | None = None
    active: bool = field(default=False, init=False, repr=False)
    """Whether there is a limit; it follows from the others."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        own = self.__dict__
        # Kept, since every step asks for it several times, and limits seldom change.
        own["active"] = any(own.get(limit) is not None for limit in ("value", "norm", "global_norm"))

    @property
    def needs_norms(self) -> bool:
        return self.norm is not None or self.global_norm is not None

    @property
    def chained(self) -> bool:
        """Whether the global norm is that of gradients that were clipped by their norms: two exchanges, not one."""
        return self.norm is not None and self.global_norm is not None

    @property
    def in_passing(self) -> bool:
        """Whether there is a clip, and the loop that runs the rule can do it: by value, by the global norm."""
        return self.active and self.norm is None and self.value != 0


NO_CLIPS: Final = Clips()


def clip_pairs(pairs: Iterable[tuple[Any, Variable]], clips: Clips) -> Iterable[tuple[Any, Variable]]:
    """Return the pairs clipped by value, then by norm, then by global norm, as far as ``clips`` has each."""
    if not clips.active:
        return pairs
    clipped = list(pairs)
    if clips.value is not None:
        clipped = [(clip_by_value(gradient, -clips.value, clips.value), v) for gradient, v in clipped]
    if clips.norm is not None:
        clipped = [(clip_by_norm(gradient, clips.norm, _sum_of_squares), v) for gradient, v in clipped]
    if clips.global_norm is not None:
        gradients, _ = clip_by_global_norm([g for g, _ in clipped], clips.global_norm, _sum_of_squares)
        clipped = [(gradient, v) for gradient, (_, v) in zip(gradients, clipped, strict=True)]
    return clipped


def _sum_of_squares(values: Array) -> Any:
    return add_sums(get_engine().block_sums(flattened(values)))
