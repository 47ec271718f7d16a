"""Adam with the TensorFlow 1 face."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from distopt.optimizers import rules
from distopt.optimizers.rule import Rule
from distopt.optimizers.v1.optimizer import Optimizer
from distopt.variable import Variable

_POWERS = {"beta1": "beta1_power", "beta2": "beta2_power"}


class AdamOptimizer(Optimizer):
    """Adam; ``epsilon`` is added to the root of the uncorrected second moment ("epsilon hat" of the paper).

    The bias is corrected with the variables ``beta1_power`` and ``beta2_power``, float32, which every
    ``apply_gradients`` multiplies by the betas once, whatever variables it is for: two calls a step advance them twice.
    A row-sparse gradient moves every row.

    Source: Kingma and Ba 2015, section 2; v1 ``AdamOptimizer``.
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta1: Any = 0.9,
        beta2: Any = 0.999,
        epsilon: Any = 1e-8,
        use_locking: bool = False,
        name: str = "Adam",
        use_own_namescope_for_non_slot_vars: bool = False,
    ) -> None:
        super().__init__(use_locking, name, use_own_namescope_for_non_slot_vars)
        for hyper, value in (("learning_rate", learning_rate), ("beta1", beta1), ("beta2", beta2)):
            self._set_hyper(hyper, value)
        self._set_hyper("epsilon", epsilon)

    @property
    def rule(self) -> Rule:
        """The update rule."""
        return rules.ADAM

    def _create_slots(self, var_list: Sequence[Variable]) -> None:
        first = min(var_list, key=lambda variable: variable.name)
        for beta, power in _POWERS.items():
            if power not in self._own_weights:
                self._create_non_slot_variable(_initial_power(self._hypers.raw(beta)), power, first)
        super()._create_slots(var_list)

    def _get_beta_accumulators(self) -> tuple[Variable | None, Variable | None]:
        """Return the variables ``beta1_power`` and ``beta2_power``."""
        return self._get_non_slot_variable("beta1_power"), self._get_non_slot_variable("beta2_power")

    def step_hypers(self) -> dict[str, float]:
        """Return the hypers of the next step, and with them the powers of the betas: they travel to the owners."""
        hypers = super().step_hypers()
        # Hypers that were held have the powers already, and they are those of the same step.
        return {**hypers, **{power: float(self._own_weights[power].storage) for power in _POWERS.values()}}

    def scalars(self, hypers: Mapping[str, float], dtype: np.dtype[Any]) -> tuple[Any, ...]:
        """Return the rule's scalars; ``alpha`` is the rate with the bias correction of this step."""
        one = dtype.type(1)
        rate, beta1, beta2, epsilon, power1, power2 = (
            dtype.type(hypers[name])
            for name in ("learning_rate", "beta1", "beta2", "epsilon", "beta1_power", "beta2_power")
        )
        with np.errstate(all="ignore"):
            alpha = rate * np.sqrt(one - power2) / (one - power1)
        return alpha, beta1, beta2, one - beta1, one - beta2, epsilon

    def advance(self, hypers: Mapping[str, float], updated: Iterable[Variable] | None = None) -> None:
        """Count one step, and multiply the powers by the betas that it was made with."""
        for beta, power in _POWERS.items():
            variable = self._own_weights[power]
            variable.write_all("assign", variable.storage * variable.dtype.type(hypers[beta]))
        super().advance(hypers, updated)


def _initial_power(beta: Any) -> Any:
    """Return the first power: the beta itself, as float32, whatever it will be later."""
    return np.float32(beta() if callable(beta) else beta) if not hasattr(beta, "graph") else beta
