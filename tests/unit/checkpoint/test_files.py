"""Checkpoint files: what was saved comes back, and what is damaged is refused by name."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from distopt import checkpoint
from distopt.checkpoint import DataPosition, TrainingState, VariableState, state_hash
from distopt.errors import CheckpointError


def _state(iterations: int = 7) -> TrainingState:
    kernel = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)) + np.float32(iterations)
    copies = (np.zeros(3), np.ones(3), np.full(3, 2.0))
    equal = (np.ones(2, np.float16), np.ones(2, np.float16))
    return TrainingState(
        iterations=iterations,
        variables=(
            VariableState(position=0, name="kernel:0", value=(kernel,), slots={"v": (kernel + 1,), "a": (kernel,)}),
            VariableState(position=1, name="bias:0", value=copies, slots={"m": equal}),
            VariableState(position=2, name="half:0", value=(np.array([1.5, -0.0], ml_dtypes.bfloat16),)),
            VariableState(position=3, name="scalar:0", value=(np.array(4, ">i8"),)),
            VariableState(position=4, name="empty:0", value=(np.zeros((0, 3), np.bool_),)),
        ),
        extras={"schedule": np.array([1, 2], np.int64)},
        position=DataPosition(epoch=1, step=2),
        job_digest="a" * 64,
    )


def _arrays(state: TrainingState) -> list[np.ndarray[Any, Any]]:
    return [a for v in state.variables for copies in (v.value, *v.slots.values()) for a in copies]


def test_save_then_load_gives_the_same_bits_names_order_and_position(tmp_path: Path) -> None:
    state = _state()
    loaded = checkpoint.load(checkpoint.save(tmp_path, state), job_digest="a" * 64)
    assert state_hash(loaded) == state_hash(state)
    assert (loaded.iterations, loaded.position, loaded.job_digest) == (7, DataPosition(epoch=1, step=2), "a" * 64)
    assert [(v.position, v.name, list(v.slots)) for v in loaded.variables] == [
        (v.position, v.name, list(v.slots)) for v in state.variables
    ]
    for ours, theirs in zip(_arrays(loaded), _arrays(state), strict=True):
        assert ours.dtype == theirs.dtype.newbyteorder("=")
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(loaded.extras["schedule"], [1, 2])


def test_loaded_copies_are_separate_and_writable() -> None:
    loaded = checkpoint.from_bytes(checkpoint.to_bytes(_state()))
    first, second = loaded.variables[1].slots["m"]
    first += 1
    np.testing.assert_array_equal(second, [1, 1])


def test_save_keeps_the_last_and_leaves_no_other_file(tmp_path: Path) -> None:
    for iterations in (1, 2, 30, 4):
        checkpoint.save(tmp_path, _state(iterations), keep_last=2)
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["step-00000004.json", "step-00000030.json"]
    assert checkpoint.latest(tmp_path).name == "step-00000030.json"
    assert len(list(tmp_path.iterdir())) == 4


def test_save_of_a_step_again_replaces_it(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, _state())
    changed = dataclasses.replace(_state(), extras={})
    checkpoint.save(tmp_path, changed)
    assert state_hash(checkpoint.load(checkpoint.latest(tmp_path))) == state_hash(changed)
    assert len(list(tmp_path.iterdir())) == 2


def test_save_that_fails_before_the_manifest_leaves_the_older_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path, _state(1))
    calls = 0

    def fsync(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(CheckpointError, match=r"step-00000002\.json cannot be written: disk full"):
        checkpoint.save(tmp_path, _state(2))
    monkeypatch.undo()
    assert state_hash(checkpoint.load(checkpoint.latest(tmp_path))) == state_hash(_state(1))
    checkpoint.save(tmp_path, _state(3), keep_last=1)
    assert len(list(tmp_path.iterdir())) == 2


def _tensor_file(manifest: Path) -> Path:
    return manifest.parent / checkpoint.read_manifest(manifest).file


def test_load_of_a_truncated_file_names_both_lengths(tmp_path: Path) -> None:
    manifest = checkpoint.save(tmp_path, _state())
    path = _tensor_file(manifest)
    data = path.read_bytes()
    path.write_bytes(data[:-5])
    with pytest.raises(CheckpointError, match=f"has {len(data) - 5} bytes, its manifest says {len(data)}"):
        checkpoint.load(manifest)


def test_load_of_an_altered_file_names_both_digests(tmp_path: Path) -> None:
    manifest = checkpoint.save(tmp_path, _state())
    path = _tensor_file(manifest)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"is damaged: its SHA-256 is \w{12}\.\.\., its manifest says"):
        checkpoint.load(manifest)


def test_load_of_another_job_names_both_jobs(tmp_path: Path) -> None:
    manifest = checkpoint.save(tmp_path, _state())
    with pytest.raises(CheckpointError, match="belongs to another job: its digest is aaaaaaaaaaaa, this job's is bbbb"):
        checkpoint.load(manifest, job_digest="b" * 64)


def test_load_without_the_tensor_file_names_it(tmp_path: Path) -> None:
    manifest = checkpoint.save(tmp_path, _state())
    path = _tensor_file(manifest)
    path.unlink()
    with pytest.raises(CheckpointError, match=f"{path.name} cannot be read"):
        checkpoint.load(manifest)


@pytest.mark.parametrize("text", ["", "{", "{}", '{"file": 3}'])
def test_read_manifest_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "step-00000001.json"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=r"step-00000001\.json is not a checkpoint's manifest"):
        checkpoint.read_manifest(path)


def test_read_manifest_that_points_out_of_its_folder_is_refused(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, _state())
    name = checkpoint.read_manifest(path).file
    path.write_text(path.read_text().replace(name, "../" + name))
    with pytest.raises(CheckpointError, match="not in its own folder"):
        checkpoint.read_manifest(path)


def test_latest_of_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint in"):
        checkpoint.latest(tmp_path)


@pytest.mark.parametrize("length", [0, 7, 20, 400])
def test_from_bytes_of_a_prefix_is_refused(length: int) -> None:
    with pytest.raises(CheckpointError, match="is damaged"):
        checkpoint.from_bytes(checkpoint.to_bytes(_state())[:length])


def test_from_bytes_of_a_file_that_is_not_ours_is_refused() -> None:
    from safetensors.numpy import save

    with pytest.raises(CheckpointError, match="header cannot be read"):
        checkpoint.from_bytes(save({"a": np.zeros(2)}))
