"""When a gradient is complete while the backward pass goes on, and what is told of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

import distopt as tf
from distopt.autodiff.completions import GATE_GRAPH, GATE_OP, gated
from distopt.autodiff.nodes import state
from distopt.ops.dense import dense_layers


class Told:
    """What a tape tells, in order: positions of sources, and the gradients."""

    def __init__(self) -> None:
        self.positions: list[int] = []
        self.gradients: list[Any] = []

    def listener(self, sources: Sequence[Any]) -> Any:
        del sources
        return self.complete

    def complete(self, position: int, gradient: Any) -> None:
        self.positions.append(position)
        self.gradients.append(gradient)


@pytest.fixture
def told() -> Iterator[Told]:
    found = Told()
    before = state.watcher, state.listener
    state.watcher, state.listener = (lambda node, gradients: None), found.listener
    yield found
    state.watcher, state.listener = before


def variables(*shapes: tuple[int, ...]) -> list[Any]:
    return [tf.Variable(np.full(shape, 0.5, np.float32)) for shape in shapes]


def test_gradients_are_told_from_the_last_operation_to_the_first_and_are_those_that_come_out(told: Told) -> None:
    a, b, c = variables((3,), (3,), (3,))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.tanh(tf.tanh(a * np.float32(2)) * b) * c)
    gradients = tape.gradient(loss, [a, b, c])
    assert told.positions == [2, 1, 0]
    for position, gradient in zip(told.positions, told.gradients, strict=True):
        assert gradients[position].numpy() is gradient


def test_a_variable_that_is_used_twice_is_told_once_after_its_oldest_use(told: Told) -> None:
    a, b = variables((3,), (3,))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.tanh(tf.tanh(a * b) * b) * a)
    gradients = tape.gradient(loss, [a, b])
    assert sorted(told.positions) == [0, 1]
    for position, gradient in zip(told.positions, told.gradients, strict=True):
        np.testing.assert_array_equal(gradients[position].numpy(), gradient)


def test_what_has_no_gradient_rows_or_is_the_target_itself_is_not_told_wrongly(told: Told) -> None:
    a, table, unused = variables((3,), (4, 3), (2,))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.gather(table, [1, 1]) * a)
        _ = unused * np.float32(2)
    gradients = tape.gradient([loss, a], [a, table, unused])
    for position, gradient in zip(told.positions, told.gradients, strict=True):
        assert position == 0
        np.testing.assert_array_equal(gradients[position].numpy(), gradient)


LAYERS = ((4, 5), (5,), (5, 5), (5,), (5, 2), (2,))


def of_layers(weights: list[Any]) -> list[Any]:
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(dense_layers(np.ones((3, 4), np.float32), weights, ("relu", "tanh", "linear")))
    return list(tape.gradient(loss, weights))


def test_layers_of_one_operation_are_told_one_by_one_with_gate_none_together_with_gate_op(told: Told) -> None:
    weights = variables(*LAYERS)
    gradients = of_layers(weights)
    assert told.positions == [5, 4, 3, 2, 1, 0]
    assert all(gradients[i].numpy() is g for i, g in zip(told.positions, told.gradients, strict=True))
    told.positions.clear()
    with gated(GATE_OP):
        of_layers(weights)
    assert sorted(told.positions) == [0, 1, 2, 3, 4, 5]
    assert told.positions != [5, 4, 3, 2, 1, 0]
    told.positions.clear()
    with gated(GATE_GRAPH):
        of_layers(weights)
    assert told.positions == []


def test_a_kernel_of_two_operations_is_not_told_when_the_first_has_made_its_part(told: Told) -> None:
    weights = variables((4, 4), (4,))
    with tf.GradientTape() as tape:
        hidden = dense_layers(np.ones((3, 4), np.float32), [*weights, *weights], ("relu", "tanh"))
        loss = tf.reduce_sum(dense_layers(hidden, weights, ("linear",)))
    gradients = tape.gradient(loss, weights)
    assert sorted(told.positions) == [0, 1]
    for position, gradient in zip(told.positions, told.gradients, strict=True):
        np.testing.assert_array_equal(gradients[position].numpy(), gradient)


def test_a_persistent_tape_tells_each_time_and_a_listener_may_not_care(told: Told) -> None:
    (a,) = variables((3,))
    with tf.GradientTape(persistent=True) as tape:
        loss = tf.reduce_sum(a * a)
    tape.gradient(loss, [a])
    tape.gradient(loss, [a])
    assert told.positions == [0, 0]
    state.listener = lambda sources: None
    np.testing.assert_array_equal(tape.gradient(loss, [a])[0].numpy(), np.ones(3, np.float32))
    assert told.positions == [0, 0]
