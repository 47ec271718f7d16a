from __future__ import annotations

import pytest

from distopt.errors import ConfigError
from distopt.observe import ErrorRecord
from distopt.runtime.restarts import check_restarts, run_with_restarts
from distopt.runtime.signals import INTERRUPTED


def run(statuses: list[int], restarts: int, kind: str | None) -> tuple[int, list[str]]:
    """Return the status, and what was said, of attempts that end as ``statuses`` say."""
    said: list[str] = []
    record = None if kind is None else ErrorRecord(who="rank 1", kind=kind, message="it ended")
    return run_with_restarts(lambda number: statuses[number], restarts, lambda: record, said.append), said


def test_losses_are_followed_by_restarts_until_one_attempt_succeeds() -> None:
    status, said = run([1, 137, 0, 1], 3, "PeerLostError")
    assert status == 0
    assert said == ["restart 1 of 3, from the last checkpoint", "restart 2 of 3, from the last checkpoint"]


def test_processes_that_die_without_a_word_are_a_loss() -> None:
    assert run([137, 0], 1, None) == (0, ["restart 1 of 1, from the last checkpoint"])


def test_no_more_restarts_than_asked_for() -> None:
    assert run([1, 1, 7, 0], 2, "PeerLostError")[0] == 7


@pytest.mark.parametrize("kind", ["ReplicaError", "ConfigError", "OSError"])
def test_errors_that_would_come_again_end_the_job(kind: str) -> None:
    assert run([1, 0], 1, kind) == (1, [])


def test_a_job_that_was_interrupted_is_not_started_again() -> None:
    assert run([INTERRUPTED, 0], 1, "PeerLostError") == (INTERRUPTED, [])


def test_restarts_without_anyone_to_make_them_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMPI_COMM_WORLD_RANK", raising=False)
    monkeypatch.delenv("PMI_RANK", raising=False)
    check_restarts(0, "process")
    check_restarts(2, "cluster")
    with pytest.raises(ConfigError, match="nobody is left"):
        check_restarts(2, "process")
    monkeypatch.setenv("PMI_RANK", "1")
    monkeypatch.setenv("PMI_SIZE", "4")
    with pytest.raises(ConfigError, match="leave mpirun out:"):
        check_restarts(2, "mpi")
