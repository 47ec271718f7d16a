"""The clip limits of an optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass
class Clips:
    """The clip limits of an optimizer; ``None``: not clipped that way."""

    value: float | None = None
    norm: float | None = None
    global_norm: float | None = None

    @property
    def active(self) -> bool:
        return self.value is not None or self.norm is not None or self.global_norm is not None

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
