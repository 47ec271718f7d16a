"""RMSProp with the TensorFlow 1 face."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from distopt.optimizers import rules
from distopt.optimizers.rule import Rule
from distopt.optimizers.v1.optimizer import Optimizer


class RMSPropOptimizer(Optimizer):
    """Gradients divided by the root of a moving mean of their squares, then momentum.

    The mean (slot ``rms``) starts at one, ``epsilon`` is added inside of the root, and the slot ``momentum`` exists
    whatever the momentum is. ``centered`` subtracts the square of the mean gradient (slot ``mg``), which makes the mean
    of squares a variance. A row-sparse gradient touches its own rows only.

    Source: Tieleman and Hinton 2012; Graves 2013; v1 ``RMSPropOptimizer``.
    """

    def __init__(
        self,
        learning_rate: Any,
        decay: Any = 0.9,
        momentum: Any = 0.0,
        epsilon: Any = 1e-10,
        use_locking: bool = False,
        centered: bool = False,
        name: str = "RMSProp",
    ) -> None:
        super().__init__(use_locking, name)
        # Called rho, not decay: hypers named decay are Keras's division of the rate.
        for hyper, value in (("learning_rate", learning_rate), ("rho", decay), ("momentum", momentum)):
            self._set_hyper(hyper, value)
        self._set_hyper("epsilon", epsilon)
        self._centered = centered

    @property
    def rule(self) -> Rule:
        """The update rule."""
        return rules.RMSPROP_MOMENTUM_CENTERED if self._centered else rules.RMSPROP_MOMENTUM

    def initial_slot(self, name: str) -> Any:
        """Return ones for ``rms``, zeros for the others."""
        return "ones" if name == "rms" else "zeros"

    def _slot_order(self) -> Sequence[str]:
        return ("rms", "mg", "momentum") if self._centered else ("rms", "momentum")

    def scalars(self, hypers: Mapping[str, float], dtype: np.dtype[Any]) -> tuple[Any, ...]:
        """Return the rule's scalars."""
        rate, rho, momentum, epsilon = (
            dtype.type(hypers[name]) for name in ("learning_rate", "rho", "momentum", "epsilon")
        )
        return rate, dtype.type(1) - rho, momentum, epsilon
