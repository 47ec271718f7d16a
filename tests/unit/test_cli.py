"""The command line: options become overrides, errors become one line and a status."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
import pytest

from distopt import __version__, checkpoint, cli
from distopt.checkpoint import DataPosition, TrainingState, VariableState
from distopt.observe import ErrorRecord, RunFolder
from distopt.runtime import cluster, commands, report
from distopt.runtime.config_file import load_config

ROOT = Path(__file__).resolve().parents[2]
JOB = """
name = "d"
task = {name = "digits"}
data = {global_batch_size = 8, epochs = 1}
optimizer = {name = "SGD", learning_rate = 0.1}
"""
Run: TypeAlias = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line in an empty folder that holds ``job.toml``; gives status, output and error output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "_where", report._Where())
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(cluster, "environment", dict)
    monkeypatch.setattr(commands, "environment", dict)
    (tmp_path / "job.toml").write_text(JOB)

    def _run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["distopt", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return _run


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Stand in for the functions that train; what they were called with."""
    seen: list[tuple[Any, ...]] = []
    names_of = {
        "distopt.runtime.process": ("run_process", "run_coordinator", "run_server", "run_worker"),
        "distopt.runtime.ranks": ("run_mpi",),
    }
    for name_of_module, names in names_of.items():
        module = ModuleType(name_of_module)
        for name in names:

            def record(*arguments: Any, _name: str = name) -> int:
                seen.append((_name, *arguments))
                return 0

            setattr(module, name, record)
        monkeypatch.setitem(sys.modules, name_of_module, module)
        monkeypatch.setattr(name_of_module, module, raising=False)
    return seen


def test_version_is_printed(run: Run) -> None:
    assert run("--version") == (0, f"distopt {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "which job? give a CONFIG"),
        (["train", "gone.toml"], "gone.toml: there is no such configuration file"),
        (["train", "job.toml", "--set", "seed=x"], 'job.toml: seed = "x" is refused'),
        (["train", "job.toml", "--on", "mp"], 'deployment.on = "mp" is refused; did you mean "mpi"?'),
        (["train", "job.toml", "--resume", "run"], "CONFIG = job.toml and --resume = run exclude each other"),
    ],
)
def test_train_with_a_wrong_configuration_is_one_line_and_status_two(
    run: Run, arguments: list[str], message: str
) -> None:
    status, output, errors = run(*arguments)
    assert (status, output) == (2, "")
    assert errors.startswith("distopt: error: ")
    assert message in errors
    assert errors.count("\n") == 1


def test_train_with_an_unknown_option_is_status_two(run: Run) -> None:
    assert run("train", "--nope")[0] == 2


