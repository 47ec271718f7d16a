from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from distopt.optimizers import SGD
from distopt.optimizers.pipeline import GradientPath, check_gradients, filter_empty_gradients
from distopt.variable import Variable


def test_pairs_that_are_none_or_not_pairs_are_refused() -> None:
    with pytest.raises(TypeError):
        filter_empty_gradients(None)  # type: ignore[arg-type]  # the misuse under test
    with pytest.raises(ValueError, match="unpack"):
        filter_empty_gradients([(1, 2, 3)])  # type: ignore[list-item]  # the misuse under test


def test_the_default_path_runs_at_owners() -> None:
    path = GradientPath(SGD(clipnorm=1.0), aggregate=True)
    assert path.runs_at_owners
    assert path.whole_gradient_hooks() == ()


def test_an_unaggregated_path_does_not_run_at_owners() -> None:
    assert not GradientPath(SGD(), aggregate=False).runs_at_owners


def unit_length(pairs: Any) -> Any:
    return pairs


def test_hooks_over_whole_gradients_are_named() -> None:
    class Noisy(SGD):
        def _transform_gradients(self, grads_and_vars: Any) -> Any:
            return grads_and_vars

    optimizer = Noisy(gradient_aggregator=unit_length, gradient_transformers=[unit_length])
    path = GradientPath(optimizer, aggregate=True)
    assert not path.runs_at_owners
    assert path.whole_gradient_hooks() == ("Noisy._transform_gradients", "unit_length", "unit_length")


def test_norm_and_global_norm_together_need_whole_gradients() -> None:
    optimizer = SGD(clipnorm=1.0)
    optimizer.global_clipnorm = 1.0
    assert GradientPath(optimizer, aggregate=True).whole_gradient_hooks() == ("clipnorm with global_clipnorm",)


def test_pairs_are_one_leaf() -> None:
    variable = Variable(1.0, name="w")
    pairs = check_gradients([(np.float32(1), variable)])
    assert not isinstance(pairs, list | tuple)
    assert len(pairs) == 1
    assert pairs[0][1] is variable
    assert repr(pairs) == "Pairs(w:0)"
