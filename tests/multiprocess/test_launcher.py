"""The launcher with real processes that only play their parts: whatever is killed, nothing is left, and it is named.

The stand-ins obey the contract of the real programs: an endpoint on the first line, orders on standard input. Each says
in a named pipe that it runs, so the tests wait for events and never for a time.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

from distopt.observe import ErrorRecord, RunFolder

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.timeout(60),
    pytest.mark.skipif(sys.platform != "linux", reason="waits for processes by pidfd"),
]

ROOT = Path(__file__).resolve().parents[2]

PLAYER = """
import json, os, signal, sys, threading
from pathlib import Path
from distopt.observe import ErrorRecord, RunFolder
from distopt.runtime.lifeline import Lifeline, signal_when_parent_dies, take_stdin
from distopt.runtime.signals import ignore_interrupts

role, index, scenario, folder = sys.argv[1:5]
folder = Path(folder)
ignore_interrupts()
signal_when_parent_dies(signal.SIGCONT if role == "coordinator" else signal.SIGKILL)
ended = threading.Event()
result = [1, None]

def end(status, message=None):
    result[:] = [status, message]
    ended.set()

def hello():
    with open(folder / "hello", "w") as pipe:
        pipe.write(json.dumps([role, index, os.getpid()]) + "\\n")

if role == "coordinator":
    if scenario == "mute":
        hello()
        ended.wait()
    if scenario == "broken":
        sys.exit("no such thing")
    print(json.dumps({"endpoint": "tcp://here:1"}), flush=True)
    lifeline = Lifeline(take_stdin(), grace_s=1.0)
    lifeline.subscribe(
        on_lost=lambda reason: end(1, reason),
        on_stop=lambda: None if scenario == "deaf" else end(130, "stopped"),
        on_child_lost=lambda lost: None if scenario == "deaf" else end(1, f"{lost} at step 17"),
    )
    hello()
    if scenario == "finish":
        with open(folder / "go") as pipe:
            pipe.read()
        print("summary", flush=True)
        end(0)
    ended.wait()
    if result[1] is not None:
        RunFolder(folder).first_error(ErrorRecord(who=role, kind="PeerLostError", message=result[1]))
        print(result[1], file=sys.stderr, flush=True)
    os._exit(result[0])

assert sys.argv[5] == "tcp://here:1"
if scenario == "worker fails" and (role, index) == ("worker", "1"):
    sys.exit("a task that cannot be imported")
lifeline = Lifeline(take_stdin(), grace_s=1.0)
lifeline.subscribe(on_lost=lambda reason: end(1))
hello()
ended.wait()
"""

LAUNCH = """
import sys
from pathlib import Path
from distopt.observe import RunFolder
from distopt.runtime.launcher import Launcher, Limits

player, scenario, folder = sys.argv[1:4]
def program(role, index, coordinator):
    return [sys.executable, player, role, str(index), scenario, folder, str(coordinator)]

