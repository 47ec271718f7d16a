"""Fixtures of the optimizer tests: both engines, and kernels kept apart from the user's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from distopt.optimizers import set_default_engine


@pytest.fixture(params=["numpy", "compiled"])
def engine_name(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test once on each engine."""
    set_default_engine(request.param)
    yield request.param
    set_default_engine("compiled")
