"""Saving and restoring, by the names of ``tf.train``."""

from __future__ import annotations

from distopt.checkpoint.objects import Checkpoint, RestoreStatus, latest_checkpoint

__all__ = ["Checkpoint", "RestoreStatus", "latest_checkpoint"]
