"""The exponential moving average, TensorFlow 1 convention: the difference is formed first."""

from __future__ import annotations

from typing import Any


def moving_average_step_v1(average: Any, value: Any, one_minus_decay: Any) -> Any:
    """Return ``average`` after one more ``value``, TensorFlow 1 convention.

        a' = a - (1 - decay) (a - v)

    Shapes: the first two alike. All have the average's dtype; inputs are not written to.
    Source: Polyak and Juditsky 1992; v1 ``ExponentialMovingAverage``. ``moving_average_step`` is the same but for
        rounding.

    >>> moving_average_step_v1(1.0, 3.0, 0.25)
    1.5
    """
    return average - one_minus_decay * (average - value)
