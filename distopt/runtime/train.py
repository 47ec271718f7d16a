"""The train loop: the same one in every deployment; strategies decide what crosses a process.

What a step computes is a function of (job, step): the rows come from (seed, epoch, step), chunk j belongs to replica j,
the loss divides by the true size of the global batch. So the loop can start at any step of any epoch.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from distopt import checkpoint, nn, ops, random, sampling
from distopt.aggregation import note_samples
from distopt.autodiff.tape import GradientTape
from distopt.checkpoint import DataPosition, TrainingState, state_hash
from distopt.checkpoint.collect import collect_state, has_state_of_replicas, local_state, restore_state
from distopt.comm.communicator import Communicator
from distopt.distribute import Strategy
from distopt.distribute.datasets import hosted_rows
from distopt.distribute.optimizer_settings import describe_differing
from distopt.distribute.values import PerReplica
from distopt.errors import DistoptError, ManifestMismatchError, ReplicaError
from distopt.observe import EpochMetrics, JobInfo, Recorder, StepRecord, Summary, log_progress
from distopt.runtime.job import Job
from distopt.runtime.ledger import LossLedger, Sums, united
from distopt.runtime.memory import JobMemory, Kept
from distopt.types import Array

_ROWS_COMPARED = 64


def _described(kind: str, *arrays: Array) -> dict[str, str]:
    """Return what processes compare of the samples of one kind: how many, of which shapes, and what some hold."""
    num_samples = len(arrays[0])
    rows = np.linspace(0, num_samples - 1, min(num_samples, _ROWS_COMPARED)).astype(np.intp)
    digest = 0
    for array in arrays:
        looked_at = np.ascontiguousarray(array[rows])
        digest = zlib.crc32(
            repr(looked_at.tolist()).encode() if looked_at.dtype.hasobject else looked_at.tobytes(), digest
        )
    return {
        f"number of {kind} samples": str(num_samples),
        f"kind of {kind} sample": " and ".join(f"{array.dtype.name}{list(array.shape[1:])}" for array in arrays),
        f"digest of {len(rows)} {kind} samples": f"{digest:08x}",
    }


@dataclass
class Hooks:
    """How the loop meets the process that it runs in."""

    recorder: Recorder | None = None
    """Set on the chief alone."""
    deployment: str = "process"
    """What the job's record calls the deployment."""
    num_servers: int = 0
    progress: Callable[[int, str], None] = lambda _step, _phase: None
    """Told at which step the process is, and in which phase."""
    stop_requested: Callable[[], bool] = lambda: False
    """Asked after every step; the answer must be the same in every process of the job."""
    memory: JobMemory | None = None
    """What the process remembers of an earlier loop, which lost other processes."""


