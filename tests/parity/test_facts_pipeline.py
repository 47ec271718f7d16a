"""Recorded facts about the path from gradients to variables, and about constraints."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import distopt as tf
from tests.parity.facts import fact, outcome

SGD = tf.keras.optimizers.SGD


def variable(*values: float, **options: Any) -> tf.Variable:
    return tf.Variable(np.array(values, np.float32), **options)


def tensor(*values: float) -> tf.Tensor:
    return tf.Tensor(np.array(values, np.float32))


def test_hooks_run_in_order_and_the_aggregator_only_when_asked() -> None:
    seen: list[list[Any]] = []

    def hook(name: str, change: Callable[[Any], Any]) -> Any:
        def run(pairs: Any) -> Any:
            pairs = list(pairs)
            seen.append([name, float(pairs[0][0].numpy()[0])])
            return [(change(gradient), v) for gradient, v in pairs]

        return run

    found = []
    for aggregate in (True, False):
        seen.clear()
        w = variable(0)
        optimizer = SGD(
            1.0,
            gradient_aggregator=hook("agg", lambda g: g * 2.0),
            gradient_transformers=[hook("t1", lambda g: g + 1.0), hook("t10", lambda g: g + 10.0)],
        )
        optimizer.apply_gradients([(tensor(3), w)], experimental_aggregate_gradients=aggregate)
        found.append([list(seen), w.numpy().tolist()])
    assert found == fact("F058")["result"]


def test_no_pairs_are_no_step() -> None:
    optimizer = SGD(1.0)
    assert [optimizer.apply_gradients([]), int(optimizer.iterations.numpy())] == fact("F059")["result"]


def test_pairs_without_a_gradient_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    a, b, optimizer = variable(0, name="a"), variable(0, name="b"), SGD(1.0, momentum=0.9)
    with caplog.at_level(logging.WARNING):
        optimizer.apply_gradients([(tensor(1), a), (None, b)])
    names = [weight.name for weight in optimizer.weights]
    assert [a.numpy().tolist(), b.numpy().tolist(), int(optimizer.iterations.numpy()), names] == fact("F060")["result"]
    assert "b:0" in caplog.text


def test_a_variable_listed_twice_is_updated_twice() -> None:
    w = variable(0)
    SGD(1.0, momentum=0.5).apply_gradients([(tensor(1), w), (tensor(1), w)])
    assert w.numpy().tolist() == fact("F061")["result"]


def test_what_is_refused_and_with_which_error() -> None:
    optimizer, w = SGD(1.0, momentum=0.9), variable(0, 0)
    optimizer.apply_gradients([(tensor(1, 1), w)])
    count, whole = optimizer.get_weights()[0], tf.Variable(np.array([1]), trainable=True)
    found = [
        outcome(lambda: optimizer.apply_gradients([(None, w)])),
        outcome(lambda: optimizer.minimize(tensor(1), [w])),
        outcome(lambda: optimizer.apply_gradients([(tensor(1), tensor(1))])),
        outcome(lambda: optimizer.minimize(lambda: whole * 2, [whole])),
        outcome(lambda: setattr(optimizer, "iterations", tf.Variable(0))),
        outcome(lambda: optimizer.get_slot(w, "no such slot")),
        outcome(lambda: optimizer.set_weights([count])),
        outcome(lambda: optimizer.set_weights([count, np.zeros(3, np.float32)])),
    ]
    assert found == fact("F062")["result"]


def test_minimize_takes_a_tensor_with_its_tape() -> None:
    x = tf.Variable(3.0)
    with tf.GradientTape() as tape:
        loss = x * x
    SGD(0.1).minimize(loss, [x], tape=tape)
    assert float(x.numpy()) == pytest.approx(fact("F063")["result"])


def test_minimize_starts_from_grad_loss() -> None:
    x = variable(1)
    SGD(0.1).minimize(lambda: x * x, [x], grad_loss=tensor(10))
    np.testing.assert_allclose(x.numpy(), fact("F064")["result"])


def names_of_weights(optimizer: Any) -> list[str]:
    optimizer.build([variable(0, 0, name="a"), tf.Variable(np.zeros((1, 1), np.float32), name="b")])
    return [weight.name for weight in optimizer.weights]


def test_weights_come_in_the_order_of_creation() -> None:
    assert names_of_weights(tf.keras.optimizers.Adam(amsgrad=True)) == fact("F065")["result"]
    found = [names_of_weights(tf.keras.optimizers.Ftrl()), names_of_weights(tf.keras.optimizers.Nadam())]
    assert found == fact("F066")["result"]


def test_a_constraint_follows_a_dense_update_and_refuses_rows() -> None:
    w = variable(3, 4, constraint=lambda value: tf.clip_by_value(value, 0.0, 1.0))
    optimizer = SGD(0.5)
    optimizer.apply_gradients([(tensor(1, 1), w)])
    value = w.numpy().tolist()
    refused = outcome(lambda: optimizer.apply_gradients([(tf.IndexedSlices(tensor(1), [0], (2,)), w)]))
    assert [value, refused] == fact("F050")["result"]
    assert w.numpy().tolist() == value


def test_a_constraint_leaves_slots_alone() -> None:
    w, optimizer = variable(3, -4, constraint=lambda value: tf.maximum(value, 0.0)), SGD(1.0, momentum=0.9)
    found = []
    for _ in range(2):
        optimizer.apply_gradients([(tensor(5, -1), w)])
        found += [w.numpy(), optimizer.get_slot(w, "momentum").numpy()]
    np.testing.assert_allclose(found, np.reshape(fact("F051")["result"], (4, 2)), rtol=1e-6)
