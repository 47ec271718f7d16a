"""Recorded operations, and what a session makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from distopt import graph as graphs
from distopt import ops
from distopt.errors import UninitializedVariableError
from distopt.graph import functions as tf1
from distopt.tensor import Tensor
from distopt.variable import Variable


@pytest.fixture
def graph() -> Iterator[graphs.Graph]:
    graph = graphs.Graph()
    with graph.as_default():
        yield graph


def run(fetches: Any, feed_dict: Any = None) -> Any:
    with graphs.Session() as session:
        session.run(tf1.global_variables_initializer())
        return session.run(fetches, feed_dict)


def test_operators_on_a_variable_are_recorded_and_computed_by_the_session(graph: graphs.Graph) -> None:
    weights = Variable([1.0, 2.0])
    total = ops.reduce_sum(3 * weights + np.float32(1))
    assert isinstance(total, graphs.Deferred)
    assert (total.shape, total.dtype) == ((), np.float32)
    assert run(total) == 11


def test_run_keeps_the_structure_of_its_fetches(graph: graphs.Graph) -> None:
    weights = Variable([1.0, 2.0])
    fetched = run({"a": [weights, weights * 2], "b": (tf1.no_op(), ops.constant(3))})
    np.testing.assert_array_equal(fetched["a"], [[1, 2], [2, 4]])
    assert fetched["b"] == (None, 3)


def test_placeholder_lengths_that_are_not_known_stay_open(graph: graphs.Graph) -> None:
    rows = tf1.placeholder(np.float32, [None, 2])
    product = ops.matmul(rows, Variable([[1.0], [10.0]]))
    assert product.shape == (None, 1)
    assert tf1.placeholder(np.float32).static_shape is None
    np.testing.assert_array_equal(run(product, {rows: [[1, 2], [3, 4], [5, 6]]}), [[21], [43], [65]])


def test_placeholder_without_a_value_or_with_one_that_does_not_fit_is_refused(graph: graphs.Graph) -> None:
    rows = tf1.placeholder(np.float32, [None, 2], name="rows")
    with pytest.raises(ValueError, match="'rows' needs a value"):
        run(rows * 2)
    with pytest.raises(ValueError, match=r"rows:0 has shape \(None, 2\); a value of shape \(3,\) was fed"):
        run(rows * 2, {rows: [1, 2, 3]})


def test_any_deferred_tensor_can_be_fed_instead_of_computed(graph: graphs.Graph) -> None:
    doubled = Variable(2.0) * 2
    assert run(doubled + 1, {doubled: 10.0}) == 11


def test_shapes_that_do_not_fit_are_an_error_where_the_operation_is_recorded(graph: graphs.Graph) -> None:
    with pytest.raises(ValueError, match=r"Variable:0: float32\[2\]"):
        Variable([1.0, 2.0]) + np.ones(3, np.float32)


def test_variable_without_a_value_is_refused_by_name(graph: graphs.Graph) -> None:
    weights = Variable([1.0], name="weights")
    session = graphs.Session()
    for fetch in (weights, weights * 2, weights.assign_add([1.0])):
        with pytest.raises(UninitializedVariableError, match="'weights:0' has no value in this session"):
            session.run(fetch)


def test_variable_value_ends_with_its_session_and_two_open_ones_are_refused(graph: graphs.Graph) -> None:
    weights = Variable([1.0])
    first, second = graphs.Session(), graphs.Session()
    first.run(weights.initializer)
    first.run(weights.assign([5.0]))
    with pytest.raises(UninitializedVariableError):
        second.run(weights)
    with pytest.raises(RuntimeError, match="another open session"):
        second.run(weights.initializer)
    first.close()
    second.run(weights.initializer)
    assert second.run(weights) == [1.0]


def test_initial_value_may_be_computed_from_another_variable(graph: graphs.Graph) -> None:
    first = Variable([1.0, 2.0])
    second = Variable(first * 10)
    np.testing.assert_array_equal(run(second), [10, 20])


def test_everything_is_computed_before_anything_is_written(graph: graphs.Graph) -> None:
    weights = Variable([1.0, 2.0])
    added = weights.assign_add([10.0, 10.0])
    before, after, also_before = run([weights * 1, added, weights])
    np.testing.assert_array_equal(before, [1, 2])
    np.testing.assert_array_equal(also_before, [1, 2])
    np.testing.assert_array_equal(after, [11, 12])


def test_control_dependency_puts_a_read_after_a_write(graph: graphs.Graph) -> None:
    weights = Variable([1.0])
    with tf1.control_dependencies([weights.assign([7.0])]):
        after = tf1.identity(weights)
    assert run(after) == [7.0]
    assert run(tf1.tuple([weights * 1], control_inputs=[weights.assign([3.0])]))[0].tolist() == [1.0]


def test_group_runs_all_and_operation_run_uses_the_default_session(graph: graphs.Graph) -> None:
    a, b = Variable(1.0), Variable(2.0)
    both = tf1.group(a.assign_add(1.0), [b.assign_sub(1.0)])
    assert both is not None
    with graphs.Session():
        tf1.initialize_all_variables().run()
        both.run()
        assert (a.eval(), (b * 1).eval()) == (2, 1)
    with pytest.raises(ValueError, match="needs a session"):
        both.run()


def test_interactive_session_is_the_default_one_until_it_is_closed(graph: graphs.Graph) -> None:
    weights = Variable(4.0)
    session = graphs.InteractiveSession()
    try:
        weights.initializer.run()
        assert weights.eval() == 4
    finally:
        session.close()
    assert graphs.get_default_session() is None


def test_names_are_unique_and_found_again(graph: graphs.Graph) -> None:
    first, second = Variable(1.0), Variable(2.0)
    assert (first.name, second.name) == ("Variable:0", "Variable_1:0")
    total = first + second
    assert graph.get_tensor_by_name(total.name) is total
    assert run("AddV2:0") == 3
    with graph.name_scope("layer"):
        assert Variable(1.0, name="w").name == "layer/w:0"


def test_collections_hold_the_variables_of_the_graph(graph: graphs.Graph) -> None:
    trained, fixed = Variable(1.0), Variable(2.0, trainable=False)
    assert [id(v) for v in tf1.global_variables()] == [id(trained), id(fixed)]
    assert [id(v) for v in tf1.trainable_variables()] == [id(trained)]


def test_deferred_tensor_has_no_value_outside_of_a_session(graph: graphs.Graph) -> None:
    doubled = Variable([1.0, 2.0]) * 2
    for use in (doubled.numpy, lambda: bool(doubled), lambda: float(doubled), lambda: np.asarray(doubled)):
        with pytest.raises(TypeError, match="no value before a session computes it"):
            use()
    with pytest.raises(TypeError, match="cannot be iterated"):
        list(doubled)


def test_variable_has_no_value_outside_of_a_session_either(graph: graphs.Graph) -> None:
    weights, plain = Variable([1.0, 2.0]), Tensor(np.float32([1, 2]))
    for use in (weights.numpy, lambda: np.asarray(weights), lambda: np.add(plain, weights)):
        with pytest.raises(NotImplementedError, match=r"read by session.run\(variable\)"):
            use()


def test_numpy_functions_are_recorded_too(graph: graphs.Graph) -> None:
    weights = Variable([1.0, 4.0])
    np.testing.assert_array_equal(run([np.sqrt(weights), np.sum(weights * 2)])[0], [1, 2])


def test_switching_eager_execution_off_and_on() -> None:
    assert graphs.executing_eagerly()
    graphs.disable_eager_execution()
    try:
        assert not graphs.executing_eagerly()
        weights = Variable(3.0)
        assert weights.graph is graphs.get_default_graph()
        assert run(weights * 2) == 6
    finally:
        graphs.enable_eager_execution()
        graphs.reset_default_graph()
    assert type(Variable(1.0)) is Variable


def test_eager_variable_is_read_when_the_session_runs(graph: graphs.Graph) -> None:
    with tf1.init_scope():
        rate = Variable(1.0)
    weights = Variable([2.0])
    scaled = weights * 1 * rate
    with graphs.Session() as session:
        session.run(tf1.global_variables_initializer())
        rate.assign(5.0)
        assert session.run(scaled) == [10]


def test_placeholder_where_things_run_eagerly_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match="disable_eager_execution"):
        tf1.placeholder(np.float32)