def test_train_in_one_process_makes_a_run_folder_with_the_resolved_configuration(
    run: Run, calls: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    options = ["--on", "process", "--set", "strategy.replicas=4", "--run-directory", "kept"]
    assert run("train", "job.toml", *options) == (0, "", "")
    ((name, config, folder, resume),) = calls
    assert (name, resume) == ("run_process", None)
    assert (config.strategy.replicas, config.run.directory) == (4, "kept")
    assert folder.path == Path("kept/d-001")
    assert load_config(tmp_path / "kept/d-001/config.toml") == config


def test_train_inside_mpirun_joins_the_ranks_and_leaves_the_folder_to_them(
    run: Run, calls: list[tuple[Any, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "environment", lambda: {"PMI_RANK": "1", "PMI_SIZE": "4"})
    assert run("train", "job.toml") == (0, "", "")
    assert [(call[0], call[2]) for call in calls] == [("run_mpi", None)]
    assert not (tmp_path / "runs").exists()


def test_train_resume_goes_on_with_the_runs_own_configuration(
    run: Run, calls: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    run("train", "job.toml", "--on", "process", "--set", "strategy.replicas=4")
    assert run("train", "--resume", "runs/d-001", "--set", "deployment.workers=3")[0] == 0
    _, config, folder, resume = calls[1]
    assert (config.strategy.replicas, config.deployment.workers) == (4, 3)
    assert (folder.path, resume) == (Path("runs/d-001"), Path("runs/d-001"))
    assert load_config(tmp_path / "runs/d-001/config.toml").deployment.workers == 3


def test_train_resume_as_another_job_is_refused_and_changes_nothing(
    run: Run, calls: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    run("train", "job.toml", "--on", "process")
    before = (tmp_path / "runs/d-001/config.toml").read_text()
    status, _, errors = run("train", "--resume", "runs/d-001", "--set", "seed=7")
    assert status == 2
    assert "runs/d-001 cannot go on as another job; earlier and now: seed: 0, 7" in errors
    assert (tmp_path / "runs/d-001/config.toml").read_text() == before
    assert len(calls) == 1


def test_train_resume_of_no_run_is_refused(run: Run) -> None:
    assert run("train", "--resume", "gone") == (
        1,
        "",
        "distopt: error: gone is not the folder of a run: it has no config.toml\n",
    )


def test_status_shows_the_recomputed_hash_step_epoch_and_error(run: Run, tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "d", JOB)
    state = TrainingState(
        iterations=17,
        variables=(VariableState(position=0, name="w", value=(np.ones(3),)),),
        position=DataPosition(epoch=1, step=5),
        job_digest="d" * 64,
    )
    path = checkpoint.save(folder.checkpoints, state)
    folder.first_error(ErrorRecord(who="worker 1", kind="PeerLostError", message="gone"))
    status, output, _ = run("status", str(folder.path))
    assert status == 0
    assert output.splitlines() == [
        f"checkpoint     {path}",
        "step           17",
        "epoch          1, 5 steps into it",
        f"state hash     {checkpoint.state_hash(state)} (recomputed)",
        f"job            {'d' * 64}",
        "error          worker 1: gone",
    ]
    (folder.checkpoints / checkpoint.read_manifest(path).file).write_bytes(b"")
    assert "has 0 bytes" in run("status", str(folder.path))[2]


def test_server_by_hand_gets_its_place_and_a_lifeline_that_is_never_lost(
    run: Run, calls: list[tuple[Any, ...]]
) -> None:
    assert run("server", "job.toml", "--coordinator=tcp://a:1", "--index=3", "--set=seed=5")[0] == 0
    ((name, config, endpoint, index, lifeline),) = calls
    assert (name, config.seed, endpoint, index, lifeline.is_lost) == ("run_server", 5, "tcp://a:1", 3, False)


def test_server_without_a_coordinator_is_refused(run: Run) -> None:
    status, _, errors = run("server", "job.toml")
    assert status == 1
    assert "a server needs --coordinator tcp://HOST:PORT" in errors


def test_worker_without_a_coordinator_is_an_mpi_rank(run: Run, calls: list[tuple[Any, ...]]) -> None:
    assert run("worker", "job.toml")[0] == 0
    assert calls[0][0] == "run_mpi"


def test_coordinator_by_hand_makes_its_run_folder_and_listens_where_told(
    run: Run, calls: list[tuple[Any, ...]]
) -> None:
    assert run("coordinator", "job.toml", "--address=tcp://0.0.0.0:5555", "--set=deployment.servers=2")[0] == 0
    name, config, folder, resume, on_ready, _ = calls[0]
    assert (name, folder.path, resume) == ("run_coordinator", Path("runs/d-001"), None)
    assert (config.deployment.address, config.deployment.servers) == ("tcp://0.0.0.0:5555", 2)
    assert callable(on_ready)


def test_doctor_says_what_is_there(run: Run) -> None:
    status, output, _ = run("doctor")
    found = dict(
        line.split(maxsplit=1) for line in output.splitlines() if not line.startswith(("numerics", "digits", "kernel"))
    )
    assert status == 0
    assert {"distopt", "python", "system", "mpi", "mpirun"} <= found.keys()
    assert "numerics: blas threads  1" in output
    assert "offered" in found["shared"]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.toml")), ids=lambda path: path.name)
def test_config_in_the_repository_is_complete_and_bears_its_files_name(path: Path) -> None:
    config = load_config(path)
    assert config.name == path.stem
    assert config.task.name == "digits"
    assert config.strategy.replicas == 8


@pytest.mark.parametrize("path", sorted((ROOT / "workers").glob("*.py")), ids=lambda path: path.name)
def test_program_in_workers_is_under_25_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 25


def test_job_of_ones_own_trains_as_the_page_shows_it(run: Run, tmp_path: Path) -> None:
    section = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8").partition("## A job of your own")[2]
    (task,), (job,) = (re.findall(rf"```{kind}\n(.*?)```", section.partition("\n## ")[0], re.DOTALL) for kind in
                       ("python", "toml"))  # fmt: skip
    (tmp_path / "line.py").write_text(task)
    (tmp_path / "line.toml").write_text(job)
    status, out, _ = run("train", "line.toml", "--on", "process")
    (accuracy,) = re.findall(r"test accuracy +([\d.]+)", out)
    assert status == 0
    assert float(accuracy) > 0.98
