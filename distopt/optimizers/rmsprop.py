"""RMSprop with the Keras face."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from distopt.optimizers import rules
from distopt.optimizers.hypers import BACKEND_EPSILON, uses_momentum
from distopt.optimizers.keras_legacy import Optimizer
from distopt.optimizers.rule import Rule
from distopt.optimizers.weights import with_iterations


class RMSprop(Optimizer):
    """Gradient descent on gradients that are divided by the root of their running mean square.

    ``momentum``, if not zero at construction, accumulates steps; ``centered`` divides by the running variance instead.
    ``epsilon`` is added to the root, but inside of it with momentum; 0 and ``None`` mean 1e-7. With a row-sparse
    gradient only its own rows of the variable move; without momentum the means of all rows decay, with it those of the
    touched rows only.

    Raises: ValueError for a number ``momentum`` outside of 0..1, and as :class:`Optimizer`.

    Source: Tieleman and Hinton 2012, lecture 6.5; tf_keras ``legacy.RMSprop``.
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        rho: Any = 0.9,
        momentum: Any = 0.0,
        epsilon: float | None = 1e-7,
        centered: bool = False,
        name: str | None = "RMSprop",
        **kwargs: Any,
    ) -> None:
        super().__init__(name, **kwargs)
        self._has_momentum = uses_momentum(momentum)
        self._set_hyper("learning_rate", kwargs.get("lr", learning_rate))
        self._set_hyper("decay", self._initial_decay)
        self._set_hyper("rho", rho)
        self._set_hyper("momentum", momentum)
        self.epsilon = epsilon or BACKEND_EPSILON
        self.centered = centered

    @property
    def rule(self) -> Rule:
        """The update rule."""
        if self._has_momentum:
            return rules.RMSPROP_MOMENTUM_CENTERED if self.centered else rules.RMSPROP_MOMENTUM
        return rules.RMSPROP_CENTERED_KERAS if self.centered else rules.RMSPROP_KERAS

    def scalars(self, hypers: Mapping[str, float], dtype: np.dtype[Any]) -> tuple[Any, ...]:
        """Return the rule's scalars."""
        learning_rate, rho, momentum = (dtype.type(hypers[name]) for name in ("learning_rate", "rho", "momentum"))
        one_minus_rho, epsilon = dtype.type(1) - rho, dtype.type(self.epsilon)
        if self._has_momentum:
            return learning_rate, one_minus_rho, momentum, epsilon
        return learning_rate, rho, one_minus_rho, epsilon

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
            "momentum": self._serialize_hyperparameter("momentum"),
            "epsilon": self.epsilon,
            "centered": self.centered,
        }
