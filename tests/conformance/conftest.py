"""On which emulated hosts the ranks of a conformance body are."""

from __future__ import annotations

import pytest

from tests.conftest import Run

HOSTS = {2: ("01",), 3: ("001", "012"), 5: ("00112", "01111"), 8: ("00001111", "01201201")}
"""By the number of ranks, the host of each."""


@pytest.fixture(params=[0, 1])
def host_of(request: pytest.FixtureRequest, run: Run) -> str:
    """The host of each rank, one digit each; skips where there is no other division."""
    hosts = HOSTS.get(run.size, ())
    if request.param >= len(hosts):
        pytest.skip("no other hosts for so many ranks")
    return hosts[request.param]
