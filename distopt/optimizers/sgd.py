"""SGD with the Keras face."""

from __future__ import annotations

from typing import Any

from distopt.optimizers import rules
from distopt.optimizers.hypers import uses_momentum
from distopt.optimizers.keras_legacy import Optimizer
from distopt.optimizers.rule import Rule


class SGD(Optimizer):
    """Gradient descent, with ``momentum`` and ``nesterov`` momentum if asked for.

    The slot ``momentum`` exists only if ``momentum`` is not zero at construction; setting it later has no effect then.

    Raises: ValueError for a number ``momentum`` outside of 0..1, and as :class:`Optimizer`.

    Source: tf_keras ``legacy.SGD``.
    """

    def __init__(
        self,
        learning_rate: Any = 0.01,
        momentum: Any = 0.0,
        nesterov: bool = False,
        name: str | None = "SGD",
        **kwargs: Any,
    ) -> None:
        super().__init__(name, **kwargs)
        self._has_momentum = uses_momentum(momentum)
        self._set_hyper("learning_rate", kwargs.get("lr", learning_rate))
        self._set_hyper("decay", self._initial_decay)
        self._set_hyper("momentum", momentum)
        self.nesterov = nesterov

    @property
    def rule(self) -> Rule:
        """The update rule."""
        if not self._has_momentum:
            return rules.SGD
        return rules.NESTEROV_KERAS if self.nesterov else rules.MOMENTUM_KERAS

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {
            **super().get_config(),
            "learning_rate": self._serialize_hyperparameter("learning_rate"),
            "decay": self._initial_decay,
            "momentum": self._serialize_hyperparameter("momentum"),
            "nesterov": self.nesterov,
        }
