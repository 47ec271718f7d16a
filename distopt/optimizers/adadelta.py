"""Adadelta with the Keras face."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from distopt.optimizers import rules
from distopt.optimizers.hypers import BACKEND_EPSILON
from distopt.optimizers.keras_legacy import Optimizer
from distopt.optimizers.rule import Rule
from distopt.optimizers.weights import with_iterations


class Adadelta(Optimizer):
    """Steps as large as past steps were, relative to past gradients; ``learning_rate`` 1 is the paper's form.

    ``epsilon`` is added inside both roots; 0 and ``None`` mean 1e-7. A row-sparse gradient touches its own rows only.

    Source: Zeiler 2012; tf_keras ``legacy.Adadelta``.
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        rho: Any = 0.95,
        epsilon: float | None = 1e-7,
        name: str | None = "Adadelta",
        **kwargs: Any,
    ) -> None:
        super().__init__(name, **kwargs)
        self._set_hyper("learning_rate", kwargs.get("lr", learning_rate))
        self._set_hyper("decay", self._initial_decay)
        self._set_hyper("rho", rho)
        self.epsilon = epsilon or BACKEND_EPSILON

    @property
    def rule(self) -> Rule:
        """The update rule."""
        return rules.ADADELTA

    def scalars(self, hypers: Mapping[str, float], dtype: np.dtype[Any]) -> tuple[Any, ...]:
        """Return the rule's scalars."""
        rho = dtype.type(hypers["rho"])
        return dtype.type(hypers["learning_rate"]), rho, dtype.type(1) - rho, dtype.type(self.epsilon)

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Assign to ``weights``; a list without the count of steps sets it to 0."""
        super().set_weights(with_iterations(self.weights, weights))

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {
            **super().get_config(),
            "learning_rate": self._serialize_hyperparameter("learning_rate"),
            "decay": self._initial_decay,
            "rho": self._serialize_hyperparameter("rho"),
            "epsilon": self.epsilon,
        }
