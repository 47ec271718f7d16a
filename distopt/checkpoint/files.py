"""Checkpoint files that are whole or absent, whatever moment the machine stops at.

A checkpoint is two files: ``step-00000140-<first digits of its SHA-256>.safetensors``, and ``step-00000140.json``, its
manifest. Each is written under a temporary name, flushed to the disk and renamed; the manifest comes last. So a
checkpoint exists exactly if its manifest does, and rewriting a step never touches the file that a manifest names.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import msgspec

from distopt.checkpoint.encoding import from_bytes, to_bytes
from distopt.checkpoint.state import TrainingState, state_hash
from distopt.errors import CheckpointError

_MANIFEST_NAME = re.compile(r"^step-(\d{8,})\.json$")


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a checkpoint's file must be."""

    file: str
    num_bytes: int
    sha256: str
    state_hash: str
    iterations: int
    epoch: int
    step: int
    """Steps done in ``epoch``."""
    job_digest: str


def save(folder: Path, state: TrainingState, keep_last: int = 3) -> Path:
    """Write ``state`` into ``folder``, keep only the last ``keep_last`` checkpoints, return the new manifest's path.

    When this returns, the checkpoint is on the disk.

    Raises: CheckpointError if it cannot be written; ValueError if ``keep_last`` is not positive.
    """
    if keep_last < 1:
        raise ValueError(f"at least 1 checkpoint is kept, not {keep_last}")
    data = to_bytes(state)
    sha256 = hashlib.sha256(data).hexdigest()
    stem = f"step-{state.iterations:08d}"
    manifest = Manifest(
        file=f"{stem}-{sha256[:12]}.safetensors",
        num_bytes=len(data),
        sha256=sha256,
        state_hash=state_hash(state),
        iterations=state.iterations,
        epoch=state.position.epoch,
        step=state.position.step,
        job_digest=state.job_digest,
    )
    path = folder / f"{stem}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_durably(folder / manifest.file, data)
        write_durably(path, msgspec.json.format(msgspec.json.encode(manifest)))
    except OSError as error:
        raise CheckpointError(f"checkpoint {path} cannot be written: {error}") from error
    _remove_all_but(folder, checkpoints(folder)[-keep_last:])
    return path


def load(manifest_path: Path, job_digest: str | None = None) -> TrainingState:
    """Return the state of the checkpoint whose manifest is ``manifest_path``.

    Raises: CheckpointError, naming what is wrong, if a file is absent, truncated, altered, or of a job other than
    ``job_digest`` (None: any).
    """
    manifest = read_manifest(manifest_path)
    path = manifest_path.parent / manifest.file
    if job_digest is not None and manifest.job_digest != job_digest:
        raise CheckpointError(
            f"checkpoint {manifest_path} belongs to another job: "
            f"its digest is {manifest.job_digest[:12]}, this job's is {job_digest[:12]}"
        )
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}") from error
    if len(data) != manifest.num_bytes:
        raise CheckpointError(f"checkpoint {path} has {len(data)} bytes, its manifest says {manifest.num_bytes}")
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 != manifest.sha256:
        raise CheckpointError(
            f"checkpoint {path} is damaged: its SHA-256 is {sha256[:12]}..., "
            f"its manifest says {manifest.sha256[:12]}..."
        )
    state = from_bytes(data, what=f"checkpoint {path}")
    found = state_hash(state)
    if found != manifest.state_hash:
        raise CheckpointError(f"checkpoint {path} holds state {found}, its manifest says {manifest.state_hash}")
    return state


def latest(folder: Path) -> Path:
    """Return the path of the manifest with the most iterations in ``folder``.

    Raises: CheckpointError if there is none.
    """
    found = checkpoints(folder)
    if not found:
        raise CheckpointError(f"there is no checkpoint in {folder}")
    return found[-1]


def checkpoints(folder: Path) -> list[Path]:
    """Return the paths of all manifests in ``folder``, fewest iterations first."""
    found = [(int(match[1]), path) for path in folder.glob("step-*.json") if (match := _MANIFEST_NAME.match(path.name))]
    return [path for _, path in sorted(found)]


def read_manifest(path: Path) -> Manifest:
    """Return the manifest in the file ``path``.

    Raises: CheckpointError if it is absent or not a manifest.
    """
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except OSError as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}") from error
    except msgspec.MsgspecError as error:
        raise CheckpointError(f"{path} is not a checkpoint's manifest: {error}") from error
    if Path(manifest.file).name != manifest.file:
        raise CheckpointError(f"{path} names the file {manifest.file!r}, which is not in its own folder")
    return manifest


def write_durably(path: Path, data: bytes) -> None:
    """Make ``path`` hold ``data``, on the disk, such that no moment shows a part of it.

    Raises: OSError.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    """Put the names in ``folder`` on the disk; a rename alone is not."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows cannot open a folder
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_all_but(folder: Path, kept: list[Path]) -> None:
    """Remove other manifests first, then every tensor file and left-over that no kept manifest names."""
    for path in checkpoints(folder):
        if path not in kept:
            path.unlink(missing_ok=True)
    named = {read_manifest(path).file for path in kept}
    for path in [*folder.glob("step-*.safetensors"), *folder.glob(".step-*.tmp")]:
        if path.name not in named:
            path.unlink(missing_ok=True)
