"""MPI ranks as real processes: the same bits, and an end within a limit whatever happens to one of them."""

from __future__ import annotations

import re
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.emulated_hosts import emulated_hosts, why_not
from tests.multiprocess.harness import JobResult, mpirun, run_job, start_job

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.skipif(sys.platform != "linux", reason="real MPI jobs are tested on Linux"),
]

PROGRAMS = str(Path(__file__).with_name("mpi_programs.py"))


def errors_of(result: JobResult) -> list[str]:
    """Return the errors of ours that ranks printed, wherever the launcher put them among its own lines."""
    return re.findall(
        r"\b(?:PeerLost|MergeOrder|JobAborted|CollectiveTimeout|RemoteProtocol|Distopt)Error: .*", result.stderr
    )


def test_combine_under_mpirun_has_the_same_bits_for_any_number_of_ranks() -> None:
    result = run_job(mpirun(8, [PROGRAMS, "bits"]), limit_s=60.0)
    assert result.status == 0, result
    lines = re.findall(r"size (\d) hash (\w+) sent (\d+)", result.stdout)
    assert Counter(size for size, _, _ in lines) == {"8": 8, "5": 10, "3": 3, "2": 2, "1": 1}, result
    assert all((int(sent) > 70_000) == (size != "1") for size, _, sent in lines), result
    assert len({value for _, value, _ in lines}) == 1


@pytest.mark.parametrize(("num_ranks", "options"), [(2, ("--with-ft", "ulfm")), (5, ())])
def test_rank_killed_in_an_exchange_ends_the_job_with_errors_that_name_it(
    num_ranks: int, options: tuple[str, ...]
) -> None:
    launcher, *rest = mpirun(num_ranks, [PROGRAMS, "steps_without_end"])
    with start_job([launcher, *options, *rest], limit_s=40.0) as job:
        job.wait_for_line("is ready", count=num_ranks)
        victim = job.find(mpi_rank=1)
        started_s = time.monotonic()
        job.kill(victim)
        result = job.wait()
    assert time.monotonic() - started_s < 10.0
    assert result.status != 0
    errors = errors_of(result)
    # MPICH's launcher may kill the survivors before they can say anything; it names the process itself.
    assert errors or f"PID {victim.pid} RUNNING AT" in result.stdout, result
    for error in errors:
        assert re.search(rf"rank 1 \(pid {victim.pid}\) (is gone|was killed by SIGKILL) at step \d+", error), result


def test_rank_stopped_in_an_exchange_ends_the_job_with_errors_that_name_it() -> None:
    with start_job(mpirun(3, [PROGRAMS, "steps_without_end"]), limit_s=60.0) as job:
        job.wait_for_line("is ready", count=3)
        victim = job.find(mpi_rank=2)
        started_s = time.monotonic()
        job.stop(victim)
        result = job.wait()
    assert time.monotonic() - started_s < 15.0
    assert result.status != 0
    assert any(
        re.search(rf"rank 2 \(pid {victim.pid}\) has been stopped for \d\.\d s at step \d+; .*: combine", error)
        for error in errors_of(result)
    ), result


def test_rank_that_fails_ends_the_job_with_its_reason() -> None:
    result = run_job(mpirun(3, [PROGRAMS, "one_rank_raises"]), limit_s=20.0)
    assert result.status == 3, result
    errors = errors_of(result)
    assert "DistoptError: the third of anything" in errors
    assert all("the third of anything" in error for error in errors), result


def test_rank_that_exits_early_is_named_by_those_that_wait_for_it() -> None:
    result = run_job(mpirun(3, [PROGRAMS, "one_rank_leaves"]), limit_s=20.0)
    assert result.status == 3, result
    assert any("rank 1 left at step 0; rank" in error and "barrier" in error for error in errors_of(result)), result


def test_rank_that_is_done_before_others_hears_that_they_are_too() -> None:
    result = run_job(mpirun(3, [PROGRAMS, "ranks_are_done_one_after_the_other", "3.0"]), limit_s=20.0)
    assert result.status == 0, result
    assert "leaving" not in result.stderr, result


