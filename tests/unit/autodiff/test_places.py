"""Gradients are written where their readers want them, and never over one that somebody holds."""

from __future__ import annotations

import gc

import numpy as np

import distopt as tf
from distopt.autodiff.places import GradientPlace, place_for
from distopt.types import Array


def _step(kernel: tf.Variable, uses: int = 1) -> Array:
    x = tf.Tensor(np.arange(6, dtype=np.float32).reshape(2, 3))
    with tf.GradientTape() as tape:
        loss = sum(tf.reduce_sum(tf.ops.dense(x * float(i + 1), kernel)) for i in range(uses))
    gradient: Array = tape.gradient(loss, kernel).numpy()
    return gradient


def test_gradient_of_a_dense_layer_s_kernel_is_written_into_its_place() -> None:
    kernel = tf.Variable(np.ones((3, 4), np.float32))
    want = _step(kernel)
    memory = np.full((3, 4), np.nan, np.float32)
    place = GradientPlace(kernel.storage, memory)
    got = _step(kernel)
    assert place.holds(got)
    assert np.shares_memory(got, memory)
    np.testing.assert_array_equal(got, want)


def test_gradient_that_is_held_or_viewed_is_not_overwritten() -> None:
    kernel = tf.Variable(np.ones((3, 4), np.float32))
    place = GradientPlace(kernel.storage, np.empty((3, 4), np.float32))
    view = _step(kernel)[1:]
    kept = view.copy()
    second = _step(kernel)
    assert not place.holds(second)
    second[...] = 0
    np.testing.assert_array_equal(view, kept)
    del view
    gc.collect()
    assert place.holds(_step(kernel))


def test_kernel_that_is_used_twice_adds_up_in_its_place() -> None:
    kernel = tf.Variable(np.ones((3, 4), np.float32))
    want = _step(kernel, uses=3)
    place = GradientPlace(kernel.storage, np.empty((3, 4), np.float32))
    got = _step(kernel, uses=3)
    assert place.holds(got)
    np.testing.assert_array_equal(got, want)


def test_place_ends_with_who_made_it_and_does_not_serve_another_variable() -> None:
    kernel = tf.Variable(np.ones((3, 4), np.float32))
    place = GradientPlace(kernel.storage, np.empty((3, 4), np.float32))
    assert place.take(np.ones((3, 4), np.float32)) is None
    del place
    gc.collect()
    assert place_for(kernel.storage) is None


def test_a_tensor_that_is_kept_gets_an_array_of_its_own_before_its_place_is_written_to() -> None:
    kernel = tf.Variable(np.ones((3, 4), np.float32))
    memory = np.empty((3, 4), np.float32)
    place = GradientPlace(kernel.storage, memory)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.ops.dense(np.ones((2, 3), np.float32), kernel))
    (kept,) = tape.gradient(loss, [kernel])
    assert place.holds(kept.numpy())
    place.vacate()
    memory[...] = 7
    np.testing.assert_array_equal(kept.numpy(), np.full((3, 4), 2))
    assert not place.holds(kept.numpy())
    assert place.holds(_step(kernel))
