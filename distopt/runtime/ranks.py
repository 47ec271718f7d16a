"""What one rank of an MPI job does, also when other ranks are lost.

Where the launcher lets survivors live (``mpirun --with-ft ulfm``), they go on in the same processes::

    loss      every survivor's wait ends with PeerLostError
    survive   they make a communicator of themselves, and tell each other which state of the job they have
    restore   all get the state after the most steps: the live one of a process that has all of it, one that was kept
              in memory, or the last checkpoint
    go on     each hosts the replicas that are its part now; steps after that state are made again

What a step computes does not depend on who computes it, so the job ends with the bits that it would have had. A loss in
the middle of this, too, only begins it anew: until the state is restored, who had it keeps it.
"""

from __future__ import annotations

import gc
import logging
import signal
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from distopt import checkpoint
from distopt.checkpoint import TrainingState
from distopt.comm.communicator import Communicator
from distopt.comm.mpi import MpiCommunicator
from distopt.distribute import CommunicationOptions, MultiWorkerMirroredStrategy
from distopt.elastic.survival import carry_out, furthest
from distopt.errors import ConfigError, JobAbortedError, ManifestMismatchError, PeerLostError
from distopt.observe import LocalRecorder, LostWorker, RunFolder, make_display, set_step
from distopt.protocol.manifest import content_diff, numerics_diff
from distopt.runtime import report
from distopt.runtime.config import JobConfig
from distopt.runtime.config_file import resolved_toml
from distopt.runtime.environment import end_process, lets_survivors_live
from distopt.runtime.job import Job, check_placement, decode_manifest, encode_manifest, manifest
from distopt.runtime.ledger import Sums, united
from distopt.runtime.memory import JobMemory, Kept
from distopt.runtime.prepare import load_last, prepare
from distopt.runtime.signals import handling
from distopt.runtime.train import Hooks, TrainLoop

logger = logging.getLogger(__name__)


def run_mpi(config: JobConfig, resume: Path | None) -> int:
    """Train the job as one rank of an MPI job; return the exit status. An error ends all ranks."""
    deployment = config.deployment
    survives = deployment.survive_losses and lets_survivors_live()
    if survives and deployment.communication.overlap:
        raise ConfigError(
            "deployment.communication.overlap = true and deployment.survive_losses = true exclude each other under "
            "`mpirun --with-ft ulfm`: gradients would leave before it is sure that they are applied; set one of them "
            "to false"
        )
    communicator = MpiCommunicator(
        timeout_s=max(deployment.join_timeout_s, deployment.collective_timeout_s),
        survives_losses=survives,
        end_process=end_process if survives else None,
    )
    rank = RankOfJob(config, resume, communicator)

    def terminated(number: int, frame: Any) -> None:  # noqa: ARG001
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        rank.was_told_to_end = True
        raise rank.communicator.termination_error()

    try:
        with handling(terminated):
            rank.run()
        return 0
    except Exception as error:  # noqa: BLE001  whatever it is must end the other ranks too
        rank.close()
        # Before the ranks share a folder, which has one error, each would print what another one has printed.
        was_told = isinstance(error, JobAbortedError) and not rank.has_folder
        status = 1 if was_told else report.report(error)
        ended: MpiCommunicator = rank.communicator
        ended.abort(status, f"{type(error).__name__}: {error}")
    finally:
        rank.close()