class TrainLoop:
    """One process's part in a job."""

    def __init__(self, job: Job, strategy: Strategy, hooks: Hooks) -> None:
        self._job = job
        self._strategy = strategy
        self._hooks = hooks
        self._x, self._y = job.task.train_data()
        self._test_x, self._test_y = job.task.test_data()
        extended = strategy.extended
        self._memory = hooks.memory or JobMemory(extended.rank)
        self._traffic = (0, 0)
        self._ledger = LossLedger(extended.hosting, extended.rank, extended.communicator)
        self._position: DataPosition | None = None
        """After the last step that is done here; None until the state is there."""
        self._steps_per_epoch = sampling.num_steps(len(self._x), job.config.data.global_batch_size)
        self._parts_of: dict[int, list[slice]] = {}
        self._accuracy = None if self._memory.metrics is None else self._memory.metrics.test_accuracy
        aggregator = job.optimizer.gradient_aggregator
        self._takes_means = getattr(aggregator, "of_means", False)
        self._by_samples = getattr(aggregator, "by_samples", False)

    def run(self, resume: TrainingState | None = None) -> Summary:
        """Train from the start, or from ``resume``, to the end of the last epoch or to an agreed stop.

        Raises: ReplicaError if the task's code fails on a replica; what the transports raise.
        """
        self._compare_data()
        with random.draw_from(self._job.streams):
            return self._run(resume)

    def _compare_data(self) -> None:
        """Refuse to train on data that are not those of the other processes, by their lengths and some of their rows.

        Raises: ManifestMismatchError that names the rank that differs from most; the same on every process.
        """
        communicator: Communicator | None = self._strategy.extended.communicator
        if communicator is None or communicator.size == 1:
            return
        own = {
            **_described("training", self._x, self._y),
            **_described("test", self._test_x, self._test_y),
        }
        told = communicator.all_gather_bytes(msgspec.json.encode(own), what="comparing the data")
        lines = describe_differing([msgspec.json.decode(of_rank, type=dict[str, str]) for of_rank in told])
        if lines:
            raise ManifestMismatchError(f"the data of the processes differ: {lines}; give all of them the same")

    def _run(self, resume: TrainingState | None) -> Summary:
        job, config = self._job, self._job.config
        position = DataPosition(epoch=0, step=0)
        if resume is not None:
            restore_state(resume, job, self._strategy)
            position = resume.position
        batch_size, epochs = config.data.global_batch_size, config.data.epochs
        num_samples = len(self._x)
        steps_per_epoch = self._steps_per_epoch
        step = self.steps_at(position)
        self._started(step, steps_per_epoch)
        self._position = position
        every = config.run.checkpoint_every_steps
        communicator = self._strategy.extended.communicator
        survives = communicator is not None and communicator.survives_losses
        keep_every = config.deployment.keep_every_steps if survives else 0
        first = step
        hooks = self._hooks
        started, trained, stopped = time.perf_counter(), 0, False
        for epoch in range(position.epoch, epochs):
            epoch_started, before = time.perf_counter(), trained
            order = sampling.epoch_permutation(config.seed, epoch, num_samples)
            for step_in_epoch in range(position.step, steps_per_epoch):
                hooks.progress(step, "gradient")
                rows = order[step_in_epoch * batch_size : (step_in_epoch + 1) * batch_size]
                if step + 1 == epochs * steps_per_epoch:
                    job.optimizer.complete_accumulation()
                self._train_step(rows, step)
                step += 1
                trained += len(rows)
                self._position = DataPosition(epoch=epoch, step=step_in_epoch + 1)
                if hooks.recorder is not None:
                    hooks.recorder.progress(step)
                if hooks.stop_requested():
                    stopped = True
                    break
                if every and step % every == 0 and step_in_epoch + 1 < steps_per_epoch:
                    self._checkpoint(self._position)
                if keep_every and (step % keep_every == 0 or step == first + 1):
                    self._keep(self._position)
            if stopped and step_in_epoch + 1 < steps_per_epoch:
                position = DataPosition(epoch=epoch, step=step_in_epoch + 1)
            else:
                position = DataPosition(epoch=epoch + 1, step=0)
                self._finish_epoch(epoch, step, (trained - before) / (time.perf_counter() - epoch_started))
                self._position = position
            if stopped or self._checkpoint_is_due(epoch):
                self._checkpoint(position)
            if stopped:
                break
        seconds = time.perf_counter() - started
        self._send_records(step)
        state = collect_state(job, self._strategy, position)
        summary = Summary(
            completed=not stopped,
            epoch=position.epoch,
            step=step,
            test_accuracy=self._accuracy,
            samples_per_s=trained / seconds if seconds > 0 else 0.0,
            seconds=seconds,
            state_hash=state_hash(state) if state is not None else "",
            lost=tuple(self._memory.lost),
        )
        if self._hooks.recorder is not None:
            self._hooks.recorder.finished(summary)
        return summary

    def _started(self, step: int, steps_per_epoch: int) -> None:
        job, extended, memory = self._job, self._strategy.extended, self._memory
        memory.history.begin(step, memory.workers or range(len(extended.hosting.hosted)), extended.hosting.hosted)
        self._ledger.restore(step, {} if memory.kept is None else memory.kept.sums)
        if self._hooks.recorder is None:
            return
        self._hooks.recorder.started(
            JobInfo(
                name=job.config.name,
                deployment=self._hooks.deployment,
                replicas=extended.hosting.num_replicas,
                workers=len(extended.hosting.hosted),
                servers=self._hooks.num_servers,
                epochs=job.config.data.epochs,
                steps_per_epoch=steps_per_epoch,
                num_parameters=sum(int(np.prod(v.shape)) for v in job.variables),
                engine=job.config.numerics.engine,
                resumed_at_step=step,
            )
        )

    def _train_step(self, rows: Array, step: int) -> None:
        extended = self._strategy.extended
        if extended.communicator is not None:
            extended.communicator.step, extended.communicator.step_is_told = step, True
        count = len(rows)
        arguments = []
        for replica, part in zip(extended.hosted or (None,), self._parts(count), strict=True):
            own = rows[part]
            arguments.append((self._x.take(own, 0), self._y.take(own, 0), count, replica))
        self._ledger.begin(step)
        try:
            extended.run_replicas(self._replica_step, arguments)
        except _ReplicaFailure as failure:
            raise ReplicaError(
                f"replica {failure.replica} on rank {extended.rank} failed at step {step}: "
                f"{type(failure.cause).__name__}: {failure.cause}"
            ) from failure.cause
        self._record(step)

    def _replica_step(self, x: Array, y: Array, global_batch_size: int, replica: int | None) -> None:
        """Make a step as ``replica``; None: as a stand-in, which has no rows."""
        job = self._job
        variables = job.variables
        try:
            with GradientTape() as tape:
                losses = job.task.per_example_loss(job.model, x, y)
                if self._by_samples:
                    note_samples(len(x))
                if self._takes_means:
                    loss = ops.reduce_sum(losses) / max(len(x), 1)
                else:
                    loss = nn.compute_average_loss(losses, global_batch_size=global_batch_size)
            gradients = tape.gradient(loss, variables)
            if replica is not None:  # before the gradients are told to anyone; see LossLedger
                share = len(x) / global_batch_size if self._takes_means else 1.0
                self._ledger.add(replica, float(loss) * share * global_batch_size, len(x))
            job.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        except DistoptError:
            raise
        except Exception as error:
            raise _ReplicaFailure(error) from error

    def _parts(self, length: int) -> list[slice]:
        """Return the rows of a batch of ``length`` that each replica context of this process gets."""
        found = self._parts_of.get(length)
        if found is None:
            found = self._parts_of[length] = hosted_rows(length, self._strategy.extended)
        return found

    def _record(self, step: int) -> None:
        extended = self._strategy.extended
        sent = received = 0
        if extended.communicator is not None:
            traffic = extended.communicator.traffic
            sent, received = traffic.bytes_sent - self._traffic[0], traffic.bytes_received - self._traffic[1]
            self._traffic = (traffic.bytes_sent, traffic.bytes_received)
        self._memory.history.note(step, sent, received, extended.phases.take())

    def _finish_epoch(self, epoch: int, step: int, rate: float) -> None:
        self._hooks.progress(step, "evaluate")
        self._send_records(step)
        extended = self._strategy.extended
        total, samples = extended.all_reduce_arrays("SUM", PerReplica(self._ledger.own() or [np.zeros(2)]))
        loss = float(total) / float(samples) if samples else float("nan")
        self._ledger.clear()
        correct, test_loss = self._evaluate()
        count = len(self._test_x)
        self._accuracy = correct / count
        workers = len(extended.hosting.hosted)
        metrics = EpochMetrics(epoch, step, loss, test_loss / count, self._accuracy, count, rate, workers)
        self._memory.metrics = metrics
        log_progress(epoch=epoch, step=step, loss=loss, test_accuracy=self._accuracy)
        if self._hooks.recorder is not None:
            self._hooks.recorder.epoch(metrics)

    def _evaluate(self) -> tuple[int, float]:
        """Return how many test samples are classified right, and their summed loss; each sample counts once.

        Each replica does its part, with its own copy of variables that are split.
        """
        extended = self._strategy.extended
        arguments = [(self._test_x[part], self._test_y[part]) for part in self._parts(len(self._test_x))]
        figures = extended.run_replicas(self._count_correct, arguments)
        extended.phases.take()  # it is no part of a step
        correct, loss = extended.all_reduce_arrays("SUM", PerReplica(figures))
        return int(correct), float(loss)

    def _count_correct(self, x: Array, y: Array) -> Array:
        right, per_example = self._job.task.count_correct(self._job.model, x, y)
        return np.array([right, np.sum(per_example, dtype=np.float64)], np.float64)

    def _send_records(self, steps_done: int) -> None:
        memory, communicator = self._memory, self._strategy.extended.communicator
        records = memory.history.own()
        if communicator is not None:
            payloads = communicator.all_gather_bytes(msgspec.json.encode(records))
            records = [r for p in payloads for r in msgspec.json.decode(p, type=list[StepRecord])]
        memory.records = memory.history.complete(records, steps_done)
        memory.history.sent(steps_done)
        if self._hooks.recorder is not None:
            self._hooks.recorder.steps(memory.records)

    def can_settle(self) -> bool:
        """Return whether all state of the job may be live here."""
        return self._position is not None and self._has_all_state()

    def salvage(self, communicator: Communicator) -> Kept | None:
        """Return the live state after the last step that is done here, not encoded yet; None where it is not all there.

        To be called when another process was lost, where every survivor :meth:`can_settle`; a collective of
        ``communicator``, theirs.
        """
        is_made = self._strategy.extended.owners.settle(communicator)
        position = self._position
        if is_made is None or position is None:
            return None
        memory = self._memory
        memory.state = None
        return Kept(position.epoch, position.step + is_made, None, {}, memory.metrics, memory.records)

    def encoded(self, kept: Kept) -> Kept:
        """Return what :meth:`salvage` returned, or what was kept, with the state itself."""
        state = self._memory.state or local_state(self._job, kept.position)
        return msgspec.structs.replace(kept, state=checkpoint.to_bytes(state))

    def steps_at(self, position: DataPosition) -> int:
        """Return how many steps are done at ``position``."""
        return position.epoch * self._steps_per_epoch + position.step

    def sums_after(self, position: DataPosition) -> Sums:
        """Return what is known on this host of the losses of the epoch up to there, by replica."""
        return self._ledger.after(self.steps_at(position)) if position.step else {}

    def _has_all_state(self) -> bool:
        """Return whether this process has all state of the job, as far as it knows."""
        job, owners = self._job, self._strategy.extended.owners
        others_have_more = self._memory.others_have_more or not owners.survives_loss(job.optimizer)
        return not others_have_more and not has_state_of_replicas(job)

    def _keep(self, position: DataPosition) -> None:
        """Have every process keep the state in memory, unless each has all of it; a collective."""
        communicator: Any = self._strategy.extended.communicator
        memory = self._memory
        if all(communicator.all_gather_bytes(b"1" if self._has_all_state() else b"")):
            memory.kept = memory.state = None
            return
        memory.others_have_more = True
        state = collect_state(self._job, self._strategy, position, everywhere=True)
        told = communicator.all_gather_bytes(msgspec.msgpack.encode(self.sums_after(position)))
        sums = united(msgspec.msgpack.decode(part, type=Sums) for part in told)
        memory.kept = Kept(position.epoch, position.step, None, sums, memory.metrics, memory.records)
        memory.state = state

    def _checkpoint_is_due(self, epoch: int) -> bool:
        config = self._job.config
        every = config.run.checkpoint_every_epochs
        return epoch + 1 == config.data.epochs or bool(every and (epoch + 1) % every == 0)

    def _checkpoint(self, position: DataPosition) -> None:
        state = collect_state(self._job, self._strategy, position)
        if state is not None and self._hooks.recorder is not None:
            self._hooks.recorder.checkpoint(state)


class _ReplicaFailure(Exception):
    """The task's code raised; carries the replica to where the step is known."""

    def __init__(self, cause: Exception) -> None:
        from distopt import replica_context

        context = replica_context.get_replica_context()
        self.replica = -1 if context is None else context.replica_id_in_sync_group
        self.cause = cause
        super().__init__(str(cause))
