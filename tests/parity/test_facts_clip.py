"""Recorded facts about clipping, and about the constructor's errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import distopt as tf
from tests.parity.facts import fact, outcome

SGD = tf.keras.optimizers.SGD


def clipped(*gradients: Sequence[float], **options: float) -> list[list[float]]:
    """Return what is left of the gradients: the negative of what SGD(1) adds to zeros."""
    variables = [tf.Variable(np.zeros(len(gradient), np.float32)) for gradient in gradients]
    tensors = [tf.Tensor(np.array(gradient, np.float32)) for gradient in gradients]
    SGD(1.0, **options).apply_gradients(zip(tensors, variables, strict=True))
    return [(-variable.numpy()).tolist() for variable in variables]


def close(found: Any, expected: Any) -> None:
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.array(one, float), np.array(other, float), rtol=1e-6)


def test_values_are_clipped_before_norms() -> None:
    close(clipped([3, 4], clipvalue=2.0, clipnorm=1.0), [fact("F052")["result"]])


def test_values_are_clipped_before_the_global_norm() -> None:
    close(clipped([3, 4], [1], clipvalue=2.0, global_clipnorm=1.0), fact("F053")["result"])


def test_each_variable_has_a_norm_of_its_own() -> None:
    close(clipped([3, 4], [0.3, 0.4], clipnorm=1.0), fact("F054")["result"])


@pytest.mark.filterwarnings("error")
def test_clips_of_zero_and_of_what_is_not_finite() -> None:
    found = [
        clipped([3, 4], clipnorm=0.0),
        clipped([0, 0], clipnorm=0.0),
        clipped([0, 0], global_clipnorm=1.0),
        clipped([np.inf, 1], global_clipnorm=1.0),
        clipped([np.inf, 1], clipnorm=1.0),
        clipped([np.nan, np.inf], clipvalue=1.0),
    ]
    close([only for (only,) in found], fact("F055")["result"])


@pytest.mark.filterwarnings("ignore:the argument `lr`:DeprecationWarning")
def test_what_the_constructor_refuses() -> None:
    def identity(pairs: Any) -> Any:
        return pairs

    arguments: list[dict[str, Any]] = [
        {"clipnorm": 1.0, "global_clipnorm": 1.0},
        {"clipnorm": 1.0, "clipvalue": 1.0},
        {"clipvalue": 1.0, "global_clipnorm": 1.0},
        {"clipnorm": -1.0},
        {"no_such_argument": 1.0},
        {"lr": -1.0},
        {"learning_rate": -1.0},
        {"decay": -1.0},
        {"gradient_transformers": [identity], "clipnorm": 1.0},
    ]
    assert [outcome(lambda given=given: SGD(**given)) for given in arguments] == fact("F056")["result"]  # type: ignore[misc]