class RankOfJob:
    """A process of ``communicator``, which is replaced by that of the survivors when a rank is lost."""

    def __init__(self, config: JobConfig, resume: Path | None, communicator: Communicator) -> None:
        self.communicator: Any = communicator
        self.was_told_to_end = False
        self._config = config
        self._resume = resume
        self._folder: RunFolder | None = None
        self.has_folder = False
        """Whether it is settled where the run is recorded, and whether this rank sees that."""
        self._recorder: LocalRecorder | None = None
        self._memory = JobMemory(communicator.rank_at_start)
        self._all_workers = self._memory.workers = tuple(range(communicator.size_at_start))
        self._loop: TrainLoop | None = None
        self._missed_s = time.monotonic()

    def run(self) -> None:
        """Train to the end, without the ranks that are lost meanwhile if the communicator survives that.

        Raises: PeerLostError if it does not; what else a rank of a job meets.
        """
        carry_out(lambda _: self._attempt(), self.communicator, lost=self._note_loss, survived=self._go_on)

    def close(self) -> None:
        """Close what the run is recorded with; a second call does nothing."""
        if self._recorder is not None:
            self._recorder.close()

    def _note_loss(self, error: PeerLostError) -> None:
        if self.was_told_to_end:
            raise error
        logger.warning("%s", error)
        self._missed_s = time.monotonic()

    def _go_on(self, survivors: Communicator) -> None:
        self.communicator = survivors
        logger.warning("%d ranks are left; this one was worker %d", survivors.size, self._memory.worker)

    def _attempt(self) -> None:
        config, communicator, memory = self._config, self.communicator, self._memory
        deployment = config.deployment
        folder = self._shared_folder()
        payloads = communicator.all_gather_bytes(str(memory.worker).encode())
        memory.workers = tuple(map(int, payloads))
        state = self._agreed_state(folder)
        self._loop = None
        gc.unfreeze()
        gc.collect()
        job = prepare(config)
        compare_manifests(job, communicator)
        strategy = make_strategy(config, communicator)
        check_placement(job, strategy.placement, 0)
        steps_begun: set[int] = set()

        def progress(step: int, phase: str) -> None:
            communicator.phase = phase
            if len(steps_begun) < 2:
                steps_begun.add(step)
                if len(steps_begun) == 2:
                    # Until now each rank has imported, and compiled what the first step needs, in its own time.
                    communicator.limit_waits(deployment.collective_timeout_s)
            set_step(step)

        hooks = Hooks(deployment="mpi", progress=progress, memory=memory)
        self._loop = TrainLoop(job, strategy, hooks)
        steps = 0 if state is None else self._loop.steps_at(state.position)
        known = {*memory.workers, *(lost.worker for lost in memory.lost)}
        seconds = round(time.monotonic() - self._missed_s, 3)
        memory.lost += [LostWorker(worker, steps, seconds) for worker in self._all_workers if worker not in known]
        hooks.recorder = self._recorder_of(folder)
        self._loop.run(state)

    def _recorder_of(self, folder: RunFolder | None) -> LocalRecorder | None:
        """Return what records the run, on the first rank; it is told what others may not have recorded."""
        memory = self._memory
        if self.communicator.rank != 0:
            return None
        if self._recorder is None:
            takes_over = bool(memory.lost)
            self._recorder = LocalRecorder(folder, make_display(sys.stderr), sys.stdout, takes_over=takes_over)
        self._recorder.steps(memory.records)
        if memory.metrics is not None:
            self._recorder.epoch(memory.metrics)
        self._recorder.lost(memory.lost)
        return self._recorder

    def _agreed_state(self, folder: RunFolder | None) -> TrainingState | None:
        """Return the state to go on from, the same on all ranks; None to begin anew."""
        communicator, memory = self.communicator, self._memory
        loop = self._loop
        if all(communicator.all_gather_bytes(b"1" if loop is not None and loop.can_settle() else b"")):
            assert loop is not None, "said by all"
            memory.kept = loop.salvage(communicator) or memory.kept
        own = memory.kept
        found = furthest(communicator, () if own is None else (own.epoch, own.step))
        if found is None:
            state = None
            if communicator.rank == 0:
                state = load_last(self._config, folder.path if memory.lost and folder else self._resume)
            blob = communicator.broadcast_bytes(checkpoint.to_bytes(state) if state is not None else b"")
            return checkpoint.from_bytes(blob) if blob else None
        root, _ = found
        if communicator.rank == root and own is not None and own.state is None:
            assert loop is not None, "it is live there, or was kept by it"
            own = loop.encoded(own)
        payload = communicator.broadcast_bytes(msgspec.msgpack.encode(own) if communicator.rank == root else None, root)
        kept = msgspec.msgpack.decode(payload, type=Kept)
        sums = {} if loop is None else loop.sums_after(kept.position)
        parts = communicator.all_gather_bytes(msgspec.msgpack.encode(sums))
        if not kept.sums:
            sums = united(msgspec.msgpack.decode(part, type=Sums) for part in parts)
            kept = msgspec.structs.replace(kept, sums=sums)
        memory.kept, memory.state, memory.metrics, memory.records = kept, None, kept.metrics, kept.records
        assert kept.state is not None, "encoded by its owner"
        return checkpoint.from_bytes(kept.state, "the state of the survivors")

    def _shared_folder(self) -> RunFolder | None:
        """Return the run folder, which the first rank makes, or None where this rank does not see its file system."""
        communicator = self.communicator
        known = [path for path in communicator.all_gather_bytes(self._own_path()) if path]
        path = known[0] if known else b""
        if not known and communicator.rank == 0:
            text = resolved_toml(self._config)
            if self._resume is None:
                folder = RunFolder.create(Path(self._config.run.directory), self._config.name, text)
            else:
                folder = RunFolder.reopen(self._resume, text)
            path = str(folder.path.resolve()).encode()
        shared = RunFolder(Path(communicator.broadcast_bytes(path).decode()))
        found = shared if shared.config.is_file() else None
        if not self.has_folder:
            self.has_folder, self._folder = True, found
            report.attach(found, "rank", self._memory.worker, level=self._config.run.log_level)
        return found

    def _own_path(self) -> bytes:
        return b"" if self._folder is None else str(self._folder.path).encode()


def make_strategy(config: JobConfig, communicator: Communicator) -> MultiWorkerMirroredStrategy:
    """Return the job's strategy; a collective.

    Raises: ConfigError if other ranks were told another placement, or to communicate in another way.
    """
    deployment = config.deployment
    communication = deployment.communication
    options = CommunicationOptions(bytes_per_pack=communication.bytes_per_pack, overlap=communication.overlap)
    try:
        return MultiWorkerMirroredStrategy(
            None,
            options,
            replicas=config.strategy.replicas,
            placement="replica" if deployment.placement == "auto" else deployment.placement,
            communicator=communicator,
        )
    except ValueError as error:
        raise ConfigError(f"deployment: {error}") from error


def compare_manifests(job: Job, communicator: Communicator) -> None:
    """Refuse to go on unless all ranks run the same job with the same numerics.

    Raises: ManifestMismatchError that names the rank that differs from most, and both values; the same on every rank.
    """
    payloads = communicator.all_gather_bytes(encode_manifest(manifest(job)))
    manifests = {rank: decode_manifest(payload) for rank, payload in enumerate(payloads)}
    found = content_diff(manifests, _rank_name)
    if found is None:
        found = numerics_diff(manifests, _rank_name)
        if found is not None and job.config.numerics.allow_different_fingerprints:
            if communicator.rank == 0:
                sys.stderr.write(f"distopt: warning: {found.text}\n")
            return
    if found is not None:
        logger.error("%s", found.text)
        communicator.barrier()  # so that every rank has said it before one of them ends the job
        raise ManifestMismatchError(found.text)


def _rank_name(rank: int) -> str:
    return f"rank {rank}"
