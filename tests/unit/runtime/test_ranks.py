"""A job goes on without the ranks that it loses, in whatever they were when they died, to the same bits."""

from __future__ import annotations

import functools
import gc
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from distopt.comm.communicator import Communicator
from distopt.comm.in_process_faults import KilledByPlan
from distopt.comm.shared_memory import meet_on_host
from distopt.distribute import span_logs
from distopt.distribute.span_logs import SpanLogs
from distopt.errors import ConfigError, PeerLostError
from distopt.runtime.config_file import load_config
from distopt.runtime.ranks import RankOfJob, run_mpi
from distopt.testing import FaultPlan, run_replicas

CONFIG = Path(__file__).parents[3] / "configs" / "digits.toml"
SETTINGS = ("data.epochs=2", "strategy.replicas=5", "task.hidden=[16]", 'numerics.engine="numpy"')
REPLICAS = tuple(range(5))


@pytest.fixture(autouse=True)
def _objects_of_other_tests_stay_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gc, "unfreeze", lambda: None)  # of each rank and attempt; here they share a process


def run(directory: Path, ranks: int, faults: FaultPlan, *settings: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return summary and metrics of a job."""
    config = load_config(CONFIG, [*SETTINGS, *settings, f"run.directory={json.dumps(str(directory))}"])

    def rank(communicator: Communicator) -> None:
        part = RankOfJob(config, None, communicator)
        try:
            part.run()
        finally:
            part.close()

    run_replicas(rank, ranks, timeout_s=60.0, faults=faults, survives_losses=True)
    (folder,) = directory.iterdir()
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return json.loads((folder / "summary.json").read_text()), [json.loads(line) for line in lines]


@functools.cache
def undisturbed(*settings: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        return run(Path(directory), 1, FaultPlan(), *settings)


def check(summary: dict[str, Any], metrics: list[dict[str, Any]], *settings: str) -> None:
    """Compare a job with one that lost nobody: bits, and each step and replica once in the metrics."""
    want, want_metrics = undisturbed(*settings)
    assert summary["state_hash"] == want["state_hash"]
    assert summary["step"] == want["step"] == 24
    assert summary["test_accuracy"] == want["test_accuracy"]
    computed = Counter((line["step"], r) for line in metrics if line["event"] == "step" for r in line["replicas"])
    assert computed == Counter((step, r) for step in range(24) for r in REPLICAS)
    epochs = [[line for line in lines if line["event"] == "epoch"] for lines in (metrics, want_metrics)]
    assert [line["epoch"] for line in epochs[0]] == [0, 1]
    assert [line["test_loss"] for line in epochs[0]] == [line["test_loss"] for line in epochs[1]]


@pytest.mark.parametrize(
    ("victim", "exchange"), [(1, 0), (0, 3), (2, 6), (1, 9), (0, 13), (2, 22), (1, 24), (0, 26), (2, 38), (0, 41)]
)
def test_rank_lost_in_any_exchange_leaves_the_bits_and_each_step_and_replica_once(
    tmp_path: Path, victim: int, exchange: int, capsys: pytest.CaptureFixture[str]
) -> None:
    summary, metrics = run(tmp_path, 3, FaultPlan().kill(rank=victim, exchange=exchange))
    check(summary, metrics)
    assert [each["worker"] for each in summary["lost"]] == [victim]
    assert f"{victim} before step {summary['lost'][0]['step']}" in capsys.readouterr().out


def test_job_that_loses_all_ranks_but_one_ends_with_the_same_bits(tmp_path: Path) -> None:
    plan = FaultPlan().kill(rank=0, exchange=15).kill(rank=3, exchange=17).kill(rank=1, exchange=46)
    summary, metrics = run(tmp_path, 4, plan)
    check(summary, metrics)
    assert sorted(each["worker"] for each in summary["lost"]) == [0, 1, 3]


@pytest.mark.parametrize(
    "settings", [("task.name=tests.faults.tasks:WithDropout",), ("aggregation.local_steps=4", "aggregation.name=mean")]
)
@pytest.mark.parametrize("keep", [0, 7])
def test_state_that_a_lost_rank_had_alone_comes_from_the_last_that_was_kept(
    tmp_path: Path, settings: tuple[str, ...], keep: int
) -> None:
    kept = f"deployment.keep_every_steps={keep}"
    summary, metrics = run(tmp_path, 3, FaultPlan().kill(rank=1, exchange=30), kept, *settings)
    check(summary, metrics, *settings)
    (lost,) = summary["lost"]
    assert lost["step"] % 12 == 0 if keep == 0 else lost["step"] in (1, 7, 14, 21)


@pytest.mark.parametrize("moment", ["saved", "in the middle", "written"])
@pytest.mark.parametrize(("victim", "update", "share"), [(0, 1, 1.0), (1, 7, 0.0), (2, 20, 0.5)])
def test_owner_lost_in_a_block_has_it_ended_by_the_others_and_nothing_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, victim: int, update: int, share: float, moment: str
) -> None:
    settings = ("optimizer.global_clipnorm=0.5", "task.hidden=[100,100,30]")
    carry_out = SpanLogs.carry_out

    def carried_out(logs: Any, place: int, serial: int, steps: Iterable[int], first: int = 0) -> None:
        def going() -> Iterator[int]:
            last = len(logs._spans_of[place]) - 1
            assert last, "there is a span to be saved meanwhile"
            for index, ended in enumerate(steps):
                if place == victim and serial == update and not killed and index == int(share * last):
                    killed.append(place)
                    if moment != "written":
                        logs.put_back(place, serial)  # the update of this span is as good as not begun
                    if moment == "in the middle":
                        for array in logs._arrays_of(logs._spans_of[place][ended]):
                            array[: array.size // 2] = 1e3
                        for saved in logs.saves(place)(ended).targets:
                            saved[saved.size // 2 :] = 1e4
                    raise KilledByPlan("was killed in its block")
                yield ended

        carry_out(logs, place, serial, going(), first)

    killed: list[int] = []
    monkeypatch.setattr(SpanLogs, "carry_out", carried_out)
    monkeypatch.setattr(span_logs, "SPAN_BYTES", 256)
    summary, metrics = run(tmp_path, 3, FaultPlan(), 'deployment.placement="sharded"', *settings)
    assert killed == [victim]
    check(summary, metrics, *settings)
    (lost,) = summary["lost"]
    assert (lost["worker"], lost["step"]) == (victim, update)


def test_job_whose_gradients_leave_early_ends_with_the_same_bits(tmp_path: Path) -> None:
    mathematics = ("task.hidden=[300,300]", "data.epochs=1")
    options = ("overlap=true", "bytes_per_pack=65536")
    settings = [*SETTINGS, *mathematics, *(f"deployment.communication.{option}" for option in options)]
    config = load_config(CONFIG, [*settings, f"run.directory={json.dumps(str(tmp_path))}"])

    def rank(communicator: Communicator) -> int:
        group = communicator._host_group = meet_on_host(communicator, namespace=f"host {communicator.rank > 0}")
        communicator.shares_memory = True
        part = RankOfJob(config, None, communicator)
        try:
            part.run()
        finally:
            part.close()
            group.close()
        return communicator.traffic.early_bytes

    assert all(run_replicas(rank, 3, timeout_s=60.0))
    (folder,) = tmp_path.iterdir()
    found = json.loads((folder / "summary.json").read_text())["state_hash"]
    assert found == undisturbed(*mathematics)[0]["state_hash"]


def test_ranks_that_are_told_to_communicate_in_different_ways_are_refused(tmp_path: Path) -> None:
    def rank(communicator: Communicator) -> None:
        communicator.shares_memory = True
        own = f"deployment.communication.bytes_per_pack={4096 + communicator.rank}"
        config = load_config(CONFIG, [*SETTINGS, own, f"run.directory={json.dumps(str(tmp_path))}"])
        RankOfJob(config, None, communicator).run()

    with pytest.raises(ConfigError, match=r"^deployment: .* bytes_per_pack is 4096 on rank 0 and 4097 on rank 1"):
        run_replicas(rank, 2)


def test_overlap_where_losses_are_survived_is_refused_before_mpi_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distopt.runtime.ranks.lets_survivors_live", lambda: True)
    config = load_config(CONFIG, ["deployment.communication.overlap=true"])
    with pytest.raises(ConfigError, match=r"overlap = true and deployment.survive_losses = true exclude each other"):
        run_mpi(config, None)


def test_loss_ends_the_job_where_the_launcher_ends_the_others(tmp_path: Path) -> None:
    config = load_config(CONFIG, [*SETTINGS, f"run.directory={json.dumps(str(tmp_path))}"])
    with pytest.raises(PeerLostError, match="rank 1 was killed"):
        run_replicas(lambda c: RankOfJob(config, None, c).run(), 2, faults=FaultPlan().kill(rank=1, exchange=20))
