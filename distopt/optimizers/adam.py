"""Adam with the Keras face."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from distopt.optimizers import rules
from distopt.optimizers.hypers import BACKEND_EPSILON, bias_correction
from distopt.optimizers.keras_legacy import Optimizer
from distopt.optimizers.rule import Rule


class Adam(Optimizer):
    """Adam, with ``amsgrad`` if asked for.

    ``epsilon`` is added to the root of the uncorrected second moment; 0 and ``None`` mean 1e-7. A row-sparse gradient
    moves every row.

    Source: Kingma and Ba 2015; Reddi et al. 2018; tf_keras ``legacy.Adam``.
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: Any = 0.9,
        beta_2: Any = 0.999,
        epsilon: float | None = 1e-7,
        amsgrad: bool = False,
        name: str | None = "Adam",
        **kwargs: Any,
    ) -> None:
        super().__init__(name, **kwargs)
        self._set_hyper("learning_rate", kwargs.get("lr", learning_rate))
        self._set_hyper("decay", self._initial_decay)
        self._set_hyper("beta_1", beta_1)
        self._set_hyper("beta_2", beta_2)
        self.epsilon = epsilon or BACKEND_EPSILON
        self.amsgrad = amsgrad

    @property
    def rule(self) -> Rule:
        """The update rule."""
        return rules.ADAM_AMSGRAD if self.amsgrad else rules.ADAM

    def scalars(self, hypers: Mapping[str, float], dtype: np.dtype[Any]) -> tuple[Any, ...]:
        """Return the rule's scalars; ``alpha`` holds the bias correction of the step that is being made."""
        constants = _constants(hypers["beta_1"], hypers["beta_2"], float(self.epsilon), dtype)
        correction = bias_correction(constants[0], constants[1], self.iterations.storage.item() + 1)
        with np.errstate(all="ignore"):
            return dtype.type(hypers["learning_rate"]) * correction, *constants

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Assign to ``weights``; a list with the maxima of ``amsgrad`` may be given to an Adam without them."""
        own = (len(self.weights) - 1) // 2
        super().set_weights(weights[: len(self.weights)] if len(weights) == 3 * own + 1 else weights)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {
            **super().get_config(),
            "learning_rate": self._serialize_hyperparameter("learning_rate"),
            "decay": self._initial_decay,
            "beta_1": self._serialize_hyperparameter("beta_1"),
            "beta_2": self._serialize_hyperparameter("beta_2"),
            "epsilon": self.epsilon,
            "amsgrad": self.amsgrad,
        }


@functools.lru_cache(maxsize=64)
def _constants(beta_1: float, beta_2: float, epsilon: float, dtype: np.dtype[Any]) -> tuple[Any, ...]:
    """Return the betas, their complements and epsilon in ``dtype``."""
    scalar = dtype.type
    one, first, second = scalar(1), scalar(beta_1), scalar(beta_2)
    with np.errstate(all="ignore"):
        return first, second, one - first, one - second, scalar(epsilon)
