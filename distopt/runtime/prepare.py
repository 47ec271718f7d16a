"""How a process of any role begins: its job built, what decides its bits fixed, and a checkpoint read."""

from __future__ import annotations

import gc
from pathlib import Path

from distopt import blas, checkpoint, threads
from distopt.checkpoint import TrainingState
from distopt.observe import RunFolder
from distopt.optimizers.engine import set_default_engine
from distopt.runtime.config import JobConfig
from distopt.runtime.config_file import job_digest
from distopt.runtime.job import Job, build_job


def prepare(config: JobConfig) -> Job:
    """Fix what decides the bits of this process, build the job, and settle what lives as long as the process.

    Steps leave no cycles behind, so the garbage collector need not look after every few of them.
    """
    blas.pin_threads(config.numerics.blas_threads)
    set_default_engine(config.numerics.engine)
    threads.set_num_threads(config.numerics.update_threads)
    job = build_job(config)
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)
    return job


def load_last(config: JobConfig, resume: Path | None) -> TrainingState | None:
    """Return the last checkpoint of the run in the folder ``resume``; None if it ended before there was one."""
    if resume is None or not (found := checkpoint.checkpoints(RunFolder.existing(resume).checkpoints)):
        return None
    return checkpoint.load(found[-1], job_digest(config))
