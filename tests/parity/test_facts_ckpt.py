"""Recorded facts about checkpoints of objects."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import distopt as tf
from tests.parity.facts import fact

Adam = tf.keras.optimizers.Adam


def saved(folder: Path) -> tuple[tf.train.Checkpoint, str]:
    """Return a checkpoint of an Adam after one step and its variable, and where it was saved."""
    variable, optimizer = tf.Variable(np.float32([1, 2])), Adam(0.1)
    optimizer.apply_gradients([(tf.Tensor(np.ones(2, np.float32)), variable)])
    checkpoint = tf.train.Checkpoint(opt=optimizer, var=variable)
    return checkpoint, checkpoint.save(str(folder / "model"))


def test_values_are_saved_under_the_references_names(tmp_path: Path) -> None:
    checkpoint, _ = saved(tmp_path)
    assert sorted({*checkpoint.values(), "_CHECKPOINTABLE_OBJECT_GRAPH"}) == fact("F130")["result"]


def test_restoring_before_the_first_step_creates_slots_and_overwrites_hypers(tmp_path: Path) -> None:
    _, path = saved(tmp_path)
    variable, optimizer = tf.Variable(np.zeros(2, np.float32)), Adam(0.5)
    tf.train.Checkpoint(opt=optimizer, var=variable).restore(path).assert_consumed()
    names, m, iterations, rate, value = fact("F131")["result"]
    assert optimizer.get_slot_names() == names
    np.testing.assert_allclose(optimizer.get_slot(variable, "m").numpy(), m, rtol=1e-6)
    assert int(optimizer.iterations.numpy()) == iterations
    np.testing.assert_allclose(optimizer.lr.numpy(), rate, rtol=1e-6)
    np.testing.assert_allclose(variable.numpy(), value, rtol=1e-6)


def test_a_variable_attached_later_takes_its_value_and_its_slots(tmp_path: Path) -> None:
    _, path = saved(tmp_path)
    optimizer, variable = Adam(0.5), tf.Variable(np.zeros(2, np.float32))
    checkpoint = tf.train.Checkpoint(opt=optimizer)
    checkpoint.restore(path)
    before, m, value = fact("F132")["result"]
    assert len(optimizer.get_slot_names()) == before
    checkpoint.var = variable
    np.testing.assert_allclose(optimizer.get_slot(variable, "m").numpy(), m, rtol=1e-6)
    np.testing.assert_allclose(variable.numpy(), value, rtol=1e-6)