def test_rank_that_comes_late_or_never_is_named_with_phase_and_lateness() -> None:
    result = run_job(mpirun(3, [PROGRAMS, "one_rank_is_absent", "2.0"]), limit_s=20.0)
    assert result.status == 3, result
    late = r"rank 1 came 1\.\d s later than the median of the others in phase 'gradient' at step 3: barrier"
    assert len(re.findall(late, result.stderr)) == 2, result
    absent = (
        r"CollectiveTimeoutError: rank [02] waited 2\.\d s in step 4 for rank 1: broadcast_bytes from rank 1; "
        r"rank 1 would come 2\.\d s later than the median of the others in phase 'gradient'"
    )
    assert any(re.search(absent, error) for error in errors_of(result)), result


def test_ranks_that_wait_for_each_other_in_different_calls_all_say_who_is_where() -> None:
    result = run_job(mpirun(3, [PROGRAMS, "one_rank_is_elsewhere", "60.0"]), limit_s=30.0)
    assert result.status == 3, result
    errors, calls = errors_of(result), "rank 0 (as 2 of 3) comes to 'the update' where rank 1 comes to 'barrier'"
    assert any(error.startswith(f"MergeOrderError: {calls}") for error in errors), result
    assert all(calls in error for error in errors), result


@pytest.mark.parametrize(("program", "num_ranks"), [("dead_before_mpi", 2), ("dead_inside_of_mpi", 3)])
def test_rank_lost_before_mpi_is_initialized_ends_the_job_with_an_error_that_names_it(
    program: str, num_ranks: int
) -> None:
    launcher, *rest = mpirun(num_ranks, [PROGRAMS, program])
    result = run_job([launcher, "--with-ft", "ulfm", *rest], limit_s=40.0)
    assert result.status != 0, result
    (error,) = re.findall("distopt: error: .*", result.stderr)
    known = r"\(pid \d+( on \S+)?\) (is gone|was killed by (SIGKILL|a signal))|ended before rank [02] looked for it"
    assert re.search(rf"rank 1 ({known}), before step 0; rank", error), result
    assert result.seconds < 10.0, result
    if program == "dead_before_mpi":  # without ULFM the launcher ends the others, and names it
        result = run_job([launcher, *rest], limit_s=20.0)
        assert result.status != 0, result
        assert re.search(r"rank 1 .*\n?.*signal 9", result.stdout + result.stderr), result


@pytest.mark.skipif(bool(why_not()), reason=why_not())
def test_only_rank_of_a_host_that_is_lost_before_mpi_is_initialized_is_named_within_seconds() -> None:
    with emulated_hosts(2) as hosts:
        *inside, command = hosts.mpirun([1, 1], [sys.executable, PROGRAMS, "dead_before_mpi"])
        result = run_job([*inside, command.replace("mpirun ", "mpirun --with-ft ulfm ", 1)], limit_s=40.0)
    assert result.status != 0, result
    (error,) = re.findall("distopt: error: .*", result.stderr)
    assert re.search(r"rank 1 \(pid \d+ on \w+h1\) was killed by a signal, before step 0; rank 0 waited", error), result
    assert result.seconds < 10.0, result


@pytest.mark.skipif(bool(why_not()), reason=why_not())
def test_only_rank_next_to_mpirun_that_never_comes_is_named_by_the_other_host() -> None:
    with emulated_hosts(2) as hosts:
        *inside, command = hosts.mpirun([1, 1], [sys.executable, PROGRAMS, "first_dead_before_mpi", "3.0"])
        result = run_job([*inside, command.replace("mpirun ", "mpirun --with-ft ulfm ", 1)], limit_s=20.0)
    assert result.status != 0, result
    (error,) = re.findall("distopt: error: .*", result.stderr)
    assert re.search(r"ranks came: rank 0 \(on \w+h0\) has not been heard of, before step 0; rank 1 waited", error), (
        result
    )


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_error_of_all_ranks_is_a_status_also_where_survivors_live(num_ranks: int) -> None:
    launcher, *rest = mpirun(num_ranks, [PROGRAMS, "every_rank_raises"])
    result = run_job([launcher, "--with-ft", "ulfm", *rest], limit_s=20.0)
    assert result.status == 3, result
    assert "DistoptError: the same everywhere" in errors_of(result), result


