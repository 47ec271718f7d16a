"""The same-bits matrix: one job, many deployments, one hash. Run all of it with ``python -m tests.matrix``.

Every cell is a real ``distopt train`` in its own process group with a time limit. A cell passes if it ends with
status 0, if its metrics show that each (step, replica) was computed by exactly one process and that every process of
a multi-process job received bytes, and if its hash equals that of the one-process job. Cells that must be refused
pass if they are refused in the expected words.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.multiprocess.harness import ROOT, mpirun, run_job

REPLICAS = 8
EPOCHS = 2
CONFIGS = {
    "sgd-momentum": "digits.toml",
    "adam": "digits-adam.toml",
    "a user's": "digits-adam.toml",
    "lamb": "digits-adam.toml",
    "muon": "digits.toml",
    "v1": "digits.toml",
}
SETTINGS = {
    "a user's": {"optimizer.name": "benchmarks.yogi:Yogi", "optimizer.options": "{beta_2 = 0.99}"},
    "lamb": {
        "optimizer.name": "distopt.optimizers:Lamb",
        "optimizer.options": "{weight_decay = 0.01, use_ema = true}",
    },
    "muon": {
        "optimizer.name": "distopt.optimizers:Muon",
        "optimizer.options": "{gradient_accumulation_steps = 3, use_ema = true}",
    },
    "v1": {
        "optimizer.name": "distopt.compat.v1.train:MomentumOptimizer",
        "optimizer.options": "{use_nesterov = true}",
    },
}
"""What a job changes in its named configuration."""
VARIANTS = {
    "plain": {},
    "global_clipnorm": {"optimizer.global_clipnorm": "0.5"},
    "element_wise_hook": {"aggregation.name": "tests.hooks:MedianOfReplicas"},
    "whole_gradient_hook": {"aggregation.name": "tests.hooks:unit_length_before_sum"},
    "median_of_int8": {"aggregation.name": "median", "aggregation.compression.name": "int8"},
    "krum_of_top_k": {
        "aggregation.name": "krum",
        "aggregation.compression": "{name = 'top_k', options = {ratio = 0.1}}",
    },
    "local_steps_of_median": {"aggregation.name": "median", "aggregation.local_steps": "3"},
}
_REFUSALS = {
    "whole_gradient_hook": "tests.hooks:unit_length_before_sum needs whole gradients",
    "krum_of_top_k": "krum of top_k needs whole gradients",
    "local_steps_of_median": "median after 3 local steps would give each replica a value of its own",
}
"""What a refusal of a variant says."""


@dataclass(frozen=True)
class Deployment:
    """Where a job runs: ``on`` with so many workers (or MPI ranks) and servers."""

    on: str
    workers: int = 1
    servers: int = 0
    placement: str = "auto"

    def __str__(self) -> str:
        if self.on == "process":
            return "one process"
        if self.on == "mpi":
            return f"mpirun -n {self.workers}, placement {self.placement}"
        return f"{self.workers} workers, {self.servers} servers, placement {self.placement}"

    def refuses(self, variant: str) -> bool:
        """Whether this deployment must refuse ``variant`` before step 0."""
        in_parts = self.placement == "sharded" or (self.placement == "server" and self.servers > 1)
        if variant == "local_steps_of_median":
            return self.placement in ("sharded", "server")
        return variant in _REFUSALS and in_parts


ONE_PROCESS = Deployment("process")
DEPLOYMENTS = (
    ONE_PROCESS,
    *(
        Deployment("mpi", workers=n, placement=placement)
        for placement in ("replica", "sharded")
        for n in (1, 2, 3, 5, 8)
    ),
    *(
        Deployment("cluster", workers, servers, placement)
        for workers in (1, 2, 3)
        for servers in (1, 2)
        for placement in ("server", "replica")
    ),
)


@dataclass(frozen=True)
class Cell:
    """One job of the matrix."""

    optimizer: str
    variant: str
    engine: str
    deployment: Deployment

    def __str__(self) -> str:
        return f"{self.optimizer}, {self.variant}, {self.engine}: {self.deployment}"


def cells(
    optimizers: Sequence[str] = tuple(CONFIGS),
    variants: Sequence[str] = tuple(VARIANTS),
    engines: Sequence[str] = ("compiled", "numpy"),
    deployments: Sequence[Deployment] = DEPLOYMENTS,
) -> Iterator[Cell]:
    """Yield the cells, those of one expected hash together."""
    for optimizer in optimizers:
        for variant in variants:
            for engine in engines:
                for deployment in deployments:
                    yield Cell(optimizer, variant, engine, deployment)


def run_cell(cell: Cell, *, limit_s: float = 90.0) -> str:
    """Run one job and return its hash, or ``"refused"`` where that is right.

    Raises: AssertionError that says what is wrong.
    """
    deployment = cell.deployment
    with tempfile.TemporaryDirectory(prefix="distopt-matrix-") as directory:
        settings = {
            "strategy.replicas": str(REPLICAS),
            "data.epochs": str(EPOCHS),
            "numerics.engine": cell.engine,
            "run.directory": directory,
            **VARIANTS[cell.variant],
            **SETTINGS.get(cell.optimizer, {}),
        }
        if deployment.on == "cluster":
            settings["deployment.workers"] = str(deployment.workers)
            settings["deployment.servers"] = str(deployment.servers)
        settings["deployment.placement"] = deployment.placement
        argv = ["-m", "distopt", "train", str(ROOT / "configs" / CONFIGS[cell.optimizer]), "--on", deployment.on]
        for key, value in settings.items():
            argv += ["--set", f"{key}={value}"]
        command = mpirun(deployment.workers, argv) if deployment.on == "mpi" else [sys.executable, *argv]
        job = run_job(command, limit_s=limit_s)
        output = f"{job.stdout}\n{job.stderr}"
        if deployment.refuses(cell.variant):
            assert job.status != 0, f"{cell}: was not refused\n{output}"
            assert _REFUSALS[cell.variant] in output, output
            return "refused"
        assert job.status == 0, f"{cell}: status {job.status}\n{output}"
        (folder,) = Path(directory).iterdir()
        check_division_of_labour(folder / "metrics.jsonl", processes=deployment.workers)
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["completed"] is True, summary
        return str(summary["state_hash"])


def check_division_of_labour(metrics: Path, *, processes: int) -> None:
    """Assert that each (step, replica) was computed once and that every process took part.

    Raises: AssertionError.
    """
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    steps = [line for line in lines if line["event"] == "step"]
    computed = Counter((line["step"], replica) for line in steps for replica in line["replicas"])
    last = max(line["step"] for line in steps)
    assert set(computed) == {(step, replica) for step in range(last + 1) for replica in range(REPLICAS)}
    assert set(computed.values()) == {1}, "a replica was computed by two processes"
    ranks = {line["rank"] for line in steps}
    assert ranks == set(range(processes)), f"{processes} processes, but records of ranks {sorted(ranks)}"
    if processes > 1:
        for rank in ranks:
            own = [line for line in steps if line["rank"] == rank]
            assert sum(line["bytes_sent"] + line["bytes_received"] for line in own) > 0, (
                f"rank {rank} exchanged nothing"
            )
            assert sum(len(line["replicas"]) for line in own) < len(computed), f"rank {rank} computed everything"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the matrix; print a line a cell and return 1 if any cell fails."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--optimizer", choices=CONFIGS, action="append")
    parser.add_argument("--variant", choices=VARIANTS, action="append")
    parser.add_argument("--engine", choices=("compiled", "numpy"), action="append")
    options = parser.parse_args(argv)
    expected: dict[tuple[str, str], str] = {}
    failed = 0
    count = 0
    for cell in cells(
        options.optimizer or tuple(CONFIGS),
        options.variant or tuple(VARIANTS),
        options.engine or ("compiled", "numpy"),
    ):
        started = time.perf_counter()
        count += 1
        try:
            digest = run_cell(cell)
            want = digest if digest == "refused" else expected.setdefault((cell.optimizer, cell.variant), digest)
            verdict = "ok" if digest == want else f"DIFFERS from {want[:16]}"
        except AssertionError as error:
            digest, verdict = "-", f"FAILED {error}"
        failed += verdict != "ok"
        sys.stdout.write(f"{cell}  {digest[:16]}  {verdict}  ({time.perf_counter() - started:.1f} s)\n")
        sys.stdout.flush()
    for (optimizer, variant), digest in expected.items():
        sys.stdout.write(f"{optimizer}, {variant}: {digest}\n")
    sys.stdout.write(f"{count - failed} passed, {failed} failed\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
