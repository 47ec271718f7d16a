"""Signals become requests, and statuses become words."""

from __future__ import annotations

import signal

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


@pytest.mark.parametrize(
    ("returncode", "text"),
    [(0, "ended with status 0"), (-11, "killed by SIGSEGV"), (-200, "killed by signal 200")],
)
def test_describe_status_names_the_signal(returncode: int, text: str) -> None:
    assert describe_status(returncode) == text
