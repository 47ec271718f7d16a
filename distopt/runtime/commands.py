"""What `distopt train` and `distopt status` do."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from distopt import checkpoint
from distopt.errors import ConfigError
from distopt.observe import RunFolder
from distopt.runtime import report
from distopt.runtime.cluster import choose_deployment, environment
from distopt.runtime.config import JobConfig
from distopt.runtime.config_file import differences, load_config, resolved_toml
from distopt.runtime.launcher import Launcher, Limits
from distopt.runtime.paths import find_tasks_in_working_directory
from distopt.runtime.restarts import check_restarts, run_ranks, run_with_restarts
from distopt.runtime.signals import INTERRUPTED


def train(path: Path | None, overrides: Sequence[str], resume: Path | None, restarts: int = 0) -> int:
    """Train the job in the file ``path``, or go on with the run in the folder ``resume``; return the exit status.

    Up to ``restarts`` times, a job that has lost a process goes on from its last checkpoint.

    Raises: DistoptError, before anything was started or from this very process; what other local processes met is
    printed here and becomes the status.
    """
    config = _resumed_config(resume, overrides) if resume is not None else _config(path, overrides)
    find_tasks_in_working_directory()
    deployment = choose_deployment(config, environment())
    check_restarts(restarts, deployment)
    if deployment == "mpi" and not restarts:
        from distopt.runtime import ranks

        return ranks.run_mpi(config, resume)
    text = resolved_toml(config)
    folder = (
        RunFolder.create(Path(config.run.directory), config.name, text)
        if resume is None
        else RunFolder.reopen(resume, text)
    )
    report.attach(folder, "train", level=config.run.log_level)
    if deployment == "process":
        from distopt.runtime import process

        return process.run_process(config, folder, resume)

    def attempt(number: int) -> int:
        if number:
            RunFolder.reopen(folder.path, text)
        if deployment == "mpi":
            asked = config.deployment
            survives = asked.survive_losses and not asked.communication.overlap  # which is not survived in place
            return run_ranks(folder, asked.workers, survives_losses=survives)
        return launch(config, folder, folder.path if number else resume)

    return run_with_restarts(attempt, restarts, folder.read_error, lambda line: sys.stderr.write(f"distopt: {line}\n"))


def launch(config: JobConfig, folder: RunFolder, resume: Path | None) -> int:
    """Run the job as local processes and return its exit status; its error, if any, is printed."""

    def program(role: str, index: int | None, coordinator: str | None) -> list[str]:
        command = [sys.executable, "-m", "distopt", role, str(folder.config), "--run", str(folder.path), "--lifeline"]
        if coordinator is None:
            return [*command, "--resume"] if resume is not None else command
        return [*command, "--coordinator", coordinator, "--index", str(index)]

    deployment = config.deployment
    launcher = Launcher(
        folder,
        program,
        num_servers=deployment.servers,
        num_workers=deployment.workers,
        output=sys.stdout,
        limits=Limits(start_s=deployment.join_timeout_s),
    )
    status = launcher.run()
    if status == INTERRUPTED and folder.read_progress() is None:
        sys.stderr.write("distopt: interrupted before the job began\n")
    if status in (0, INTERRUPTED):
        return status
    recorded = report.print_recorded_error(folder)
    return status if recorded is None else recorded


def status_lines(run: Path) -> list[str]:
    """Return what the last checkpoint of the run in the folder ``run`` says, its hash recomputed.

    Raises: CheckpointError if there is no run or no whole checkpoint.
    """
    folder = RunFolder.existing(run)
    path = checkpoint.latest(folder.checkpoints)
    state = checkpoint.load(path)  # refuses a file whose state does not hash to what its manifest says
    lines = [
        f"checkpoint     {path}",
        f"step           {state.iterations}",
        f"epoch          {state.position.epoch}, {state.position.step} steps into it",
        f"state hash     {checkpoint.state_hash(state)} (recomputed)",
        f"job            {state.job_digest}",
    ]
    if (error := folder.read_error()) is not None:
        lines.append(f"error          {error.who}: {error.message}")
    return lines


def _config(path: Path | None, overrides: Sequence[str]) -> JobConfig:
    if path is None:
        raise ConfigError("which job? give a CONFIG, for example configs/digits.toml, or --resume RUN")
    return load_config(path, overrides)


def _resumed_config(resume: Path, overrides: Sequence[str]) -> JobConfig:
    """Return the run's own configuration with ``overrides``, which may change where it runs, not what it computes."""
    folder = RunFolder.existing(resume)
    earlier, config = load_config(folder.config), load_config(folder.config, overrides)
    if changed := differences(earlier, config):
        raise ConfigError(f"{resume} cannot go on as another job; earlier and now: " + "; ".join(changed))
    return config
