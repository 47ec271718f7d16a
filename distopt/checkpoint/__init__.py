"""What a job is at a step boundary, its hash, and its files."""

from __future__ import annotations

from distopt.checkpoint.encoding import from_bytes, to_bytes
from distopt.checkpoint.files import Manifest, checkpoints, latest, load, read_manifest, save, write_durably
from distopt.checkpoint.state import DataPosition, TrainingState, VariableState, collapse, state_hash

__all__ = [
    "DataPosition",
    "Manifest",
    "TrainingState",
    "VariableState",
    "checkpoints",
    "collapse",
    "from_bytes",
    "latest",
    "load",
    "read_manifest",
    "save",
    "state_hash",
    "to_bytes",
    "write_durably",
]
