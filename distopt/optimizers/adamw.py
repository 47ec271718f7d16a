"""AdamW with the Keras face."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from distopt.optimizers import rules
from distopt.optimizers.keras3 import Keras3Optimizer
from distopt.optimizers.rule import Rule


class AdamW(Keras3Optimizer):
    """Adam with decoupled weight decay, with ``amsgrad`` if asked for.

    Further arguments: see :class:`Keras3Optimizer`.

    Raises: ValueError for ``weight_decay=None``, and as :class:`Keras3Optimizer`.

    Source: Loshchilov and Hutter 2019; Reddi et al. 2018; Keras 3 ``AdamW``.

    >>> import distopt as tf
    >>> variable = tf.Variable([1.0])
    >>> optimizer = AdamW(0.1, weight_decay=0.5)
    >>> count = optimizer.apply_gradients([(np.ones(1, np.float32), variable)])
    >>> variable.numpy().round(4)
    array([0.85], dtype=float32)
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        weight_decay: float = 0.004,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        amsgrad: bool = False,
        **kwargs: Any,
    ) -> None:
        if weight_decay is None:
            raise ValueError("AdamW needs a number as weight_decay; Adam has none")
        super().__init__(learning_rate, weight_decay=weight_decay, **kwargs)
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.amsgrad = amsgrad

    @property
    def rule(self) -> Rule:
        """The update rule, which the weight decay is added to."""
        return rules.ADAM_KERAS3_AMSGRAD if self.amsgrad else rules.ADAM_KERAS3

    def scalars(self, hypers: Mapping[str, float], dtype: np.dtype[Any]) -> tuple[Any, ...]:
        """Return the rule's scalars; ``alpha`` holds the bias correction of the step that is being made."""
        return self.adam_scalars(hypers["learning_rate"], (self.beta_1, self.beta_2), self.epsilon, dtype)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, but for functions."""
        return {
            **super().get_config(),
            "beta_1": self.beta_1,
            "beta_2": self.beta_2,
            "epsilon": self.epsilon,
            "amsgrad": self.amsgrad,
        }
