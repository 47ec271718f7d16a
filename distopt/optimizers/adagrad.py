"""Adagrad with the Keras face."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from distopt.optimizers import rules
from distopt.optimizers.hypers import BACKEND_EPSILON
from distopt.optimizers.keras_legacy import Optimizer
from distopt.optimizers.rule import Rule
from distopt.optimizers.weights import with_iterations


class Adagrad(Optimizer):
    """Gradient descent at a rate that falls, for each element, as the root of its summed squared gradients.

    ``initial_accumulator_value`` is what the sums start with. ``epsilon`` is added to the root; 0 and ``None`` mean
    1e-7. A row-sparse gradient touches its own rows only.

    Raises: ValueError for a negative ``initial_accumulator_value``, and as :class:`Optimizer`.

    Source: Duchi, Hazan and Singer 2011; tf_keras ``legacy.Adagrad``.
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        initial_accumulator_value: float = 0.1,
        epsilon: float | None = 1e-7,
        name: str | None = "Adagrad",
        **kwargs: Any,
    ) -> None:
        if initial_accumulator_value < 0:
            raise ValueError(f"initial_accumulator_value must not be negative, but is {initial_accumulator_value}")
        super().__init__(name, **kwargs)
        self._set_hyper("learning_rate", kwargs.get("lr", learning_rate))
        self._set_hyper("decay", self._initial_decay)
        self._initial_accumulator_value = initial_accumulator_value
        self.epsilon = epsilon or BACKEND_EPSILON

    @property
    def rule(self) -> Rule:
        """The update rule."""
        return rules.ADAGRAD_KERAS

    def initial_slot(self, name: str) -> Any:  # noqa: ARG002 - there is one
        """Return ``initial_accumulator_value``."""
        return self._initial_accumulator_value

    def scalars(self, hypers: Mapping[str, float], dtype: np.dtype[Any]) -> tuple[Any, ...]:
        """Return the rule's scalars."""
        return dtype.type(hypers["learning_rate"]), dtype.type(self.epsilon)

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Assign to ``weights``; a list without the count of steps sets it to 0."""
        super().set_weights(with_iterations(self.weights, weights))

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {
            **super().get_config(),
            "learning_rate": self._serialize_hyperparameter("learning_rate"),
            "decay": self._initial_decay,
            "initial_accumulator_value": self._initial_accumulator_value,
            "epsilon": self.epsilon,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> Self:  # noqa: ARG003
        """Return the optimizer that ``config`` describes; as in the reference, a schedule stays a dictionary."""
        config.setdefault("initial_accumulator_value", 0.1)
        if "lr" in config:
            config["learning_rate"] = config.pop("lr")
        return cls(**config)
