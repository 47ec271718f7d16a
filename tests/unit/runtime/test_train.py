"""The train loop on the real task: accuracy, evaluation, positions, and the task's failure on one replica."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distopt.checkpoint import DataPosition, TrainingState, from_bytes, state_hash, to_bytes
from distopt.checkpoint.collect import collect_state, restore_state
from distopt.distribute import MirroredStrategy
from distopt.errors import ManifestMismatchError, ReplicaError
from distopt.observe import EpochMetrics, JobInfo, StepRecord, Summary
from distopt.optimizers.engine import set_default_engine
from distopt.replica_context import get_replica_context
from distopt.runtime.config_file import load_config
from distopt.runtime.job import build_job
from distopt.runtime.train import Hooks, TrainLoop
from distopt.tensor import Tensor
from distopt.testing import run_strategy
from distopt.variable import Variable, VariableAggregation, VariableSynchronization

CONFIG = Path(__file__).resolve().parents[3] / "configs" / "digits.toml"


class Memory:
    """A recorder that remembers."""

    def __init__(self) -> None:
        self.info: JobInfo | None = None
        self.records: list[StepRecord] = []
        self.epochs: list[EpochMetrics] = []
        self.states: list[TrainingState] = []
        self.summary: Summary | None = None

    def started(self, info: JobInfo) -> None:
        self.info = info

    def progress(self, step: int, loss: float | None = None) -> None:
        """Nothing."""

    def steps(self, records: Any) -> None:
        self.records += records

    def epoch(self, metrics: EpochMetrics) -> None:
        self.epochs.append(metrics)

    def checkpoint(self, state: TrainingState) -> None:
        self.states.append(state)

    def finished(self, summary: Summary) -> None:
        self.summary = summary


def train(*settings: str, strategy: Any = None, resume: TrainingState | None = None) -> Memory:
    memory = Memory()
    job = build_job(load_config(CONFIG, settings))
    strategy = strategy or MirroredStrategy(job.config.strategy.replicas)
    TrainLoop(job, strategy, Hooks(recorder=memory)).run(resume)
    return memory


def test_mean_test_accuracy_over_five_seeds_is_at_least_096() -> None:
    accuracies = []
    for seed in range(5):
        summary = train(f"seed={seed}", "strategy.replicas=1").summary
        assert summary is not None
        assert summary.test_accuracy is not None
        accuracies.append(summary.test_accuracy)
    assert sum(accuracies) / len(accuracies) >= 0.96, accuracies


@pytest.mark.parametrize("replicas", [1, 2, 3, 5, 8])
def test_evaluation_counts_every_test_sample_once_on_any_number_of_workers(replicas: int) -> None:
    settings = ("data.epochs=1", f"strategy.replicas={replicas}")
    want = train(*settings).epochs
    assert want[0].test_samples == 359
    for workers in (1, 2, 3):

        def worker(strategy: Any) -> list[EpochMetrics]:
            return train(*settings, strategy=strategy).epochs

        for epochs in run_strategy(worker, replicas, workers):
            assert [(e.loss, e.test_loss, e.test_accuracy) for e in epochs] == [
                (e.loss, e.test_loss, e.test_accuracy) for e in want
            ]


def test_records_have_each_step_and_replica_once() -> None:
    records = train("data.epochs=2", "strategy.replicas=5").records
    assert [record.step for record in records] == list(range(24))
    assert all(record.replicas == (0, 1, 2, 3, 4) for record in records)


@pytest.mark.parametrize("step", [7, 12, 19])
def test_resume_from_any_step_ends_with_the_same_state(step: int) -> None:
    whole = train("data.epochs=3", "strategy.replicas=3", f"run.checkpoint_every_steps={step}")
    first = next(state for state in whole.states if state.iterations == step)
    assert first.position == DataPosition(epoch=step // 12, step=step % 12)
    rest = train("data.epochs=3", "strategy.replicas=3", resume=first)
    assert whole.summary is not None
    assert rest.summary is not None
    assert rest.summary.state_hash == whole.summary.state_hash
    assert state_hash(rest.states[-1]) == rest.summary.state_hash


def train_until(settings: Sequence[str], strategy: Any, resume: bytes = b"", stop_at: int = 0) -> tuple[str, bytes]:
    """Train the job from ``resume`` until step ``stop_at``, or to its end; return the hash and the last checkpoint."""
    memory, steps = Memory(), iter(range(1, 100))
    hooks = Hooks(memory, stop_requested=lambda: next(steps) == stop_at)
    loop = TrainLoop(build_job(load_config(CONFIG, settings)), strategy, hooks)
    summary = loop.run(from_bytes(resume, "the state") if resume else None)
    return summary.state_hash, to_bytes(memory.states[-1]) if memory.states else b""


@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 3), (2, 1), (3, 2)])
def test_job_with_dropout_is_resumed_on_other_workers_to_the_same_hash(before: int, after: int) -> None:
    settings = ("task.name=tests.faults.tasks:WithDropout", "data.epochs=1", "strategy.replicas=5", "seed=4")

    run = functools.partial(train_until, settings)
    want, last = run(MirroredStrategy(5))
    drawn = {name: int(n) for name, n in from_bytes(last, "the state").extras.items() if name.startswith("random.")}
    assert drawn == {f"random.{d}.{r}": 12 for d in ("SEEDED_VALUES.3", "VALUES.4") for r in range(5)}
    stopped, *_ = run_strategy(lambda strategy: run(strategy, stop_at=7), 5, before)
    resumed, *_ = run_strategy(lambda strategy: run(strategy, stopped[1]), 5, after)
    assert resumed[0] == want
    other, *_ = run_strategy(lambda strategy: run(strategy, _without_draws(stopped[1])), 5, after)
    assert other[0] != want


AGGREGATIONS = {
    "top_k": ("aggregation.compression={name='top_k', options={ratio=0.05}}",),
    "power_sgd": ("aggregation.compression.name=power_sgd",),
    "median of int8": ("aggregation.name=median", "aggregation.compression.name=int8"),
    "krum of top_k": ("aggregation.name=krum", "aggregation.compression.name=top_k"),
    "local steps": ("aggregation.name=mean", "aggregation.local_steps=4"),
}


@pytest.mark.parametrize(("before", "after"), [(1, 3), (2, 1), (3, 2)])
@pytest.mark.parametrize("name", AGGREGATIONS)
def test_job_with_an_aggregator_is_resumed_on_other_workers_to_the_same_hash(
    name: str, before: int, after: int
) -> None:
    settings = ("data.epochs=1", "strategy.replicas=5", "task.hidden=[16]", *AGGREGATIONS[name])

    run = functools.partial(train_until, settings)
    want, _ = run(MirroredStrategy(5))
    stopped, *_ = run_strategy(lambda strategy: run(strategy, stop_at=7), 5, before)
    resumed, *_ = run_strategy(lambda strategy: run(strategy, stopped[1]), 5, after)
    assert resumed[0] == want
    state = from_bytes(stopped[1], "the state")
    left = {extra: array for extra, array in state.extras.items() if extra.startswith("aggregator.")}
    if name != "local steps":
        assert {f"aggregator.residual.{replica}.0" for replica in range(5)} <= set(left)
        kept = {extra: array for extra, array in state.extras.items() if extra not in left}
        forgotten, _ = run(MirroredStrategy(5), to_bytes(dataclasses.replace(state, extras=kept)))
        assert forgotten != want


def _without_draws(payload: bytes) -> bytes:
    state = from_bytes(payload, "the state")
    kept = {name: array for name, array in state.extras.items() if not name.startswith("random.")}
    return to_bytes(dataclasses.replace(state, extras=kept))


def test_task_that_fails_names_replica_and_step() -> None:
    with pytest.raises(ReplicaError, match=r"replica 5 on rank 0 failed at step 3: ArithmeticError: the data"):
        train("task.name=tests.faults.tasks:FailsOnOneReplica", "strategy.replicas=8")


def test_copies_that_differ_between_workers_are_collected_in_replica_order() -> None:
    """A variable that replicas wrote unaggregated has one hash, wherever the replicas are hosted."""

    def diverged(strategy: Any) -> str | None:
        job = build_job(load_config(CONFIG, ("strategy.replicas=5",)))

        def step() -> None:
            import distopt as tf

            context = tf.distribute.get_replica_context()
            assert context is not None
            variable = job.variables[1]
            gradient = tf.Tensor(variable.numpy() + context.replica_id_in_sync_group)
            job.optimizer.apply_gradients([(gradient, variable)], experimental_aggregate_gradients=False)

        strategy.run(step)
        state = collect_state(job, strategy, DataPosition(epoch=0, step=1))
        return None if state is None else f"{len(state.variables[1].value)} {state_hash(state)}"

    (want,) = run_strategy(diverged, 5, 1)
    assert want is not None
    assert want.startswith("5 ")
    for workers in (2, 3, 5):
        results = run_strategy(diverged, 5, workers)
        assert results == [want] + [None] * (workers - 1)


def test_stop_after_the_last_step_of_an_epoch_can_be_resumed() -> None:
    steps = 0

    def stop() -> bool:
        nonlocal steps
        steps += 1
        return steps == 12

    settings = ("data.epochs=2", "strategy.replicas=2")
    memory = Memory()
    TrainLoop(build_job(load_config(CONFIG, settings)), MirroredStrategy(2), Hooks(memory, stop_requested=stop)).run()
    assert memory.summary is not None
    assert not memory.summary.completed
    assert memory.states[-1].position == DataPosition(epoch=1, step=0)
    resumed, whole = train(*settings, resume=memory.states[-1]).summary, train(*settings).summary
    assert resumed is not None
    assert whole is not None
    assert resumed.state_hash == whole.state_hash


@pytest.mark.parametrize("batch", [8, 29])
def test_both_engines_have_the_same_bits_where_replicas_get_one_row(batch: int) -> None:
    hashes = set()
    for engine in ("numpy", "compiled"):
        set_default_engine(engine)
        summary = train("data.epochs=1", "strategy.replicas=8", f"data.global_batch_size={batch}").summary
        assert summary is not None
        hashes.add(summary.state_hash)
    set_default_engine("compiled")
    assert len(hashes) == 1


def test_copies_that_differ_are_evaluated_by_their_own_replicas() -> None:
    def evaluated(strategy: Any) -> tuple[int, float]:
        job = build_job(load_config(CONFIG, ("strategy.replicas=5",)))
        kernel = job.variables[0]

        def drift() -> None:
            context = get_replica_context()
            assert context is not None
            kernel.assign(Tensor(kernel.numpy() * np.float32(context.replica_id_in_sync_group)))

        strategy.run(drift)
        return TrainLoop(job, strategy, Hooks())._evaluate()

    (want,) = run_strategy(evaluated, 5, 1)
    for workers in (2, 3, 5, 8):
        assert run_strategy(evaluated, 5, workers) == [want] * workers


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_variable_synchronized_on_read_is_saved_as_its_sum_and_restored_as_shares(workers: int) -> None:
    def saved(strategy: Any) -> tuple[Any, Any, Any]:
        job = build_job(load_config(CONFIG, ("strategy.replicas=4",)))
        with strategy.scope():
            seen = Variable(
                np.zeros(2, np.float32),
                synchronization=VariableSynchronization.ON_READ,
                aggregation=VariableAggregation.SUM,
            )
        job.model.seen = seen
        job.optimizer.build(job.variables)

        def count() -> None:
            context = get_replica_context()
            assert context is not None
            seen.assign_add(Tensor(np.float32([context.replica_id_in_sync_group, 2])))

        strategy.run(count)
        state = collect_state(job, strategy, DataPosition(epoch=0, step=0))
        value = None if state is None else [copy.tolist() for copy in state.variables[-1].value]
        seen.assign([0.0, 0.0])
        payload = b"" if state is None else to_bytes(state)
        if strategy.extended.communicator is not None:
            payload = strategy.extended.communicator.broadcast_bytes(payload or None)
        restore_state(from_bytes(payload, "the state"), job, strategy)
        local = [copy.numpy().tolist() for copy in strategy.experimental_local_results(seen)]
        return value, local, None if state is None else state_hash(state)

    (first, *others) = run_strategy(saved, 4, workers)
    assert first[0] == [[6.0, 8.0]]
    assert all(value is None for value, _, _ in others)
    assert [copy for _, local, _ in (first, *others) for copy in local] == [[1.5, 2.0]] * 4
    assert first[2] == run_strategy(saved, 4, 1)[0][2]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda x, y: (x[:-3], y[:-3]), r"number of training samples is \d+ on rank 0 \(as 2 of 3\) and \d+ on rank 1"),
        (lambda x, y: (x, y[::-1]), r"digest of 64 training samples is \w+ on rank 0 \(as 2 of 3\) and \w+ on rank 1"),
        (lambda x, y: (x.astype(np.float64), y), r"kind of training sample is float32\[64\] .* and float64\[64\]"),
    ],
)
def test_data_that_differ_on_one_rank_are_refused_by_all_before_the_first_step(change: Any, match: str) -> None:
    def process(strategy: Any) -> None:
        job = build_job(load_config(CONFIG, []))
        data = job.task.train_data()
        job.task.train_data = lambda: change(*data) if strategy.extended.rank == 1 else data
        with pytest.raises(ManifestMismatchError, match=match):
            TrainLoop(job, strategy, Hooks()).run()

    run_strategy(process, num_replicas=3, num_workers=3)
