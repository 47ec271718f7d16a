"""The clip limits of an optimizer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final


@dataclass
class Clips:
    """The clip limits of an optimizer; ``None``: not clipped that way."""

    value: float | None = None
    norm: float | None = None
    global_norm: float | None = None
    active: bool = field(default=False, init=False, repr=False)
    """Whether there is a limit; it follows from the others."""

    def __setattr__(self, name: str, value: Any) -> None:
        own = self.__dict__
        own[name] = value
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
