"""Saving and restoring, moving averages, and what a cluster is made of, by the names of ``tf.train``."""

from __future__ import annotations

from distopt.checkpoint.manager import CheckpointManager
from distopt.checkpoint.objects import Checkpoint, RestoreStatus, latest_checkpoint
from distopt.distribute.cluster import ClusterSpec
from distopt.optimizers.v1.moving_averages import ExponentialMovingAverage

__all__ = [
    "Checkpoint",
    "CheckpointManager",
    "ClusterSpec",
    "ExponentialMovingAverage",
    "RestoreStatus",
    "latest_checkpoint",
]
