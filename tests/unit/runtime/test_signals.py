"""Signals become requests, and statuses become words."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from distopt.runtime.signals import describe_status, ignore_interrupts, interrupts_blocked, stop_on_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stop_on_signals_turns_the_first_into_a_request(number: signal.Signals) -> None:
    earlier = signal.getsignal(number)
    with stop_on_signals() as stop:
        assert not stop.requested
        signal.raise_signal(number)
        assert stop.requested
    assert signal.getsignal(number) is earlier


def test_interrupts_blocked_delivers_them_afterwards() -> None:
    with stop_on_signals() as stop:
        with interrupts_blocked():
            signal.raise_signal(signal.SIGINT)
            assert not stop.requested
        assert stop.requested


def test_ignore_interrupts_drops_one_that_was_held_back() -> None:
    earlier = signal.getsignal(signal.SIGINT)
    try:
        with interrupts_blocked():
            signal.raise_signal(signal.SIGINT)
            ignore_interrupts()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, earlier)


CRASH = """
import ctypes, resource
from distopt.runtime.signals import last_words

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
with last_words(lambda: {words}):
    if {inside}:
        ctypes.string_at(0)
ctypes.string_at(0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="for MPI jobs that survive losses")
@pytest.mark.parametrize(
    ("inside", "words", "status", "errors"),
    [
        (True, "'MPI crashed'", 1, "distopt: error: MPI crashed\n"),
        (True, "None", -signal.SIGKILL, ""),
        (True, "1 / 0", -signal.SIGKILL, ""),
        (False, "'MPI crashed'", -signal.SIGSEGV, ""),
    ],
)
def test_crash_has_last_words_inside_of_the_block_alone(inside: bool, words: str, status: int, errors: str) -> None:
    program = CRASH.format(inside=inside, words=words)
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60.0)
    assert (result.returncode, result.stderr) == (status, errors)


@pytest.mark.parametrize(
    ("returncode", "text"),
    [(0, "ended with status 0"), (-11, "killed by SIGSEGV"), (-200, "killed by signal 200")],
)
def test_describe_status_names_the_signal(returncode: int, text: str) -> None:
    assert describe_status(returncode) == text
