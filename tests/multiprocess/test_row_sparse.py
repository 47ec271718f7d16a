"""Row-sparse gradients between real processes."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.multiprocess.bag_of_words import WIDTH, WORDS
from tests.multiprocess.harness import mpirun, run_job

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.skipif(sys.platform != "linux", reason="real MPI jobs are tested on Linux"),
]

JOB = """
name = "words"
seed = 3
[task]
name = "tests.multiprocess.bag_of_words:BagOfWords"
[data]
global_batch_size = 64
epochs = 1
[optimizer]
{optimizer}
[strategy]
replicas = 5
"""
OPTIMIZERS = {
    "momentum": 'name = "SGD"\nlearning_rate = 0.1\nmomentum = 0.9',
    "clipped": 'name = "SGD"\nlearning_rate = 0.1\nmomentum = 0.9\nglobal_clipnorm = 0.5',
}
CLUSTER = ["--on", "cluster", "--set", "deployment.workers=3", "--set", "deployment.servers=2", "--set"]


@pytest.mark.parametrize(
    ("file", "chosen"),
    [("test_row_sparse.py", ""), ("test_rows_in_host_memory.py", "several_hosts and measured or negative_zeros")],
)
def test_row_sparse_conformance_suite_passes_under_mpirun(file: str, chosen: str) -> None:
    argv = [
        "-m",
        "mpi4py",
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        f"tests/conformance/{file}",
        *(["-k", chosen] if chosen else []),
    ]
    result = run_job(mpirun(3, argv), limit_s=110.0)
    assert result.status == 0, result
    assert len(re.findall(r"\d+ passed", result.stdout)) == 3, result


def trained(argv: Sequence[str], folder: Path, optimizer: str, ranks: int = 0) -> tuple[str, int]:
    """Return the hash of a job's state, and the most bytes that a process exchanged in a step after the first."""
    config = folder / "words.toml"
    config.write_text(JOB.format(optimizer=OPTIMIZERS[optimizer]))
    runs = folder / "runs" / str(len(list(folder.glob("runs/*"))))
    command = ["-m", "distopt", "train", str(config), "--set", f"run.directory={runs}", *argv]
    result = run_job(mpirun(ranks, command) if ranks else [sys.executable, *command], limit_s=90.0)
    assert result.status == 0, result
    (run,) = runs.iterdir()
    summary = json.loads((run / "summary.json").read_text())
    assert summary["completed"] is True
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    exchanged = [s["bytes_sent"] + s["bytes_received"] for s in steps if s["event"] == "step" and s["step"] > 0]
    return str(summary["state_hash"]), max(exchanged)


MPI = ["--on", "mpi"]
SERVERS = [*CLUSTER, "deployment.placement=server"]
REDUCE = [*CLUSTER, "deployment.placement=replica"]


@pytest.mark.parametrize(("optimizer", "deployments"), [("momentum", [MPI, REDUCE]), ("clipped", [SERVERS])])
def test_job_with_an_embedding_ends_with_one_hash_and_sends_rows(
    tmp_path: Path, optimizer: str, deployments: list[list[str]]
) -> None:
    want, nothing = trained(["--on", "process"], tmp_path, optimizer)
    assert nothing == 0
    for argv in deployments:
        found, num_bytes = trained(argv, tmp_path, optimizer, ranks=3 if argv is MPI else 0)
        assert found == want, argv
        assert 0 < num_bytes < WORDS * WIDTH * 4 // 6, argv
