"""Learning-rate schedules: the rate as a function of the number of steps taken.

All arithmetic is in the dtype of the initial rate, float32 for a Python number; so a schedule returns a float32
number even where variables are float64. Schedules do not check ``decay_steps``: zero gives NaN or an infinity, as in
the reference.

Source: ``keras.optimizers.schedules``; Loshchilov and Hutter 2017 for the cosine forms.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np


class LearningRateSchedule:
    """Base of all schedules; a subclass gives ``__call__(step)`` and ``get_config()``."""

    def __call__(self, step: Any) -> Any:
        """Return the rate after ``step`` steps, a NumPy scalar."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its rate is: override __call__(step)")

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        raise NotImplementedError(f"{type(self).__name__} does not override get_config()")

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Return the schedule that ``get_config`` described."""
        return cls(**config)


class ExponentialDecay(LearningRateSchedule):
    """``initial * decay_rate ** p`` with ``p = step / decay_steps``, rounded down if ``staircase``.

    >>> float(ExponentialDecay(0.5, 10, 0.5)(20))
    0.125
    """

    def __init__(
        self,
        initial_learning_rate: Any,
        decay_steps: Any,
        decay_rate: Any,
        staircase: bool = False,
        name: str | None = None,
    ) -> None:
        self.initial_learning_rate = initial_learning_rate
        self.decay_steps = decay_steps
        self.decay_rate = decay_rate
        self.staircase = staircase
        self.name = name

    def __call__(self, step: Any) -> Any:
        initial, steps, rate, now = _scalars(self.initial_learning_rate, self.decay_steps, self.decay_rate, step)
        with np.errstate(all="ignore"):
            periods = now / steps
            return initial * np.power(rate, np.floor(periods) if self.staircase else periods)

    def get_config(self) -> dict[str, Any]:
        return {
            "initial_learning_rate": self.initial_learning_rate,
            "decay_steps": self.decay_steps,
            "decay_rate": self.decay_rate,
            "staircase": self.staircase,
            "name": self.name,
        }


class PiecewiseConstantDecay(LearningRateSchedule):
    """``values[i]`` for ``boundaries[i-1] < step <= boundaries[i]``: a boundary belongs to the value before it.

    Raises: ValueError unless there is one value more than boundaries; when called, for a step in the reach of several
        values, because the boundaries do not ascend.

    >>> float(PiecewiseConstantDecay([100], [1.0, 0.5])(100))
    1.0
    """

    def __init__(self, boundaries: Sequence[Any], values: Sequence[Any], name: str | None = None) -> None:
        if len(boundaries) != len(values) - 1:
            raise ValueError(
                f"{len(boundaries)} boundaries need {len(boundaries) + 1} values, but there are {len(values)}"
            )
        self.boundaries = boundaries
        self.values = values
        self.name = name

    def __call__(self, step: Any) -> Any:
        now = np.asarray(step)
        limits = [np.asarray(boundary).astype(now.dtype) for boundary in self.boundaries]
        lower, upper = [None, *limits], [*limits, None]
        reached = [
            value
            for value, low, high in zip(self.values, lower, upper, strict=True)
            if (low is None or now > low) and (high is None or now <= high)
        ]
        if len(reached) > 1:
            raise ValueError(f"step {now} is in the reach of the values {reached}: the boundaries must ascend")
        return _scalars(reached[0] if reached else self.values[0])[0]

    def get_config(self) -> dict[str, Any]:
        return {"boundaries": self.boundaries, "values": self.values, "name": self.name}


class PolynomialDecay(LearningRateSchedule):
    """``(initial - end) (1 - s / D) ** power + end``.

    Without ``cycle``, ``s = min(step, D)`` with ``D = decay_steps``; with it, D is the next multiple of
    ``decay_steps``, so that the rate rises again after each of them (and is ``end`` on it).

    >>> float(PolynomialDecay(1.0, 4, end_learning_rate=0.5)(2))
    0.75
    """

    def __init__(
        self,
        initial_learning_rate: Any,
        decay_steps: Any,
        end_learning_rate: Any = 0.0001,
        power: Any = 1.0,
        cycle: bool = False,
        name: str | None = None,
    ) -> None:
        self.initial_learning_rate = initial_learning_rate
        self.decay_steps = decay_steps
        self.end_learning_rate = end_learning_rate
        self.power = power
        self.cycle = cycle
        self.name = name

    def __call__(self, step: Any) -> Any:
        initial, end, power, steps, now = _scalars(
            self.initial_learning_rate, self.end_learning_rate, self.power, self.decay_steps, step
        )
        one = initial.dtype.type(1)
        with np.errstate(all="ignore"):
            if self.cycle:
                steps = steps * (one if now == 0 else np.ceil(now / steps))
            else:
                now = np.minimum(now, steps)
            return (initial - end) * np.power(one - now / steps, power) + end

    def get_config(self) -> dict[str, Any]:
        return {
            "initial_learning_rate": self.initial_learning_rate,
            "decay_steps": self.decay_steps,
            "end_learning_rate": self.end_learning_rate,
            "power": self.power,
            "cycle": self.cycle,
            "name": self.name,
        }


class InverseTimeDecay(LearningRateSchedule):
    """``initial / (1 + decay_rate * p)`` with ``p = step / decay_steps``, rounded down if ``staircase``.

    >>> float(InverseTimeDecay(1.0, 10, 1.0)(10))
    0.5
    """

    def __init__(
        self,
        initial_learning_rate: Any,
        decay_steps: Any,
        decay_rate: Any,
        staircase: bool = False,
        name: str | None = None,
    ) -> None:
        self.initial_learning_rate = initial_learning_rate
        self.decay_steps = decay_steps
        self.decay_rate = decay_rate
        self.staircase = staircase
        self.name = name

    def __call__(self, step: Any) -> Any:
        initial, steps, rate, now = _scalars(self.initial_learning_rate, self.decay_steps, self.decay_rate, step)
        one = initial.dtype.type(1)
        with np.errstate(all="ignore"):
            periods = now / steps
            return initial / (one + rate * (np.floor(periods) if self.staircase else periods))

    def get_config(self) -> dict[str, Any]:
        return {
            "initial_learning_rate": self.initial_learning_rate,
            "decay_steps": self.decay_steps,
            "decay_rate": self.decay_rate,
            "staircase": self.staircase,
            "name": self.name,
        }


class CosineDecay(LearningRateSchedule):
    """Half a cosine from the initial rate, or after a linear warm-up from ``warmup_target``, to ``alpha`` times it.

    ``warmup_steps`` counts only where ``warmup_target`` is given.

    >>> float(CosineDecay(1.0, 10, alpha=0.25)(10))
    0.25
    """

    def __init__(
        self,
        initial_learning_rate: Any,
        decay_steps: Any,
        alpha: Any = 0.0,
        name: str | None = None,
        warmup_target: Any = None,
        warmup_steps: Any = 0,
    ) -> None:
        self.initial_learning_rate = initial_learning_rate
        self.decay_steps = decay_steps
        self.alpha = alpha
        self.name = name
        self.warmup_target = warmup_target
        self.warmup_steps = warmup_steps

    def __call__(self, step: Any) -> Any:
        initial, steps, alpha, now = _scalars(self.initial_learning_rate, self.decay_steps, self.alpha, step)
        with np.errstate(all="ignore"):
            if self.warmup_target is None:
                return self._decayed(initial, now, steps, alpha)
            _, target, warmup = _scalars(self.initial_learning_rate, self.warmup_target, self.warmup_steps)
            if now < warmup:
                return (target - initial) * (now / warmup) + initial
            return self._decayed(target, now - warmup, steps, alpha)

    def _decayed(self, start: Any, now: Any, steps: Any, alpha: Any) -> Any:
        one, half, pi = (start.dtype.type(number) for number in (1.0, 0.5, np.pi))
        cosine = half * (one + np.cos(pi * (np.minimum(now, steps) / steps)))
        return start * ((one - alpha) * cosine + alpha)

    def get_config(self) -> dict[str, Any]:
        return {
            "initial_learning_rate": self.initial_learning_rate,
            "decay_steps": self.decay_steps,
            "alpha": self.alpha,
            "name": self.name,
            "warmup_target": self.warmup_target,
            "warmup_steps": self.warmup_steps,
        }


class CosineDecayRestarts(LearningRateSchedule):
    """Cosine decays one after another, each ``t_mul`` times as long and ``m_mul`` times as high as the one before.

    >>> float(CosineDecayRestarts(1.0, 10)(10))
    1.0
    """

    def __init__(
        self,
        initial_learning_rate: Any,
        first_decay_steps: Any,
        t_mul: Any = 2.0,
        m_mul: Any = 1.0,
        alpha: Any = 0.0,
        name: str | None = None,
    ) -> None:
        self.initial_learning_rate = initial_learning_rate
        self.first_decay_steps = first_decay_steps
        self.t_mul = t_mul
        self.m_mul = m_mul
        self.alpha = alpha
        self.name = name

    def __call__(self, step: Any) -> Any:
        initial, first, t_mul, m_mul, alpha, now = _scalars(
            self.initial_learning_rate, self.first_decay_steps, self.t_mul, self.m_mul, self.alpha, step
        )
        one, half, pi = (initial.dtype.type(number) for number in (1.0, 0.5, np.pi))
        with np.errstate(all="ignore"):
            completed = now / first
            if t_mul == one:
                restarts = np.floor(completed)
                completed = completed - restarts
            else:
                restarts = np.floor(np.log(one - completed * (one - t_mul)) / np.log(t_mul))
                lengths = (one - np.power(t_mul, restarts)) / (one - t_mul)
                completed = (completed - lengths) / np.power(t_mul, restarts)
            cosine = half * np.power(m_mul, restarts) * (one + np.cos(pi * completed))
            return initial * ((one - alpha) * cosine + alpha)

    def get_config(self) -> dict[str, Any]:
        return {
            "initial_learning_rate": self.initial_learning_rate,
            "first_decay_steps": self.first_decay_steps,
            "t_mul": self.t_mul,
            "m_mul": self.m_mul,
            "alpha": self.alpha,
            "name": self.name,
        }


MODULE = "keras.optimizers.schedules"
"""The module under which schedules are serialised, so that configurations travel between libraries."""


def serialize(schedule: LearningRateSchedule) -> dict[str, Any]:
    """Return the dictionary from which :func:`deserialize` makes an equal schedule."""
    return {
        "module": MODULE if type(schedule) in _BY_NAME.values() else None,
        "class_name": type(schedule).__name__,
        "config": schedule.get_config(),
        "registered_name": None if type(schedule) in _BY_NAME.values() else type(schedule).__name__,
    }


def deserialize(config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> LearningRateSchedule:
    """Return the schedule that ``config`` describes.

    Raises: TypeError if its class is neither one of ours nor among ``custom_objects``.
    """
    name = config["class_name"]
    cls = {**_BY_NAME, **(custom_objects or {})}.get(name)
    if cls is None:
        raise TypeError(f"there is no schedule {name!r}; pass its class as custom_objects={{{name!r}: ...}}")
    schedule: LearningRateSchedule = cls.from_config(dict(config["config"]))
    return schedule


_BY_NAME: dict[str, type[LearningRateSchedule]] = {
    cls.__name__: cls
    for cls in (
        ExponentialDecay,
        PiecewiseConstantDecay,
        PolynomialDecay,
        InverseTimeDecay,
        CosineDecay,
        CosineDecayRestarts,
    )
}


def _scalars(first: Any, *others: Any) -> tuple[Any, ...]:
    """Return all as scalars of the dtype of ``first``: float32 for a Python number."""
    dtype = np.float32 if isinstance(first, int | float) else np.asarray(first).dtype
    return tuple(np.asarray(value).astype(dtype)[()] for value in (first, *others))
