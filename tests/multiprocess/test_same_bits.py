"""A part of the same-bits matrix; all of it is ``python -m tests.matrix``."""

from __future__ import annotations

import pytest

from tests.matrix import ONE_PROCESS, Cell, Deployment, run_cell

pytestmark = pytest.mark.multiprocess

SERVER = Deployment("cluster", workers=2, servers=1, placement="server")
SERVERS = Deployment("cluster", workers=3, servers=2, placement="server")
SERVERS_REDUCE = Deployment("cluster", workers=2, servers=2, placement="replica")
MPI_3 = Deployment("mpi", workers=3)
MPI_5 = Deployment("mpi", workers=5)
SHARDED = Deployment("mpi", workers=2, placement="sharded")
SHARDED_5 = Deployment("mpi", workers=5, placement="sharded")

PART = {
    ("sgd-momentum", "plain"): [
        ("numpy", ONE_PROCESS),
        ("compiled", MPI_3),
        ("compiled", SERVER),
        ("compiled", SHARDED),
    ],
    ("adam", "global_clipnorm"): [("compiled", SERVERS), ("numpy", MPI_5), ("compiled", SHARDED_5)],
    ("a user's", "global_clipnorm"): [("numpy", SERVERS)],
    ("lamb", "plain"): [("numpy", SERVERS)],
    ("muon", "plain"): [("numpy", MPI_3)],
    ("v1", "plain"): [("numpy", SERVERS)],
    ("sgd-momentum", "element_wise_hook"): [("compiled", SERVERS), ("compiled", SERVERS_REDUCE)],
    ("sgd-momentum", "whole_gradient_hook"): [("compiled", SERVER), ("compiled", SERVERS_REDUCE)],
}


@pytest.mark.parametrize(("optimizer", "variant"), PART)
def test_deployments_end_with_one_hash(optimizer: str, variant: str) -> None:
    want = run_cell(Cell(optimizer, variant, "compiled", ONE_PROCESS))
    for engine, deployment in PART[optimizer, variant]:
        assert run_cell(Cell(optimizer, variant, engine, deployment)) == want, f"{engine}: {deployment}"


@pytest.mark.parametrize("deployment", [SERVERS, SHARDED], ids=["two servers", "sharded"])
def test_whole_gradient_hook_on_owners_of_parts_is_refused_by_name(deployment: Deployment) -> None:
    assert run_cell(Cell("adam", "whole_gradient_hook", "compiled", deployment)) == "refused"