def test_rank_killed_while_all_leave_changes_nothing_where_survivors_live() -> None:
    launcher, *rest = mpirun(3, [PROGRAMS, "one_rank_is_killed_as_all_leave"])
    result = run_job([launcher, "--with-ft", "ulfm", *rest], limit_s=20.0)
    assert result.status == 0, result
    assert not result.stderr.strip(), result


def test_ranks_that_disagree_on_lengths_are_refused() -> None:
    result = run_job(mpirun(2, [PROGRAMS, "lengths_differ"]), limit_s=20.0)
    assert result.status == 3, result
    assert any(error.startswith("RemoteProtocolError") for error in errors_of(result)), result


def test_ranks_that_disagree_on_the_number_of_messages_are_refused_long_before_a_wait_is_over() -> None:
    launcher, *rest = mpirun(3, [PROGRAMS, "numbers_of_pieces_differ"])
    # Where ranks read each other's memory (cma), Open MPI writes what is too long behind the end of the buffer.
    result = run_job([launcher, "--mca", "smsc", "^cma", *rest], limit_s=20.0)
    assert result.status == 3, result
    assert any(error.startswith("RemoteProtocolError") for error in errors_of(result)), result


def test_rank_that_comes_late_does_not_hold_what_was_sent_to_it() -> None:
    launcher, *rest = mpirun(2, [PROGRAMS, "one_rank_is_sent_much_before_it_comes"])
    result = run_job([launcher, "--mca", "btl", "tcp,self", *rest], limit_s=40.0)
    assert result.status == 0, result
    grown = dict(re.findall(r"rank (\d) grew by (\d+) MB", result.stdout))
    assert grown.keys() == {"0", "1"}, result
    assert all(int(megabytes) < 60 for megabytes in grown.values()), result


def test_job_ends_in_peace_with_sums_under_way_that_nobody_waits_for() -> None:
    result = run_job(mpirun(2, [PROGRAMS, "gradient_is_never_applied"]), limit_s=40.0)
    assert result.status == 0, result
    # Each of two hosts sends about half of three gradients of 1 MB; nothing leaves early in the first step.
    assert re.search(r"rank 0: (1[45]\d{5}) bytes left early, then \1\b", result.stdout), result
    assert re.search(r"rank 1: 1[45]\d{5} bytes left early, then 0\b", result.stdout), result


def test_launcher_killed_takes_its_ranks_with_it() -> None:
    with start_job(mpirun(3, [PROGRAMS, "steps_without_end"]), limit_s=40.0) as job:
        job.wait_for_line("is ready", count=3)
        job.kill(job.process.pid)
        assert job.wait().status == 128 + 9


def test_mpi_missing_is_an_error_that_says_what_to_install() -> None:
    program = "from distopt.comm.mpi import MpiCommunicator; MpiCommunicator()"
    result = run_job([sys.executable, "-c", program], limit_s=30.0, env={"MPI4PY_LIBMPI": "/nonexistent/libmpi.so"})
    assert result.status == 1
    assert "EndpointError: MPI cannot be loaded; install one with `pip install 'distopt[mpi]'`" in result.stderr, result


def test_conformance_suite_passes_under_mpirun() -> None:
    argv = [
        "-m",
        "mpi4py",
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "tests/conformance/test_communicator.py",
        "tests/conformance/test_host_group.py",
        "tests/conformance/test_distribute.py",
        "tests/conformance/test_recorded_traces.py",
        "tests/conformance/test_several_hosts.py",
        "tests/conformance/test_overlap.py",
        "-k",
        "not parameter_server and not training_has",
    ]
    result = run_job(mpirun(3, argv), limit_s=110.0)
    assert result.status == 0, result
    assert len(re.findall(r"\d+ passed", result.stdout)) == 3, result
