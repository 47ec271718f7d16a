from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import distopt as tf
from distopt.train import Checkpoint, CheckpointManager, latest_checkpoint


def counter() -> tuple[tf.Variable, Checkpoint]:
    step = tf.Variable(0, dtype=tf.int64, trainable=False)
    return step, Checkpoint(step=step)


def names(manager: CheckpointManager) -> list[str]:
    assert sorted(Path(path).name for path in manager.checkpoints) == sorted(
        path.stem for path in Path(manager.directory).iterdir()
    )
    return [Path(path).name for path in manager.checkpoints]


def test_the_latest_few_are_kept_and_found_again(tmp_path: Path) -> None:
    step, checkpoint = counter()
    manager = CheckpointManager(checkpoint, str(tmp_path), max_to_keep=2)
    assert manager.latest_checkpoint is None
    assert manager.restore_or_initialize() is None
    for _ in range(11):
        step.assign_add(1)
        path = manager.save()
    assert names(manager) == ["ckpt-10", "ckpt-11"]
    assert path == manager.latest_checkpoint == latest_checkpoint(str(tmp_path))

    again, checkpoint = counter()
    manager = CheckpointManager(checkpoint, str(tmp_path), max_to_keep=2)
    assert manager.restore_or_initialize() == path
    assert int(again) == 11
    manager.save()
    assert names(manager) == ["ckpt-11", "ckpt-12"]


def test_a_number_that_is_given_stands_in_the_path_and_replaces_what_has_it(tmp_path: Path) -> None:
    step, checkpoint = counter()
    manager = CheckpointManager(checkpoint, str(tmp_path), max_to_keep=None, checkpoint_name="model")
    for number in (7, step, 7):
        manager.save(checkpoint_number=number)
    assert names(manager) == ["model-0", "model-7"]
    assert int(checkpoint.save_counter) == 3


def test_checkpoints_of_another_name_are_left_alone(tmp_path: Path) -> None:
    _, checkpoint = counter()
    other = checkpoint.write(str(tmp_path / "best-1"))
    manager = CheckpointManager(checkpoint, str(tmp_path), max_to_keep=1)
    manager.save()
    manager.save()
    assert [Path(path).name for path in manager.checkpoints] == ["ckpt-2"]
    checkpoint.restore(other)


def test_nothing_is_saved_within_the_interval(tmp_path: Path) -> None:
    step, checkpoint = counter()
    manager = CheckpointManager(checkpoint, str(tmp_path), None, step_counter=step, checkpoint_interval=2)
    saved = []
    for _ in range(5):
        step.assign_add(1)
        saved.append(manager.save() is not None)
    assert saved == [True, False, True, False, True]
    assert manager.save() is None
    assert manager.save(check_interval=False) is not None
    assert manager.checkpoint_interval == 2

    other = CheckpointManager(checkpoint, str(tmp_path), None, step_counter=step, checkpoint_interval=2)
    other.restore_or_initialize()
    step.assign_add(1)
    assert other.save() is None


def test_an_empty_folder_is_initialized(tmp_path: Path) -> None:
    _, checkpoint = counter()
    calls: list[int] = []
    manager = CheckpointManager(checkpoint, str(tmp_path / "new"), 1, init_fn=lambda: calls.append(1))
    assert manager.restore_or_initialize() is None
    manager.save()
    assert manager.restore_or_initialize() is not None
    assert calls == [1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_to_keep": 0}, "max_to_keep must be an integer from 1, or None to keep all, but is 0"),
        ({"max_to_keep": 2.5}, "but is 2.5"),
        ({"max_to_keep": 1, "keep_checkpoint_every_n_hours": 2}, "not offered"),
        ({"max_to_keep": 1, "checkpoint_interval": 2}, "step_counter"),
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        CheckpointManager(counter()[1], str(tmp_path), **options)


def test_an_optimizer_goes_on_where_it_was(tmp_path: Path) -> None:
    def made() -> tuple[tf.Variable, Any, CheckpointManager]:
        weight, optimizer = tf.Variable(np.float32([1, 2])), tf.keras.optimizers.Adam(0.1)
        return weight, optimizer, CheckpointManager(Checkpoint(weight=weight, opt=optimizer), str(tmp_path), 1)

    def step(weight: tf.Variable, optimizer: Any) -> None:
        optimizer.apply_gradients([(np.float32([1, -1]), weight)])

    weight, optimizer, manager = made()
    step(weight, optimizer)
    manager.save()
    step(weight, optimizer)
    restored, other, manager = made()
    manager.restore_or_initialize()
    step(restored, other)
    assert restored.numpy().tobytes() == weight.numpy().tobytes()
