"""Adafactor with the Keras face."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from distopt.optimizers import rules
from distopt.optimizers.hypers import power
from distopt.optimizers.keras3 import Keras3Optimizer
from distopt.optimizers.rule import Rule
from distopt.variable import Variable


class Adafactor(Keras3Optimizer):
    """Steps relative to the size of the variable, second moments from row and column means.

    The learning rate is at most ``1 / sqrt(T)`` in step T (from 1), whatever ``relative_step`` says: it has no effect
    in the reference either. The slot ``v`` of a matrix is what its slots ``r`` and ``c`` make, kept as the reference
    keeps it. Further arguments: see :class:`Keras3Optimizer`.

    Source: Shazeer and Stern 2018; Keras 3 ``Adafactor``.

    >>> import distopt as tf
    >>> variable = tf.Variable([[1.0, 1.0]])
    >>> count = Adafactor(0.5).apply_gradients([(np.array([[2.0, 2.0]], np.float32), variable)])
    >>> variable.numpy()
    array([[0.5, 0.5]], dtype=float32)
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_2_decay: float = -0.8,
        epsilon_1: float = 1e-30,
        epsilon_2: float = 1e-3,
        clip_threshold: float = 1.0,
        relative_step: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate, **kwargs)
        self.beta_2_decay = beta_2_decay
        self.epsilon_1 = epsilon_1
        self.epsilon_2 = epsilon_2
        self.clip_threshold = clip_threshold
        self.relative_step = relative_step

    @property
    def rule(self) -> Rule:
        """The update rule of variables of two or more dimensions."""
        return rules.ADAFACTOR_FACTORED

    def rule_of(self, variable: Variable) -> Rule:
        """Return the update rule of one variable."""
        return rules.ADAFACTOR_FACTORED if len(variable.shape) > 1 else rules.ADAFACTOR

    def scalars(self, hypers: Mapping[str, float], dtype: np.dtype[Any]) -> tuple[Any, ...]:
        """Return the scalars of both rules."""
        step = self.steps_taken() + 1
        one = dtype.type(1)
        with np.errstate(all="ignore"):
            rho = np.minimum(dtype.type(hypers["learning_rate"]), one / np.sqrt(dtype.type(step)))
            beta = one - dtype.type(power(float(step), self.beta_2_decay))
            others = (dtype.type(x) for x in (self.epsilon_1, self.epsilon_2, self.clip_threshold))
            return rho, beta, one - beta, *others, one

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, but for functions."""
        names = ("beta_2_decay", "epsilon_1", "epsilon_2", "clip_threshold", "relative_step")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