limits = Limits(start_s=2.0 if scenario == "mute" else 30.0, fault_s=1.0, stop_s=10.0, leave_s=0.5, terminate_s=1.0)
launcher = Launcher(RunFolder(Path(folder)), program, num_servers=1, num_workers=2, output=sys.stdout, limits=limits)
sys.exit(launcher.run())
"""


class _Cluster:
    """A launcher in a process group of its own, and its children as they say hello."""

    def __init__(self, tmp_path: Path, scenario: str, num_hellos: int) -> None:
        self.folder = RunFolder.create(tmp_path, "d", "")
        for name in ("hello", "go"):
            os.mkfifo(self.folder.path / name)
        # Opened for both ways, so that neither end ever waits for the other to open.
        self._hello = os.open(self.folder.path / "hello", os.O_RDWR)
        (tmp_path / "player.py").write_text(PLAYER)
        (tmp_path / "launch.py").write_text(LAUNCH)
        self.launcher = subprocess.Popen(
            [sys.executable, tmp_path / "launch.py", tmp_path / "player.py", scenario, self.folder.path],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self.pids: dict[str, int] = {}
        self._ends: dict[str, int] = {}
        text = b""
        while text.count(b"\n") < num_hellos:
            assert select.select([self._hello], [], [], 30.0)[0], f"only {self.pids} said hello: {text!r}"
            text += os.read(self._hello, 4096)
        for role, index, pid in map(json.loads, text.splitlines()):
            name = role if index == "None" else f"{role} {index}"
            self.pids[name] = pid
            with contextlib.suppress(ProcessLookupError):  # where the job is over at once, it has ended already
                self._ends[name] = os.pidfd_open(pid)

    def send(self, name: str, number: int) -> None:
        signal.pidfd_send_signal(self._ends[name], number)

    def finish(self) -> None:
        with open(self.folder.path / "go", "w") as pipe:
            pipe.write("go")

    def result(self, limit_s: float = 15.0) -> tuple[int, str, str]:
        """Return status, output and error output, once the launcher has ended and, by then, each child."""
        output, errors = self.launcher.communicate(timeout=limit_s)
        self.assert_all_gone(0.0)
        return self.launcher.returncode, output, errors

    def assert_all_gone(self, within_s: float) -> None:
        until_s = time.monotonic() + within_s
        for name, end in self._ends.items():
            ready, _, _ = select.select([end], [], [], max(0.0, until_s - time.monotonic()))
            assert ready, f"{name} is left"

    def error(self) -> ErrorRecord:
        record = self.folder.read_error()
        assert record is not None
        return record

    def close(self) -> None:
        for end in self._ends.values():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(end, signal.SIGKILL)
            os.close(end)
        self.launcher.kill()
        self.launcher.communicate()
        os.close(self._hello)


Start: TypeAlias = Callable[..., _Cluster]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    clusters: list[_Cluster] = []

    def _start(scenario: str, num_hellos: int = 4) -> _Cluster:
        clusters.append(_Cluster(tmp_path, scenario, num_hellos))
        return clusters[-1]

    yield _start
    for cluster in clusters:
        cluster.close()


def test_launcher_of_a_job_that_ends_well_passes_on_output_and_status(start: Start) -> None:
    cluster = start("finish")
    assert sorted(cluster.pids) == ["coordinator", "server 0", "worker 0", "worker 1"]
    cluster.finish()
    assert cluster.result() == (0, "summary\n", "")
    assert cluster.folder.read_error() is None


def test_launcher_with_a_stopped_worker_at_the_end_leaves_none(start: Start) -> None:
    cluster = start("finish")
    cluster.send("worker 1", signal.SIGSTOP)
    cluster.finish()
    assert cluster.result()[0] == 0


@pytest.mark.parametrize("name", ["worker 1", "server 0"])
def test_launcher_with_a_killed_member_has_the_coordinator_name_it(start: Start, name: str) -> None:
    cluster = start("watch")
    cluster.send(name, signal.SIGKILL)
    status, _, _ = cluster.result()
    assert status == 1
    assert cluster.error().who == "coordinator"
    assert cluster.error().message == f"{name} (pid {cluster.pids[name]}) was killed by SIGKILL at step 17"


def test_launcher_with_a_worker_that_fails_at_its_start_quotes_its_log(start: Start) -> None:
    cluster = start("worker fails", num_hellos=3)
    status, _, _ = cluster.result()
    assert status == 1
    message = cluster.error().message
    assert message.startswith("worker 1 (pid ")
    assert "ended with status 1; its log " in message
    assert "worker-1.log ends with: a task that cannot be imported at step 17" in message


def test_launcher_with_a_killed_coordinator_names_it_and_the_step(start: Start) -> None:
    cluster = start("watch")
    cluster.folder.progress.write_text("17")
    cluster.send("coordinator", signal.SIGKILL)
    assert cluster.result()[0] == 1
    assert cluster.error() == ErrorRecord(
        who="launcher",
        kind="PeerLostError",
        message=f"coordinator (pid {cluster.pids['coordinator']}) was killed by SIGKILL at step 17; "
        "server 0, worker 0, worker 1 waited for it",
    )


def test_launcher_with_a_stopped_coordinator_ends_the_job_itself(start: Start) -> None:
    cluster = start("watch")
    cluster.send("coordinator", signal.SIGSTOP)
    cluster.send("worker 0", signal.SIGKILL)
    assert cluster.result()[0] == 1
    message = cluster.error().message
    assert f"worker 0 (pid {cluster.pids['worker 0']}) was killed by SIGKILL before step 0" in message
    assert f"coordinator (pid {cluster.pids['coordinator']}) did not end the job within 1 s" in message


def test_launcher_with_a_coordinator_that_never_listens_gives_up(start: Start) -> None:
    cluster = start("mute", num_hellos=0)
    assert cluster.result()[0] == 1
    assert re.fullmatch(r"coordinator \(pid \d+\) did not listen within 2 s", cluster.error().message)


def test_launcher_with_a_coordinator_that_ends_before_it_listens_names_its_status(start: Start) -> None:
    cluster = start("broken", num_hellos=0)
    status, _, errors = cluster.result()
    assert status == 1
    assert cluster.error().message.endswith("ended with status 1 before it listened")
    assert errors == "no such thing\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_launcher_when_interrupted_stops_in_order(start: Start, number: int) -> None:
    cluster = start("watch")
    cluster.folder.progress.write_text("17")
    if number == signal.SIGINT:  # as a terminal does: to everyone in the group
        os.killpg(cluster.launcher.pid, number)
    else:
        cluster.launcher.send_signal(number)
    status, _, errors = cluster.result()
    assert (status, errors) == (130, "stopped\n")


def test_launcher_when_interrupted_twice_kills_at_once(start: Start) -> None:
    cluster = start("deaf")
    cluster.folder.progress.write_text("17")
    os.killpg(cluster.launcher.pid, signal.SIGINT)
    # To the launcher alone: from the group's SIGTERM the coordinator would end as well, perhaps before it is killed.
    os.kill(cluster.launcher.pid, signal.SIGTERM)
    status, output, errors = cluster.result(limit_s=5.0)
    assert (status, output, errors) == (130, "", "")


def test_launcher_when_interrupted_before_the_job_began_kills_at_once(start: Start) -> None:
    cluster = start("deaf")
    os.killpg(cluster.launcher.pid, signal.SIGINT)
    assert cluster.result(limit_s=5.0) == (130, "", "")


@pytest.mark.parametrize("stopped", ["nobody", "worker 1", "coordinator"])
def test_launcher_when_killed_takes_its_children_along(start: Start, stopped: str) -> None:
    cluster = start("watch")
    if stopped != "nobody":
        cluster.send(stopped, signal.SIGSTOP)
    cluster.launcher.kill()
    cluster.assert_all_gone(within_s=5.0)
    assert cluster.error().message == "the launcher (`distopt train`) is gone"
    assert cluster.launcher.communicate()[1].endswith("the launcher (`distopt train`) is gone\n")
