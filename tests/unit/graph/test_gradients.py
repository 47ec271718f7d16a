"""Deferred gradients."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from autograd.extend import defvjp, primitive

from distopt import deferral, ops
from distopt import graph as graphs
from distopt.autodiff.tape import GradientTape
from distopt.graph import functions as tf1
from distopt.graph.session import Run
from distopt.tensor import Tensor, call
from distopt.variable import Variable


@pytest.fixture(autouse=True)
def graph() -> Iterator[graphs.Graph]:
    graph = graphs.Graph()
    with graph.as_default():
        yield graph


@pytest.fixture
def session(graph: graphs.Graph) -> Iterator[graphs.Session]:
    with graphs.Session() as session:
        yield session


def initialized(session: graphs.Session) -> graphs.Session:
    session.run(tf1.global_variables_initializer())
    return session


def test_gradients_of_variables_placeholders_and_tensors_between(session: graphs.Session) -> None:
    weights, rows = Variable([1.0, 2.0]), tf1.placeholder(np.float32, [None, 2])
    products = rows * weights
    loss = ops.reduce_sum(products * products)
    gradients = graphs.gradients(loss, [weights, rows, products])
    found = initialized(session).run(gradients, {rows: [[1, 2], [3, 4]]})
    np.testing.assert_array_equal(found[0], [20, 80])
    np.testing.assert_array_equal(found[1], [[2, 16], [6, 32]])
    np.testing.assert_array_equal(found[2], [[2, 8], [6, 16]])


def test_second_gradients(session: graphs.Session) -> None:
    weights = Variable([1.0, 2.0])
    (first,) = graphs.gradients(ops.reduce_sum(weights * weights * weights), weights)
    (second,) = graphs.gradients(first, [weights])
    np.testing.assert_array_equal(initialized(session).run(second), [6, 12])


def test_gradient_without_a_path_is_none_or_zero() -> None:
    weights, other, steps = Variable([1.0]), Variable([2.0]), Variable([3], trainable=False)
    loss = weights * 2 + ops.floor(other)
    assert graphs.gradients(loss, [other, steps]) == [None, None]
    (zeros,) = graphs.gradients(loss, [other], unconnected_gradients="zero")
    assert isinstance(zeros, Tensor)
    assert zeros.numpy() == [0]


def test_stop_gradients_and_weights_of_the_targets(session: graphs.Session) -> None:
    weights = Variable([1.0, 2.0])
    squares = weights * weights
    (partial,) = graphs.gradients(squares * weights, weights, stop_gradients=[squares])
    (weighed,) = graphs.gradients(squares, weights, grad_ys=np.float32([10, 100]))
    found = initialized(session).run([partial, weighed])
    np.testing.assert_array_equal(found, [[1, 4], [20, 400]])


def test_row_sparse_gradient_is_fetched_as_rows(session: graphs.Session) -> None:
    table = Variable(np.ones((4, 2), np.float32))
    (gradient,) = graphs.gradients(ops.gather(table, [2, 0, 2]), table)
    fetched = initialized(session).run(gradient)
    assert fetched.indices.tolist() == [2, 0, 2]
    assert fetched.dense_shape == (4, 2)
    np.testing.assert_array_equal(initialized(session).run(gradient * 2), [[2, 2], [0, 0], [4, 4], [0, 0]])


def test_loss_fetched_with_its_gradient_is_computed_once(session: graphs.Session) -> None:
    calls: list[str] = []

    @primitive
    def counted(x: np.ndarray) -> np.ndarray:
        calls.append("forward")
        return x * 2

    defvjp(counted, lambda ans, x: lambda g: 2 * g)
    weights = Variable([1.0, 2.0])
    loss = ops.reduce_sum(call(counted, weights))
    gradients = graphs.gradients(loss, [weights])
    initialized(session)
    calls.clear()
    session.run([loss, gradients])
    assert calls == ["forward"]


@pytest.mark.parametrize(("gate", "computed"), [(0, {"a"}), (1, {"a", "b"}), (2, {"a", "b", "c"})])
def test_gate_says_which_gradients_are_computed_before_one_is_used(
    session: graphs.Session, gate: int, computed: set[str]
) -> None:
    a, b, c = (tf1.identity(Variable([value])) for value in (1.0, 2.0, 3.0))
    gradients = graphs.gradients(a * b + c * 3, [a, b, c], gate_gradients=gate)
    run = Run(initialized(session), {})
    run.wanted.add(gradients[0])
    with deferral.evaluate(run):
        run.compute([gradients[0].op])
    found = run.values[gradients[0].op]
    assert {name for name, gradient in zip("abc", found, strict=True) if gradient is not None} == computed


def test_feeding_a_tensor_that_a_gradient_goes_through_is_refused(session: graphs.Session) -> None:
    weights = Variable([1.0])
    doubled = weights * 2
    (gradient,) = graphs.gradients(doubled * doubled, weights)
    with pytest.raises(ValueError, match="was fed a value, but a gradient through it"):
        initialized(session).run(gradient, {doubled: [5.0]})


def test_gradients_where_things_run_eagerly_point_to_the_tape() -> None:
    with tf1.init_scope(), pytest.raises(RuntimeError, match="GradientTape"):
        graphs.gradients(Tensor(1.0), [Tensor(1.0)])


def test_tape_over_deferred_tensors_points_to_gradients() -> None:
    weights = Variable([1.0])
    with GradientTape() as tape:
        loss = weights * weights
    with pytest.raises(RuntimeError, match=r"use tf.compat.v1.gradients"):
        tape.gradient(loss, weights)


def test_source_listed_twice_and_source_that_is_the_target(session: graphs.Session) -> None:
    weights = Variable([3.0])
    doubled = weights * 2
    gradients = graphs.gradients(doubled, [weights, doubled, weights])
    assert initialized(session).run(gradients) == [[2], [1], [2]]
