"""What an optimizer may do around its rule: decay weights, average variables, accumulate gradients, unscale them.

All of it is off unless asked for. It belongs to the step, not to a rule, so every rule gets it.

Source: Keras 3, ``keras.optimizers.Optimizer``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from distopt.optimizers.changes import Changing
from distopt.optimizers.hypers import through_float32
from distopt.optimizers.rule import Rule

ACCUMULATOR = "gradient_accumulator"
"""The slot in which gradients are added up between two steps."""

AVERAGE = "average"
"""The slot that holds the moving average of a variable."""


ACCUMULATED_CALLS = "accumulated_calls"
"""What the hypers of a step call the number of apply calls that it takes the mean of; 0 if it only accumulates."""


def calls_of_mean(hypers: Mapping[str, float]) -> int | None:
    """Return of how many apply calls, this one included, a step is made; None if gradients are only added up now.

    ``hypers`` are those of an optimizer that accumulates.
    """
    return int(hypers[ACCUMULATED_CALLS]) or None


def makes_step(hypers: Mapping[str, float]) -> bool:
    """Return whether the apply call with these hypers makes a step, or only accumulates gradients."""
    return hypers.get(ACCUMULATED_CALLS) != 0


@dataclass
class Features(Changing):
    """The features of one optimizer.

    ``slot_dtype`` is float32 where float16 and bfloat16 variables have slots of that dtype, in which their updates are
    then computed; None where slots have the variable's dtype, as in the reference. ``ema_momentum`` is None where
    variables are not averaged; ``accumulation_steps`` is the number of apply calls that make one step.
    """

    weight_decay: float | None = None
    ema_momentum: float | None = None
    ema_overwrite_frequency: int | None = None
    accumulation_steps: int = 1
    loss_scale_factor: float | None = None
    slot_dtype: np.dtype[Any] | None = None

    def dtype_of_slots(self, rule: Rule, dtype: np.dtype[Any]) -> np.dtype[Any]:
        """Return the dtype of the slots and scalars of ``rule`` for variables of ``dtype``."""
        return self.wider(dtype) if rule.slots else dtype

    def wider(self, dtype: np.dtype[Any]) -> np.dtype[Any]:
        """Return the dtype of accumulators and averages of variables of ``dtype``."""
        wider = self.slot_dtype
        return dtype if wider is None or wider.itemsize < dtype.itemsize else wider

    @property
    def slots(self) -> tuple[str, ...]:
        """The slots that the features need, beside those of the rule."""
        accumulator = (ACCUMULATOR,) if self.accumulation_steps > 1 else ()
        return accumulator if self.ema_momentum is None else (*accumulator, AVERAGE)


class Treatment(NamedTuple):
    """How one variable is updated: by which rule, and after which weight decay, if any."""

    rule: Rule
    weight_decay: float | None = None

    @property
    def is_plain(self) -> bool:
        """Whether one element-wise pass does it."""
        return self.weight_decay is None and self.rule.is_element_wise

    @property
    def fused(self) -> Rule | None:
        """The rule that makes the weight decay in its own pass, if there is a decay and such a rule."""
        return None if self.weight_decay is None else self.rule.decayed


class ScalarSource(Protocol):
    """What gives the scalars of a step: an optimizer."""

    features: Features

    def scalars_of(self, rule: Rule, hypers: Mapping[str, float], dtype: np.dtype[Any]) -> tuple[Any, ...]:
        """Return the scalars of ``rule``, in its order, in ``dtype``."""
        ...

    def steps_taken(self) -> int:
        """Return ``iterations`` as a number."""
        ...


class Step:
    """The numbers of one step, each computed once."""

    def __init__(self, optimizer: ScalarSource, hypers: Mapping[str, float]) -> None:
        self._optimizer = optimizer
        self._hypers = hypers
        self._scalars: dict[tuple[str, np.dtype[Any]], tuple[Any, ...]] = {}

    @property
    def overwrites(self) -> bool:
        """Whether this step ends with the variables set to their averages."""
        frequency = self._optimizer.features.ema_overwrite_frequency
        return frequency is not None and (self._optimizer.steps_taken() + 1) % frequency == 0

    def scalars(self, rule: Rule, dtype: np.dtype[Any]) -> tuple[Any, ...]:
        """Return the scalars of ``rule``."""
        key = rule.name, dtype
        found = self._scalars.get(key)
        if found is None:
            found = self._scalars[key] = self._optimizer.scalars_of(rule, self._hypers, dtype)
        return found

    def decay(self, weight_decay: float, dtype: np.dtype[Any]) -> tuple[Any, Any]:
        """Return weight decay and learning rate; the former is rounded through float32, as the reference does."""
        return dtype.type(through_float32(weight_decay)), dtype.type(self._hypers["learning_rate"])

    def averaging(self, dtype: np.dtype[Any]) -> tuple[Any, Any]:
        """Return the momentum of the averages and its complement; at the first step zero and one."""
        one = dtype.type(1)
        is_first = self._optimizer.steps_taken() == 0
        momentum = dtype.type(0 if is_first else self._optimizer.features.ema_momentum)
        return momentum, one - momentum
