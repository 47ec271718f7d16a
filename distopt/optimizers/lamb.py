"""LAMB with the Keras face."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from distopt.optimizers import rules
from distopt.optimizers.hypers import power, through_float32
from distopt.optimizers.keras3 import Keras3Optimizer
from distopt.optimizers.rule import Rule


class Lamb(Keras3Optimizer):
    """Adam's direction, scaled for each variable to the variable's own norm times the learning rate.

    Further arguments: see :class:`Keras3Optimizer`.

    Source: You et al. 2020; Keras 3 ``Lamb``.

    >>> import distopt as tf
    >>> variable = tf.Variable([3.0, 4.0])
    >>> count = Lamb(0.5).apply_gradients([(np.array([1.0, 0.0], np.float32), variable)])
    >>> variable.numpy().round(4)
    array([0.5, 4. ], dtype=float32)
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate, **kwargs)
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon

    @property
    def rule(self) -> Rule:
        """The update rule: its first pass, and in it the second."""
        return rules.LAMB

    def scalars_of(self, rule: Rule, hypers: Mapping[str, float], dtype: np.dtype[Any]) -> tuple[Any, ...]:
        """Return the scalars of the first pass, or of the second."""
        if rule is not self.rule:
            return (dtype.type(hypers["learning_rate"]),)
        one, step = dtype.type(1), self.steps_taken() + 1
        betas = self.beta_1, self.beta_2
        with np.errstate(all="ignore"):
            corrections = [one - dtype.type(power(float(dtype.type(through_float32(b))), step)) for b in betas]
        return (*(dtype.type(1 - beta) for beta in betas), *corrections, dtype.type(self.epsilon))

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, but for functions."""
        return {**super().get_config(), "beta_1": self.beta_1, "beta_2": self.beta_2, "epsilon": self.epsilon}
