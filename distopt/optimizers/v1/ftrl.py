"""FTRL with the TensorFlow 1 face."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from distopt.optimizers import rules
from distopt.optimizers.rule import Rule
from distopt.optimizers.v1.optimizer import Optimizer
from distopt.tensor import Operand
from distopt.variable import Variable

ROOT_POWER = -0.5
SMALLEST_RATE = np.float32(1e-36)
"""What the rate is taken for where ``beta`` is divided by it and it is smaller."""

_FTRL = dataclasses.replace(rules.FTRL, name="ftrl_v1", slots=("accum", "linear"))
_FTRL_POWER = dataclasses.replace(rules.FTRL_POWER, name="ftrl_power_v1", slots=("accum", "linear"))


class FtrlOptimizer(Optimizer):
    """Follow the regularized leader: the minimizer of all linearized losses so far, with L1 and L2 penalties.

    The accumulated squares start at ``initial_accumulator_value``; ``beta`` (None: 0) adds a part to the L2 penalty
    that falls with the rate; ``l2_shrinkage_regularization_strength`` is a penalty on magnitude. ``accum_name`` and
    ``linear_name`` stand in the names of the slot variables. A row-sparse gradient touches its own rows only.

    Raises: ValueError for a positive ``learning_rate_power``, and a negative initial value or penalty.

    Source: McMahan et al. 2013; v1 ``FtrlOptimizer``.
    """

    def __init__(
        self,
        learning_rate: Any,
        learning_rate_power: Any = -0.5,
        initial_accumulator_value: float = 0.1,
        l1_regularization_strength: Any = 0.0,
        l2_regularization_strength: Any = 0.0,
        use_locking: bool = False,
        name: str = "Ftrl",
        accum_name: str | None = None,
        linear_name: str | None = None,
        l2_shrinkage_regularization_strength: Any = 0.0,
        beta: Any = None,
    ) -> None:
        for argument, value in (
            ("initial_accumulator_value", initial_accumulator_value),
            ("l1_regularization_strength", l1_regularization_strength),
            ("l2_regularization_strength", l2_regularization_strength),
            ("l2_shrinkage_regularization_strength", l2_shrinkage_regularization_strength),
        ):
            if not isinstance(value, Operand) and value < 0.0:
                raise ValueError(f"{argument} must not be negative, but is {value}")
        is_number = not isinstance(learning_rate_power, Operand)
        if is_number and learning_rate_power > 0.0:
            raise ValueError(f"learning_rate_power must not be positive, but is {learning_rate_power}")
        super().__init__(use_locking, name)
        self._takes_roots = is_number and learning_rate_power == ROOT_POWER
        self._set_hyper("learning_rate", learning_rate)
        self._set_hyper("power", learning_rate_power)
        self._set_hyper("l1", l1_regularization_strength)
        self._set_hyper("l2", l2_regularization_strength)
        self._set_hyper("shrinkage", l2_shrinkage_regularization_strength)
        self._set_hyper("beta", 0.0 if beta is None else beta)
        self._initial_accumulator_value = initial_accumulator_value
        self._slot_names = {"accum": accum_name or self._name, "linear": linear_name or self._name}

    @property
    def rule(self) -> Rule:
        """The update rule."""
        return _FTRL if self._takes_roots else _FTRL_POWER

    def initial_slot(self, name: str) -> Any:
        """Return ``initial_accumulator_value``, or zeros for ``linear``."""
        return self._initial_accumulator_value if name == "accum" else "zeros"

    def _get_or_make_slot(self, var: Variable, val: Any, slot_name: str, op_name: str) -> Variable:
        return super()._get_or_make_slot(var, val, slot_name, self._slot_names.get(slot_name, op_name))

    def scalars(self, hypers: Mapping[str, float], dtype: np.dtype[Any]) -> tuple[Any, ...]:
        """Return the rule's scalars; ``beta`` goes into the L2 penalty at this step's rate, in float32."""
        single, two = np.float32, dtype.type(2)
        rate = max(single(hypers["learning_rate"]), SMALLEST_RATE)
        l2 = single(hypers["l2"]) + single(hypers["beta"]) / (single(2) * rate)
        own = (dtype.type(hypers["l1"]), two * dtype.type(l2), two * dtype.type(hypers["shrinkage"]), dtype.type(0))
        first = dtype.type(hypers["learning_rate"])
        return (first, *own) if self._takes_roots else (first, -dtype.type(hypers["power"]), *own)
