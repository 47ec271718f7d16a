"""FTRL with the Keras face."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from distopt.optimizers import rules
from distopt.optimizers.hypers import through_float32
from distopt.optimizers.keras_legacy import Optimizer
from distopt.optimizers.rule import Rule
from distopt.variable import Variable

ROOT_POWER = -0.5


class Ftrl(Optimizer):
    """Follow the regularized leader: the minimizer of all linearized losses so far, with L1 and L2 penalties.

    The rate of an element is ``learning_rate * accumulator ** learning_rate_power``, where the accumulator starts with
    ``initial_accumulator_value`` and sums squared gradients. ``l2_shrinkage_regularization_strength`` adds a penalty on
    magnitude to the gradient, ``beta`` a part to the L2 penalty that falls with the rate. A row-sparse gradient touches
    its own rows only. The argument ``lr`` is taken, but ignored, as in the reference.

    Raises: ValueError for a positive ``learning_rate_power``, a negative ``initial_accumulator_value`` or penalty, and
        as :class:`Optimizer`.

    Source: McMahan et al. 2013; tf_keras ``legacy.Ftrl``.
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        learning_rate_power: Any = -0.5,
        initial_accumulator_value: float = 0.1,
        l1_regularization_strength: Any = 0.0,
        l2_regularization_strength: Any = 0.0,
        name: str | None = "Ftrl",
        l2_shrinkage_regularization_strength: float = 0.0,
        beta: Any = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(name, **kwargs)
        if learning_rate_power > 0:
            raise ValueError(f"learning_rate_power must not be positive, but is {learning_rate_power}")
        for argument, value in (
            ("initial_accumulator_value", initial_accumulator_value),
            ("l1_regularization_strength", l1_regularization_strength),
            ("l2_regularization_strength", l2_regularization_strength),
            ("l2_shrinkage_regularization_strength", l2_shrinkage_regularization_strength),
        ):
            if value < 0:
                raise ValueError(f"{argument} must not be negative, but is {value}")
        self._takes_roots = isinstance(learning_rate_power, float) and learning_rate_power == ROOT_POWER
        self._set_hyper("learning_rate", learning_rate)
        self._set_hyper("decay", self._initial_decay)
        self._set_hyper("learning_rate_power", learning_rate_power)
        self._set_hyper("l1_regularization_strength", l1_regularization_strength)
        self._set_hyper("l2_regularization_strength", l2_regularization_strength)
        self._set_hyper("beta", beta)
        self._initial_accumulator_value = initial_accumulator_value
        self._l2_shrinkage_regularization_strength = l2_shrinkage_regularization_strength

    @property
    def rule(self) -> Rule:
        """The update rule."""
        return rules.FTRL if self._takes_roots else rules.FTRL_POWER

    def _set_hyper(self, name: str, value: Any) -> None:
        super()._set_hyper(name, value)
        if name == "learning_rate_power" and self._takes_roots and value != ROOT_POWER:
            self._takes_roots = False
            self.forget_bindings()

    def initial_slot(self, name: str) -> Any:
        """Return ``initial_accumulator_value``, or zeros for ``linear``."""
        return self._initial_accumulator_value if name == "accumulator" else "zeros"

    def _create_slots(self, var_list: Sequence[Variable]) -> None:
        for variable in var_list:
            super()._create_slots([variable])

    def scalars(self, hypers: Mapping[str, float], dtype: np.dtype[Any]) -> tuple[Any, ...]:
        """Return the rule's scalars; ``beta`` goes into the L2 penalty at this step's rate.

        Raises: ValueError if the variable of ``learning_rate_power`` was given another value than -0.5 behind our back.
        """
        two, zero = dtype.type(2), dtype.type(0)
        learning_rate, power, l1, l2, beta = (
            dtype.type(hypers[name])
            for name in (
                "learning_rate",
                "learning_rate_power",
                "l1_regularization_strength",
                "l2_regularization_strength",
                "beta",
            )
        )
        if self._takes_roots and power != ROOT_POWER:
            raise ValueError(
                f"learning_rate_power of {self._name} was {ROOT_POWER} when its update rule was chosen and is {power} "
                "now; assign to optimizer.learning_rate_power, in every process, instead of to the variable behind it"
            )
        with np.errstate(all="ignore"):
            twice_l2 = two * (l2 + beta / (two * learning_rate))
        shrinkage = dtype.type(through_float32(self._l2_shrinkage_regularization_strength))
        own = (l1, twice_l2, two * shrinkage, zero)
        return (learning_rate, *own) if self._takes_roots else (learning_rate, -power, *own)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {
            **super().get_config(),
            "learning_rate": self._serialize_hyperparameter("learning_rate"),
            "decay": self._initial_decay,
            "initial_accumulator_value": self._initial_accumulator_value,
            "learning_rate_power": self._serialize_hyperparameter("learning_rate_power"),
            "l1_regularization_strength": self._serialize_hyperparameter("l1_regularization_strength"),
            "l2_regularization_strength": self._serialize_hyperparameter("l2_regularization_strength"),
            "beta": self._serialize_hyperparameter("beta"),
            "l2_shrinkage_regularization_strength": self._l2_shrinkage_regularization_strength,
        }
