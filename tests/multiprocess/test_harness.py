"""The harness itself: it ends what does not end, and tells of what is left."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import pytest

from tests.multiprocess.harness import run_job, start_job

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.skipif(sys.platform != "linux", reason="the harness reads /proc"),
]

FORGETFUL = """
from subprocess import DEVNULL, Popen
child = Popen(["sl" + "eep", "60"], start_new_session=True, stdout=DEVNULL, stderr=DEVNULL)
print("child", child.pid, flush=True)
"""
"""In two parts, so that the word is among the child's arguments alone."""


def test_run_job_returns_status_and_output() -> None:
    program = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(5)"
    result = run_job([sys.executable, "-c", program], limit_s=30.0)
    assert (result.status, result.stdout, result.stderr) == (5, "out\n", "err\n")


def test_run_job_that_dies_of_a_signal_has_the_status_of_a_shell() -> None:
    result = run_job([sys.executable, "-c", "import os; os.kill(os.getpid(), 15)"], limit_s=30.0)
    assert result.status == 128 + signal.SIGTERM


def test_run_job_beyond_its_limit_is_killed_and_fails_with_its_output() -> None:
    started_s = time.monotonic()
    with pytest.raises(AssertionError, match=r"(?s)longer than 1 s.*--- stdout\nbefore\n"):
        run_job([sys.executable, "-c", "print('before', flush=True); import signal; signal.pause()"], limit_s=1.0)
    assert time.monotonic() - started_s < 10.0


def test_job_that_leaves_a_process_in_another_session_fails_and_kills_it() -> None:
    pids = []

    def forget() -> None:
        with start_job([sys.executable, "-c", FORGETFUL], limit_s=30.0) as job:
            pids.append(int(job.wait_for_line("child")[0].split()[1]))
            assert job.find(argument="sleep").pid == pids[0]

    with pytest.raises(AssertionError, match=r"(?s)processes outlived the job: \[Process.*sleep"):
        forget()
    assert not Path(f"/proc/{pids[0]}/cwd").exists()


@pytest.mark.parametrize(("name", "text"), [("distopt_test.left", ""), ("open_mpi.9876", "something")])
def test_job_that_leaves_a_file_in_shared_memory_fails(name: str, text: str) -> None:
    path = Path("/dev/shm") / name
    program = f"open('{path}', 'w').write('{text}')"
    try:
        with pytest.raises(AssertionError, match=rf"the job left \['{path}'\]"):
            run_job([sys.executable, "-c", program], limit_s=30.0)
    finally:
        path.unlink()


def test_job_killed_while_open_mpi_looks_whether_it_can_make_a_file_has_left_nothing() -> None:
    path = Path("/dev/shm/open_mpi.9876")
    try:
        assert run_job([sys.executable, "-c", f"open('{path}', 'w').close()"], limit_s=30.0).status == 0
    finally:
        path.unlink()


def test_job_line_that_never_comes_fails_when_the_output_ends() -> None:
    with (
        pytest.raises(AssertionError, match="0 lines with 'never' in stdout"),
        start_job([sys.executable, "-c", "print('something else')"], limit_s=30.0) as job,
    ):
        job.wait_for_line("never")


def test_job_line_in_a_file_is_found_when_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "log"
    program = f"open({str(path)!r}, 'w').write('one\\nstep 3\\n')"
    with start_job([sys.executable, "-c", program], limit_s=30.0) as job:
        assert job.wait_for_line_in(path, r"step \d") == ["step 3"]
        job.wait()
