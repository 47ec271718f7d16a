"""Fixtures of the unit tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from distopt import kernels


@pytest.fixture
def _restored_loops() -> Iterator[None]:
    before = kernels.loops_compiled
    yield
    kernels.use_compiled_loops(before)


@pytest.fixture(params=[True, False], ids=["compiled", "numpy"])
def _loops(request: pytest.FixtureRequest, _restored_loops: None) -> None:
    """Run the test once with loops compiled, and once with the NumPy calls that have the same bits."""
    kernels.use_compiled_loops(request.param)
