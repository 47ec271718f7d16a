"""How a process has ended, of real children that are treated as if they were somebody else's."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from distopt.comm.process_ends import IS_GONE, describe_status, how_it_ended

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="this system has no pidfd")


def kernel() -> tuple[int, ...]:
    return tuple(int(number) for number in platform.release().split("-")[0].split(".")[:2])


@pytest.mark.parametrize(
    ("program", "how"),
    [
        ("kill -9 $$", "was killed by SIGKILL"),
        ("kill -SEGV $$", "was killed by SIGSEGV"),
        ("exit 3", "ended with status 3"),
    ],
)
def test_process_that_ended_is_described_where_the_kernel_tells(program: str, how: str) -> None:
    with subprocess.Popen(["sh", "-c", f"read line; {program}"], stdin=subprocess.PIPE) as child:
        pidfd = os.pidfd_open(child.pid)
        child.communicate(b"go\n")
    try:
        assert how_it_ended(pidfd) == (how if kernel() >= (6, 15) else IS_GONE)
    finally:
        os.close(pidfd)


def test_process_whose_parent_has_not_asked_yet_is_gone() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        pidfd = os.pidfd_open(child.pid)
        try:
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
            assert how_it_ended(pidfd) == IS_GONE
        finally:
            os.close(pidfd)


def test_descriptor_of_something_else_tells_nothing() -> None:
    descriptor = os.open(os.devnull, os.O_RDONLY)
    try:
        assert how_it_ended(descriptor) == IS_GONE
    finally:
        os.close(descriptor)


def test_signal_without_a_name_has_its_number() -> None:
    assert describe_status(-40) == "was killed by signal 40"
