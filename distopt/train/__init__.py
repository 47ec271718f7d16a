"""Saving and restoring, and what a cluster is made of, by the names of ``tf.train``."""

from __future__ import annotations

from distopt.checkpoint.objects import Checkpoint, RestoreStatus, latest_checkpoint
from distopt.distribute.cluster import ClusterSpec

__all__ = ["Checkpoint", "ClusterSpec", "RestoreStatus", "latest_checkpoint"]
