"""The clip options of the Keras optimizers: numbers, or None; each may be changed at any time."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from distopt.optimizers.clips import Clips
from distopt.optimizers.core import OptimizerCore
from distopt.optimizers.pipeline import Pair

Transformer = Callable[[list[Pair]], Iterable[Pair]]

CLIP_OPTIONS = {"clipnorm": "norm", "clipvalue": "value", "global_clipnorm": "global_norm"}
"""Keyword arguments, and what :class:`~distopt.optimizers.owner.Clips` calls them."""


class ClipOptions(OptimizerCore):
    """An optimizer whose clip limits are the attributes ``clipvalue``, ``clipnorm`` and ``global_clipnorm``."""

    gradient_transformers: list[Transformer]

    @property
    def _limits(self) -> Clips:
        """Where the limits are: those of aggregated gradients."""
        return self.clips

    @property
    def clipvalue(self) -> float | None:
        """Gradients are clipped to ``-clipvalue .. clipvalue``."""
        return self._limits.value

    @clipvalue.setter
    def clipvalue(self, value: float | None) -> None:
        self._set_clip("clipvalue", value)

    @property
    def clipnorm(self) -> float | None:
        """Each variable's gradient is scaled down to this norm."""
        return self._limits.norm

    @clipnorm.setter
    def clipnorm(self, value: float | None) -> None:
        self._set_clip("clipnorm", value)

    @property
    def global_clipnorm(self) -> float | None:
        """All gradients together are scaled down to this norm."""
        return self._limits.global_norm

    @global_clipnorm.setter
    def global_clipnorm(self, value: float | None) -> None:
        self._set_clip("global_clipnorm", value)

    def _set_clip(self, option: str, value: float | None) -> None:
        if value is not None and self.gradient_transformers:
            raise ValueError(f"{option} cannot be used with gradient_transformers; clip in one of them")
        setattr(self._limits, CLIP_OPTIONS[option], value)
