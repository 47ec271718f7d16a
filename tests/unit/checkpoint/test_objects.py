from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import distopt as tf
from distopt.errors import CheckpointError
from distopt.train import Checkpoint, latest_checkpoint

optimizers = tf.keras.optimizers


def variable(*values: float) -> tf.Variable:
    return tf.Variable(np.array(values, np.float32))


def steps(optimizer: optimizers.Optimizer, target: tf.Variable, count: int) -> None:
    for step in range(count):
        optimizer.apply_gradients([(tf.Tensor(np.float32([1, -2]) * (step + 1)), target)])


@pytest.mark.parametrize("name", ["SGD", "Adam", "Adamax", "Nadam", "Adagrad", "Adadelta", "RMSprop", "Ftrl"])
def test_training_that_is_restored_goes_on_with_the_same_bits(name: str, tmp_path: Path) -> None:
    make = getattr(optimizers, name)
    first, target = make(0.5), variable(1, 2)
    steps(first, target, 2)
    path = Checkpoint(optimizer=first, weights=[target]).save(str(tmp_path / "model"))
    steps(first, target, 2)

    second, restored = make(0.1), variable(0, 0)
    second.build([restored])
    Checkpoint(optimizer=second, weights=[restored]).restore(path).assert_consumed()
    steps(second, restored, 2)
    assert restored.numpy().tobytes() == target.numpy().tobytes()
    for one, other in zip(first.get_weights(), second.get_weights(), strict=True):
        assert one.tobytes() == other.tobytes()


def test_each_save_gets_a_number_and_the_last_one_is_found(tmp_path: Path) -> None:
    checkpoint = Checkpoint(w=variable(1))
    assert latest_checkpoint(str(tmp_path)) is None
    paths = [checkpoint.save(str(tmp_path / "model")) for _ in range(2)]
    assert [Path(path).name for path in paths] == ["model-1", "model-2"]
    assert latest_checkpoint(str(tmp_path)) == paths[-1]


def test_a_model_is_saved_with_its_variables(tmp_path: Path) -> None:
    def model() -> tf.keras.Sequential:
        made = tf.keras.Sequential([tf.keras.layers.Dense(2, input_shape=(3,))])
        made(np.ones((1, 3), np.float32))
        return made

    saved, other = model(), model()
    path = Checkpoint(model=saved).save(str(tmp_path / "model"))
    Checkpoint(model=other).restore(path).assert_consumed()
    for one, copy in zip(saved.variables, other.variables, strict=True):
        np.testing.assert_array_equal(one.numpy(), copy.numpy())


def test_values_nobody_takes_and_variables_without_values_are_named(tmp_path: Path) -> None:
    path = Checkpoint(a=variable(1), b=variable(2)).save(str(tmp_path / "model"))
    status = Checkpoint(a=variable(0)).restore(path)
    status.assert_existing_objects_matched()
    with pytest.raises(AssertionError, match="no object has taken: b/"):
        status.assert_consumed()
    with pytest.raises(AssertionError, match="without a saved value: c/"):
        Checkpoint(c=variable(0)).restore(path).assert_existing_objects_matched()


def test_another_shape_is_refused_before_anything_changes(tmp_path: Path) -> None:
    path = Checkpoint(a=variable(1), b=variable(1, 2)).save(str(tmp_path / "model"))
    a = variable(5)
    with pytest.raises(ValueError, match=r"b/.* has shape \[2\]"):
        Checkpoint(a=a, b=variable(0)).restore(path)
    assert a.numpy().tolist() == [5]


def test_an_absent_and_a_damaged_file_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        Checkpoint(a=variable(1)).restore(str(tmp_path / "nothing-1"))
    path = Checkpoint(a=variable(1)).save(str(tmp_path / "model"))
    file = Path(f"{path}.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="damaged"):
        Checkpoint(a=variable(1)).restore(path)


def test_an_object_without_a_name_is_the_root(tmp_path: Path) -> None:
    def model() -> tf.keras.Sequential:
        made = tf.keras.Sequential([tf.keras.layers.Dense(2)])
        made.build((None, 3))
        return made

    first, second = model(), model()
    step = tf.Variable(7, trainable=False)
    path = Checkpoint(first, step=step).save(str(tmp_path / "model"))
    Checkpoint(second, step=tf.Variable(0, trainable=False)).restore(path).assert_consumed()
    assert [v.numpy().tobytes() for v in second.variables] == [v.numpy().tobytes() for v in first.variables]
    Checkpoint(root=model(), step=step).restore(path).assert_consumed()
