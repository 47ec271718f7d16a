from __future__ import annotations

import threading

from distopt.comm.watchdog import Watchdog


def test_watchdog_names_what_was_not_ended_within_its_limit() -> None:
    stuck: list[str] = []
    called = threading.Event()

    def on_stuck(what: str) -> None:
        stuck.append(what)
        called.set()

    watchdog = Watchdog(0.03, on_stuck, tick_s=0.01)
    watchdog.begin("first")
    watchdog.end()
    watchdog.begin("second")
    assert called.wait(10.0)
    assert stuck == ["second"]


def test_watchdog_is_quiet_about_what_is_ended_or_begun_anew() -> None:
    stuck: list[str] = []
    watchdog = Watchdog(60.0, stuck.append, tick_s=0.001)
    for _ in range(20):
        watchdog.begin("short")
        threading.Event().wait(0.002)
    watchdog.end()
    threading.Event().wait(0.005)
    watchdog.close()
    assert stuck == []


def test_watchdog_takes_a_new_limit() -> None:
    called = threading.Event()
    watchdog = Watchdog(60.0, lambda _: called.set(), tick_s=0.01)
    watchdog.set_limit(0.03)
    watchdog.begin("short")
    assert called.wait(10.0)
