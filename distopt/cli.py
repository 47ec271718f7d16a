"""The `distopt` command."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="distopt",
    help="Train one job in one process, under mpirun, or on a local cluster, with the same bits.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def train(
    config: Annotated[Path | None, typer.Argument(help="The job file, for example configs/digits.toml.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value, as strategy.replicas=4.")
    ] = None,
    on: Annotated[
        str | None, typer.Option(metavar="auto|process|mpi|cluster", help="Where to run; as --set deployment.on=.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on from the last checkpoint in this run folder.")
    ] = None,
    run_directory: Annotated[
        Path | None, typer.Option(help="Where the run's folder is made; as --set run.directory=.")
    ] = None,
    restarts: Annotated[
        int, typer.Option(min=0, metavar="N", help="After a lost process go on from the last checkpoint, N times.")
    ] = 0,
) -> None:
    """Train a job; alone it starts its own processes, inside mpirun it joins the other ranks."""
    from distopt.errors import ConfigError
    from distopt.runtime import commands
    from distopt.runtime.toml_text import inline

    if config is not None and resume is not None:
        raise ConfigError(
            f"CONFIG = {config} and --resume = {resume} exclude each other: a run has its own configuration"
        )
    all_overrides = list(overrides or [])
    if on is not None:
        all_overrides.append(f"deployment.on={inline(on)}")
        if on in ("process", "mpi") and not any(o.startswith("deployment.placement=") for o in all_overrides):
            # A job file for servers can be run without them: where the update runs changes no bit.
            all_overrides.append('deployment.placement="auto"')
    if run_directory is not None:
        all_overrides.append(f"run.directory={inline(str(run_directory))}")
    raise typer.Exit(commands.train(config, all_overrides, resume, restarts))


@app.command()
def status(run: Annotated[Path, typer.Argument(help="A run folder.")]) -> None:
    """Show step, epoch and recomputed state hash of a run's last checkpoint."""
    from distopt.runtime import commands

    typer.echo("\n".join(commands.status_lines(run)))


@app.command()
def doctor() -> None:
    """Show what this machine offers: Python, NumPy, BLAS, MPI, caches."""
    from distopt.runtime.doctor import findings

    for subject, found in findings():
        typer.echo(f"{subject:<24}{found}")


def _version(wanted: bool) -> None:
    if wanted:
        from distopt import __version__

        typer.echo(f"distopt {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None: ...


_FORWARDED = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.command(hidden=True, context_settings=_FORWARDED)
def coordinator(context: typer.Context) -> None:
    """The process that the others join; see distopt.runtime.roles."""
    from distopt.runtime.roles import run_role

    raise typer.Exit(run_role("coordinator", context.args))


@app.command(hidden=True, context_settings=_FORWARDED)
def server(context: typer.Context) -> None:
    """A parameter server."""
    from distopt.runtime.roles import run_role

    raise typer.Exit(run_role("server", context.args))


@app.command(hidden=True, context_settings=_FORWARDED)
def worker(context: typer.Context) -> None:
    """A replica worker."""
    from distopt.runtime.roles import run_role

    raise typer.Exit(run_role("worker", context.args))


def main() -> None:
    """Run the command line and end the process; an error is one line on standard error."""
    try:
        app()
    except Exception as error:  # noqa: BLE001  the outermost frame: every error becomes one line and a status
        from distopt.runtime import report

        sys.exit(report.report(error))
