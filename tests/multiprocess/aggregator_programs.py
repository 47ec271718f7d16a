"""What the ranks of ``test_aggregators.py`` run: short trainings with every aggregator and every compression."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

from distopt.comm.mpi import MpiCommunicator
from distopt.distribute import MultiWorkerMirroredStrategy, Strategy
from tests.aggregators_page import AGGREGATORS, COMPRESSIONS, LOCAL, REPLICAS, Cell, train_cell


def cells() -> Iterator[Cell]:
    """Yield what MPI ranks can run: each name once, and some pairs, on both placements where they can."""
    for name in AGGREGATORS:
        yield Cell(aggregator=name)
        yield Cell(aggregator=name, compression="top_k")
    for compression in COMPRESSIONS:
        yield Cell(compression=compression, feature="global_clipnorm")
    yield Cell("mean", LOCAL)
    for name in ("median", "trimmed_mean", "mean_by_samples", "mean"):
        yield Cell(name, "int8", "sharded")


def digest_of(strategy: Strategy, cell: Cell) -> str:
    """Return the hash of the variables after the training of ``cell``."""
    return hashlib.sha256(b"".join(train_cell(strategy, cell))).hexdigest()


def main() -> None:
    """Print the hash of each cell, and the bytes that this rank has received for it."""
    comm = MpiCommunicator(timeout_s=60.0)
    found = []
    for cell in cells():
        strategy = MultiWorkerMirroredStrategy(replicas=REPLICAS, communicator=comm, placement=cell.placement)
        digest = digest_of(strategy, cell)
        found.append((digest, sum(receipt.bytes_received for receipt in strategy.extended.last_receipts)))
    print(f"rank {comm.rank} found {json.dumps(found)}", flush=True)  # noqa: T201 - for the test to read
    comm.finish()


if __name__ == "__main__":
    main()
