"""The exponential moving average of a variable."""

from __future__ import annotations

from typing import Any

from distopt.optimizers.rule import ALL_ROWS, Rule


def moving_average_step(average: Any, variable: Any, momentum: Any, one_minus_momentum: Any) -> Any:
    """Return ``average`` after one more value of ``variable``.

        a' = momentum * a + (1 - momentum) * w

    Shapes: average and variable alike. All have the variable's dtype; inputs are not written to.
    Units: with ``momentum`` 0, as at the first step, the average becomes the variable.
    Source: Polyak and Juditsky 1992; Keras 3, ``use_ema``.

    >>> moving_average_step(4.0, 2.0, 0.5, 0.5)
    3.0
    """
    return momentum * average + one_minus_momentum * variable


MOVING_AVERAGE = Rule(
    name="moving_average",
    step=moving_average_step,
    slots=(),
    scalars=("momentum", "one_minus_momentum"),
    sparse=ALL_ROWS,
)
