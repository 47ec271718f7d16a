"""Hosts that benchmarks emulate are gone, with all that ran on them, when the benchmark is told to end."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys

import pytest

from benchmarks.emulated_hosts import why_not
from tests.multiprocess.harness import start_job

pytestmark = [pytest.mark.multiprocess, pytest.mark.skipif(bool(why_not()), reason=why_not())]

PROGRAM = """
import subprocess
from benchmarks.emulated_hosts import emulated_hosts

try:
    with emulated_hosts(2) as hosts:
        subprocess.Popen(hosts.inside(1, ["sleep", "60"]))
        print("made", *hosts.namespaces, flush=True)
        subprocess.run(hosts.inside(0, ["sleep", "60"]), capture_output=True)
    print("went on")
except RuntimeError as error:
    print("cannot", error)
"""


@pytest.mark.parametrize("times", [1, 1000])
def test_emulated_hosts_are_gone_after_sigterm_however_often(times: int) -> None:
    with start_job([sys.executable, "-c", PROGRAM], limit_s=30.0) as job:
        (line,) = job.wait_for_line("^(made|cannot) ")
        if line.startswith("cannot"):
            pytest.skip(line)
        while times and job.process.poll() is None:
            job.process.send_signal(signal.SIGTERM)
            times -= 1
            with contextlib.suppress(subprocess.TimeoutExpired):
                job.process.wait(1e-3)
        result = job.wait()
    assert result.status == 128 + signal.SIGTERM, result
    assert "went on" not in result.stdout
    assert result.seconds < 10.0
    left = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    assert not [name for name in line.split()[1:] if name in left]
