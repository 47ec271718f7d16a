"""Options of aggregators and compressions, and what an optimizer takes for one, are refused where they are given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import distopt as tf
from distopt.aggregation import Int8, Krum, LocalSteps, Mean, Median, MultiKrum, PowerSGD, Sum, TopK, TrimmedMean


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: TrimmedMean(trim=1.5), "trim"),  # type: ignore[arg-type]  # the mistake
        (lambda: Krum(byzantine="1"), "byzantine"),  # type: ignore[arg-type]
        (lambda: MultiKrum(selected=2.0), "selected"),  # type: ignore[arg-type]
        (lambda: Int8(block=None), "block"),  # type: ignore[arg-type]
        (lambda: PowerSGD(rank=0.5), "rank"),  # type: ignore[arg-type]
        (lambda: LocalSteps(Mean(), every=2.5), "every"),  # type: ignore[arg-type]
    ],
)
def test_option_that_is_no_whole_number_is_refused_when_it_is_given(make: Callable[[], Any], name: str) -> None:
    with pytest.raises(TypeError, match=f"^{name} must be a whole number, but is"):
        make()


def test_whole_numbers_of_numpy_are_taken() -> None:
    assert TrimmedMean(trim=np.int64(2)).settings == "TrimmedMean(trim=2)"  # type: ignore[arg-type]  # not an int


@pytest.mark.parametrize("wrong", [None, "int8", TopK, Mean()])
def test_compression_that_is_none_is_refused_when_it_is_given(wrong: Any) -> None:
    with pytest.raises(TypeError, match="compressed by a compression such as"):
        Sum().compressed(wrong)


@pytest.mark.parametrize("wrong", ["mean", Median, TopK(0.1), 3])
def test_optimizer_takes_no_aggregator_that_is_none(wrong: Any) -> None:
    with pytest.raises(TypeError, match="gradient_aggregator must be an aggregator"):
        tf.keras.optimizers.SGD(0.1, gradient_aggregator=wrong)


def test_local_steps_of_what_is_no_aggregator_are_refused() -> None:
    with pytest.raises(TypeError, match="local steps need an aggregator"):
        LocalSteps("mean", every=2)  # type: ignore[arg-type]  # the mistake
