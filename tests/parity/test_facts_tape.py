"""What the reference's gradient tape does, fact by fact."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import distopt as tf
from tests.parity.facts import fact


def _error_of(call: Any) -> str:
    """Return which of Python's own errors ``call`` raises; ours are subclasses of them."""
    with pytest.raises(Exception) as raised:
        call()
    return next(each.__name__ for each in type(raised.value).__mro__ if each.__module__ == "builtins")


def test_tape_gives_first_and_second_derivatives_and_sums_targets() -> None:
    x = tf.Variable(3.0)
    with tf.GradientTape() as outer:
        with tf.GradientTape() as inner:
            cube = x * x * x
        first = inner.gradient(cube, x)
    second = outer.gradient(first, x)
    with tf.GradientTape() as tape:
        vector = tf.stack([x, 2.0 * x])
    of_vector = tape.gradient(vector, x)
    with tf.GradientTape() as tape:
        targets = [x * x, 3.0 * x]
    found = [float(g) for g in (first, second, of_vector, tape.gradient(targets, x))]
    assert found == fact("F090")["result"]


def test_tape_on_unconnected_sources_and_wrong_use() -> None:
    x, other = tf.Variable(2.0), tf.Variable(1.0)
    with tf.GradientTape(persistent=True) as kept:
        y = x * x
    zero = kept.gradient(y, other, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    with tf.GradientTape() as once:
        y_once = x * x
    once.gradient(y_once, x)

    def enter_twice() -> None:
        with tf.GradientTape() as tape, tape:
            pass

    found = [
        kept.gradient(y, other),
        float(zero),
        _error_of(lambda: once.gradient(y_once, x)),
        _error_of(enter_twice),
        _error_of(lambda: kept.gradient(None, x)),
    ]
    assert found == fact("F091")["result"]


def test_gradient_of_gathered_rows_keeps_every_lookup() -> None:
    table = tf.Variable(np.arange(6.0, dtype=np.float32).reshape(3, 2))
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(tf.gather(table, [0, 2, 0]))
    gradient = tape.gradient(total, table)
    found = [
        type(gradient).__name__,
        gradient.values.numpy().tolist(),
        gradient.indices.tolist(),
        list(gradient.dense_shape),
    ]
    assert found == fact("F092")["result"]


def test_gradient_of_two_gathers_is_joined_and_with_a_dense_use_becomes_dense() -> None:
    table = tf.Variable(np.ones((3, 1), np.float32))
    with tf.GradientTape(persistent=True) as tape:
        twice = tf.reduce_sum(tf.gather(table, [0])) + tf.reduce_sum(tf.gather(table, [1, 0]))
        mixed = tf.reduce_sum(tf.gather(table, [0])) + tf.reduce_sum(table)
    sparse, dense = tape.gradient(twice, table), tape.gradient(mixed, table)
    kind, indices, dense_is_sparse, values = fact("F093")["result"]
    assert type(sparse).__name__ == kind
    assert sparse.indices.tolist() == indices
    assert isinstance(dense, tf.IndexedSlices) == dense_is_sparse
    assert dense.numpy().tolist() == values


def test_tape_follows_what_is_trainable_or_watched() -> None:
    fixed, number = tf.Variable(3.0, trainable=False), tf.constant(3.0)

    def slope(x: Any, watch: bool) -> float | None:
        with tf.GradientTape() as tape:
            if watch:
                tape.watch(x)
            y = x * x
        gradient = tape.gradient(y, x)
        return None if gradient is None else float(gradient)

    assert [slope(fixed, False), slope(fixed, True), slope(number, False)] == fact("F094")["result"]
