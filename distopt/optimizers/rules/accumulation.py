"""Gradient accumulation: the sum of the gradients so far, and the mean that a step is made with."""

from __future__ import annotations

from typing import Any

from distopt.optimizers.rule import ALL_ROWS, Rule


def accumulate_step(accumulator: Any, gradient: Any) -> Any:
    """Return ``accumulator + gradient``.

    Shapes: alike; both have the variable's dtype and are not written to.
    Source: Keras 3, ``gradient_accumulation_steps``.

    >>> accumulate_step(1.0, 2.0)
    3.0
    """
    return accumulator + gradient


def accumulated_mean_step(accumulator: Any, gradient: Any, steps: Any) -> Any:
    """Return the mean of ``steps`` gradients, of which ``gradient`` is the last and the others are summed up.

        (accumulator + g) / steps

    Shapes: accumulator and gradient alike. All have the variable's dtype; inputs are not written to.
    Source: Keras 3, ``gradient_accumulation_steps``.

    >>> accumulated_mean_step(3.0, 6.0, 3.0)
    3.0
    """
    return (accumulator + gradient) / steps


ACCUMULATE = Rule(name="accumulate", step=accumulate_step, slots=(), scalars=(), sparse=ALL_ROWS)
ACCUMULATED_MEAN = Rule(
    name="accumulated_mean", step=accumulated_mean_step, slots=(), scalars=("steps",), sparse=ALL_ROWS
)
