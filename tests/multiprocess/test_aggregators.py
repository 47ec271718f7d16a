"""Aggregators and compressed contributions between real processes: the bits of one process, and codes on the wire."""

from __future__ import annotations

import json
import re
import sys

import numpy as np
import pytest

from distopt.aggregation.named import AGGREGATORS, COMPRESSIONS
from distopt.distribute import MirroredStrategy
from tests.aggregators_page import REPLICAS
from tests.matrix import ONE_PROCESS, Cell, Deployment, run_cell
from tests.multiprocess.aggregator_programs import cells, digest_of
from tests.multiprocess.harness import mpirun, run_job

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.skipif(sys.platform != "linux", reason="real MPI jobs are tested on Linux"),
]


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_mpi_ranks_have_the_bits_of_one_process_with_every_aggregator_and_compression(num_ranks: int) -> None:
    result = run_job(mpirun(num_ranks, ["-m", "tests.multiprocess.aggregator_programs"]), limit_s=120.0)
    assert result.status == 0, result
    found = {int(rank): json.loads(rest) for rank, rest in re.findall(r"rank (\d) found (\[.*\])", result.stdout)}
    assert sorted(found) == list(range(num_ranks)), result
    wanted = [digest_of(MirroredStrategy(REPLICAS), cell) for cell in cells()]
    for rank, of_rank in found.items():
        for cell, want, (digest, _) in zip(cells(), wanted, of_rank, strict=True):
            assert digest == want, f"rank {rank}: {cell}"
    received = {cell: max(of_rank[i][1] for of_rank in found.values()) for i, cell in enumerate(cells())}
    sizes = (600, 20, 24)
    for cell, num_bytes in received.items():
        if cell.compression == "top_k" and not AGGREGATORS[cell.aggregator].by_samples:
            # Every rank gets the codes of the replicas that the others host, one by one, and nothing else.
            others = REPLICAS - REPLICAS // num_ranks
            codec = COMPRESSIONS["top_k"]()
            assert num_bytes == others * sum(codec.num_bytes(n, np.dtype(np.float32)) for n in sizes), cell


SERVERS = Deployment("cluster", workers=2, servers=2, placement="server")
SERVER = Deployment("cluster", workers=3, servers=1, placement="server")
SERVERS_REDUCE = Deployment("cluster", workers=2, servers=2, placement="replica")


@pytest.mark.parametrize(
    ("variant", "deployment"),
    [("median_of_int8", SERVERS), ("krum_of_top_k", SERVER), ("local_steps_of_median", SERVERS_REDUCE)],
    ids=["2 servers", "1 server", "reducing servers"],
)
def test_servers_have_the_bits_of_one_process_and_its_residuals(variant: str, deployment: Deployment) -> None:
    want = run_cell(Cell("sgd-momentum", variant, "compiled", ONE_PROCESS))
    assert run_cell(Cell("sgd-momentum", variant, "compiled", deployment)) == want
