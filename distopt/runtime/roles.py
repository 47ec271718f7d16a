"""The programs of a cluster: what `distopt coordinator | server | worker` and the files in ``workers/`` run.

Each reads the same job file. Under a launcher (``--lifeline``) standard input is the lifeline, Ctrl-C is left to the
launcher, and the error goes to the run folder; started by hand or by compose, a program speaks for itself.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Literal, TypeAlias

from distopt.errors import EndpointError
from distopt.observe import RunFolder
from distopt.runtime import report
from distopt.runtime.config import JobConfig
from distopt.runtime.config_file import load_config, resolved_toml
from distopt.runtime.lifeline import Lifeline, signal_when_parent_dies, take_stdin
from distopt.runtime.paths import find_tasks_in_working_directory
from distopt.runtime.signals import INTERRUPTED, handling, ignore_interrupts

Role: TypeAlias = Literal["coordinator", "server", "worker"]


def role_parser(role: Role) -> argparse.ArgumentParser:
    """Return the parser of a role's command line."""
    parser = argparse.ArgumentParser(
        prog=f"distopt {role}", description=f"Run the {role} of a job.", allow_abbrev=False
    )
    parser.add_argument("config", type=Path, metavar="CONFIG", help="the job file, the same for every process")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a value of the job file"
    )
    parser.add_argument(
        "--run", type=Path, metavar="FOLDER", help="folder of the run; made by the coordinator if absent"
    )
    parser.add_argument("--lifeline", action="store_true", help=argparse.SUPPRESS)
    if role == "coordinator":
        parser.add_argument(
            "--address", metavar="ENDPOINT", help="where to listen; as --set deployment.address=ENDPOINT"
        )
        parser.add_argument("--advertise", metavar="ENDPOINT", help="where others reach it, if that differs")
        parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --run")
    else:
        only_mpi = "; without it, this is an MPI rank" if role == "worker" else ""
        parser.add_argument("--coordinator", metavar="ENDPOINT", help=f"where the coordinator listens{only_mpi}")
        parser.add_argument("--index", type=int, default=0, metavar="I", help=f"which {role} this is, from 0")
    return parser


def run_role(role: Role, arguments: Sequence[str] | None = None) -> int:
    """Run one process of a job to its end and return its exit status; an error is reported, not raised.

    ``arguments`` are those after the program's name (None: this process's).
    """
    options = role_parser(role).parse_args(arguments)
    lifeline = _lifeline(role) if options.lifeline else Lifeline(None)
    try:
        find_tasks_in_working_directory()
        config = load_config(options.config, _overrides(options))
        if role == "coordinator":
            return _coordinate(config, options, lifeline)
        return _join(role, config, options, lifeline)
    except Exception as error:  # noqa: BLE001  the outermost frame: every error becomes one line and a status
        if lifeline.is_lost and role == "coordinator":
            report.speak_from_now_on()
        return report.report(error)


def _coordinate(config: JobConfig, options: argparse.Namespace, lifeline: Lifeline) -> int:
    text = resolved_toml(config)
    if options.run is None:
        folder = RunFolder.create(Path(config.run.directory), config.name, text)
    elif options.resume and not options.lifeline:
        folder = RunFolder.reopen(options.run, text)
    else:
        folder = RunFolder.existing(options.run)
    report.attach(folder, "coordinator", level=config.run.log_level, speaks=not options.lifeline)
    from distopt.runtime import process

    resume = folder.path if options.resume else None
    announce = _print_endpoint if options.lifeline else _say_endpoint
    if options.lifeline:
        return process.run_coordinator(config, folder, resume, announce, lifeline)
    with handling(_stop_on_signal(lifeline)):
        return process.run_coordinator(config, folder, resume, announce, lifeline)


def _join(role: Role, config: JobConfig, options: argparse.Namespace, lifeline: Lifeline) -> int:
    folder = None if options.run is None else RunFolder.existing(options.run)
    if role == "server" and options.coordinator is None:
        raise EndpointError("a server needs --coordinator tcp://HOST:PORT, the address that the coordinator printed")
    from distopt.runtime import process, ranks

    if options.coordinator is None:
        return ranks.run_mpi(config, None)
    report.attach(folder, role, options.index, level=config.run.log_level, speaks=not options.lifeline)
    run = process.run_server if role == "server" else process.run_worker
    return run(config, options.coordinator, options.index, lifeline)


def _overrides(options: argparse.Namespace) -> list[str]:
    overrides = list(options.set)
    for key in ("address", "advertise"):
        if getattr(options, key, None) is not None:
            overrides.append(f"deployment.{key}={getattr(options, key)}")
    return overrides


def _lifeline(role: Role) -> Lifeline:
    ignore_interrupts()
    if sys.platform == "linux":
        # The coordinator may say why it ends; the others need not, and a stopped one must end too.
        signal_when_parent_dies(signal.SIGCONT if role == "coordinator" else signal.SIGKILL)

    def last_words(reason: str) -> None:
        if role == "coordinator":
            report.speak_from_now_on()
        report.report(EndpointError(f"{reason}, and the {role} could not end in order"))

    return Lifeline(take_stdin(), last_words=last_words)


def _stop_on_signal(lifeline: Lifeline) -> Callable[[int, FrameType | None], None]:
    asked = False

    def received(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        nonlocal asked
        if asked:
            sys.exit(INTERRUPTED)
        asked = True
        lifeline.request_stop()

    return received


def _print_endpoint(endpoint: str) -> None:
    """The launcher's contract: the first line of output is a JSON object that says where we listen."""
    sys.stdout.write(json.dumps({"endpoint": endpoint}) + "\n")
    sys.stdout.flush()


def _say_endpoint(endpoint: str) -> None:
    sys.stderr.write(f"coordinator listens at {endpoint}\n")
    sys.stderr.flush()
