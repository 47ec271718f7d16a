"""Weight decay, decoupled from the gradient."""

from __future__ import annotations

from typing import Any

from distopt.optimizers.rule import ALL_ROWS, Rule


def weight_decay_step(variable: Any, gradient: Any, weight_decay: Any, learning_rate: Any) -> Any:  # noqa: ARG001
    """Return ``variable`` after one step of decoupled weight decay; the gradient has no part in it.

        w' = w - w * weight_decay * lr

    Shapes: variable and gradient alike. All have the variable's dtype; inputs are not written to.
    Units: ``weight_decay`` is a rate per unit of the learning rate.
    Source: Loshchilov and Hutter 2019, algorithm 2; Keras 3, where the decay comes before the update.

    >>> weight_decay_step(2.0, 9.0, 0.5, 0.5)
    1.5
    """
    return variable - variable * weight_decay * learning_rate


WEIGHT_DECAY = Rule(
    name="weight_decay",
    step=weight_decay_step,
    slots=(),
    scalars=("weight_decay", "learning_rate"),
    sparse=ALL_ROWS,
)
