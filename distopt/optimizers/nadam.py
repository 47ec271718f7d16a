"""Nadam with the Keras face."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from distopt import schedules
from distopt.optimizers import rules
from distopt.optimizers.features import makes_step
from distopt.optimizers.hypers import BACKEND_EPSILON, power, through_float32
from distopt.optimizers.keras_legacy import Optimizer
from distopt.optimizers.rule import Rule
from distopt.variable import Variable, VariableAggregation

DECAY_BASE = 0.96


class Nadam(Optimizer):
    """Adam with Nesterov momentum. The momentum of step k is ``beta_1 (1 - 0.96^(schedule_decay k) / 2)``.

    ``epsilon``: 0 and ``None`` mean 1e-7. ``schedule_decay`` (0.004) is a keyword argument; ``decay`` is overwritten by
    it, so a configuration that travels through :meth:`get_config` gets 0.004 back. A row-sparse gradient moves its own
    rows of the variable, while the moments of all rows decay. The weight ``momentum_cache`` is the product of the
    momenta of all steps.

    Raises: ValueError for a schedule as learning rate, and as :class:`Optimizer`.

    Source: Dozat 2016; tf_keras ``legacy.Nadam``.
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: Any = 0.9,
        beta_2: Any = 0.999,
        epsilon: float | None = 1e-7,
        name: str | None = "Nadam",
        **kwargs: Any,
    ) -> None:
        kwargs["decay"] = kwargs.pop("schedule_decay", 0.004)
        learning_rate = kwargs.get("lr", learning_rate)
        if isinstance(learning_rate, schedules.LearningRateSchedule):
            raise ValueError("Nadam takes no schedule as learning rate; its momentum follows one of its own")
        super().__init__(name, **kwargs)
        self._set_hyper("learning_rate", learning_rate)
        self._set_hyper("decay", self._initial_decay)
        self._set_hyper("beta_1", beta_1)
        self._set_hyper("beta_2", beta_2)
        self.epsilon = epsilon or BACKEND_EPSILON

    @property
    def rule(self) -> Rule:
        """The update rule."""
        return rules.NADAM

    def _create_slots(self, var_list: Sequence[Variable]) -> None:
        if "momentum_cache" not in self._own_weights:
            cache = self.add_weight(
                "momentum_cache",
                shape=(),
                dtype=var_list[0].dtype,
                initializer="ones",
                trainable=False,
                aggregation=VariableAggregation.ONLY_FIRST_REPLICA,
            )
            self._weights.append(cache)
        super()._create_slots(var_list)

    def scalars(self, hypers: Mapping[str, float], dtype: np.dtype[Any]) -> tuple[Any, ...]:
        """Return the rule's scalars; those that depend on the step are of the step that is being made."""
        one, step = dtype.type(1), int(self.iterations.storage) + 1
        learning_rate, beta_1, beta_2 = (dtype.type(hypers[name]) for name in ("learning_rate", "beta_1", "beta_2"))
        with np.errstate(all="ignore"):
            momentum, next_momentum = self._momentum(beta_1, step), self._momentum(beta_1, step + 1)
            product = dtype.type(self._own_weights["momentum_cache"].storage) * momentum
            return (
                learning_rate,
                beta_1,
                beta_2,
                one - beta_1,
                one - beta_2,
                one - momentum,
                next_momentum,
                one - product,
                one - product * next_momentum,
                one - dtype.type(power(float(beta_2), step)),
                dtype.type(self.epsilon),
            )

    def advance(self, hypers: Mapping[str, float], updated: Iterable[Variable] | None = None) -> None:
        """Count one step, and take its momentum into ``momentum_cache``."""
        if makes_step(hypers):
            cache = self._own_weights["momentum_cache"]
            cache.check_writable()
            stored = cache.storage
            momentum = self._momentum(cache.dtype.type(hypers["beta_1"]), int(self.iterations.storage) + 1)
            stored[()] = stored[()] * momentum
        super().advance(hypers, updated)

    def _momentum(self, beta_1: Any, step: int) -> Any:
        scalar = type(beta_1)
        exponent = scalar(self._initial_decay) * scalar(step)
        fading = scalar(power(through_float32(DECAY_BASE), float(exponent)))
        return beta_1 * (scalar(1) - scalar(0.5) * fading)

    def _decayed(self, learning_rate: float, iterations: int) -> float:  # noqa: ARG002 - ``decay`` is another one here
        return learning_rate

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, ``schedule_decay`` as ``decay``."""
        return {
            **super().get_config(),
            "learning_rate": self._serialize_hyperparameter("learning_rate"),
            "decay": self._initial_decay,
            "beta_1": self._serialize_hyperparameter("beta_1"),
            "beta_2": self._serialize_hyperparameter("beta_2"),
            "epsilon": self.epsilon,
        }
