"""Lion with the Keras face."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from distopt.optimizers import rules
from distopt.optimizers.hypers import through_float32
from distopt.optimizers.keras3 import Keras3Optimizer
from distopt.optimizers.rule import Rule


class Lion(Keras3Optimizer):
    """Steps of one size in every element, in the direction of the sign of an interpolated momentum.

    Further arguments: see :class:`Keras3Optimizer`.

    Raises: ValueError for ``beta_1`` outside of 0..1 or zero, and as :class:`Keras3Optimizer`.

    Source: Chen et al. 2023; Keras 3 ``Lion``.

    >>> import distopt as tf
    >>> variable = tf.Variable([1.0, 1.0])
    >>> count = Lion(0.25).apply_gradients([(np.array([3.0, -1e-3], np.float32), variable)])
    >>> variable.numpy()
    array([0.75, 1.25], dtype=float32)
    """

    def __init__(self, learning_rate: Any = 0.001, beta_1: float = 0.9, beta_2: float = 0.99, **kwargs: Any) -> None:
        if not 0 < beta_1 <= 1:
            raise ValueError(f"beta_1 must be above 0 and at most 1, but is {beta_1}")
        super().__init__(learning_rate, **kwargs)
        self.beta_1 = beta_1
        self.beta_2 = beta_2

    @property
    def rule(self) -> Rule:
        """The update rule."""
        return rules.LION

    def scalars(self, hypers: Mapping[str, float], dtype: np.dtype[Any]) -> tuple[Any, ...]:
        """Return the rule's scalars; both betas are rounded through float32, as in the reference."""
        one = dtype.type(1)
        beta_1, beta_2 = (dtype.type(through_float32(beta)) for beta in (self.beta_1, self.beta_2))
        return dtype.type(hypers["learning_rate"]), beta_1, one - beta_1, beta_2, one - beta_2

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, but for functions."""
        return {**super().get_config(), "beta_1": self.beta_1, "beta_2": self.beta_2}
