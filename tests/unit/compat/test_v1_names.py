"""The names of ``tf.compat.v1``, as a TensorFlow 1 program uses them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import distopt
import distopt.compat.v1 as tf
from distopt.errors import NotOfferedError


@pytest.fixture
def without_eager_execution() -> Iterator[None]:
    tf.disable_eager_execution()
    yield
    tf.enable_eager_execution()
    tf.reset_default_graph()


@pytest.mark.usefixtures("without_eager_execution")
def test_a_program_of_tensorflow_1_trains() -> None:
    generator = np.random.default_rng(5)
    images = generator.standard_normal((60, 4)).astype(np.float32)
    labels = images[:, :3].argmax(axis=1)

    x = tf.placeholder(tf.float32, [None, 4], name="x")
    y = tf.placeholder(tf.int64, [None])
    kernel = tf.Variable(tf.random.normal([4, 3], stddev=0.1, seed=1), name="kernel")
    bias = tf.Variable(tf.zeros([3]), name="bias")
    logits = tf.matmul(x, kernel) + bias
    loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=logits))
    right = tf.reduce_mean(tf.cast(tf.equal(tf.argmax(logits, 1), y), tf.float32))
    global_step = tf.train.get_or_create_global_step()
    rate = tf.train.inverse_time_decay(0.1, global_step, 100, 1.0)
    train_op = tf.train.AdamOptimizer(rate).minimize(loss, global_step=global_step)

    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        feed = {x: images, y: labels}
        first = session.run(loss, feed)
        for _ in range(60):
            session.run(train_op, feed_dict=feed)
        last, accuracy, step = session.run([loss, right, global_step], feed)
    assert last < 0.5 * first
    assert accuracy > 0.9
    assert step == 60


@pytest.mark.usefixtures("without_eager_execution")
def test_random_operation_draws_anew_in_each_run() -> None:
    noise = tf.random.normal([3])
    with tf.Session() as session:
        first, second = session.run(noise), session.run(noise)
    assert first.shape == (3,)
    assert first.tolist() != second.tolist()


def test_functions_that_look_at_values_are_recorded_as_a_whole() -> None:
    with tf.Graph().as_default(), tf.Session() as session:
        table, ids = tf.Variable([[1.0], [2.0], [3.0]]), tf.placeholder(tf.int32, [None])
        picked = tf.gather(table, ids)
        held = tf.stop_gradient(picked) * picked
        gradient = tf.gradients(held, table)[0]
        session.run(tf.global_variables_initializer())
        assert session.run(picked, {ids: [2, 0]}).tolist() == [[3], [1]]
        fetched = session.run(gradient, {ids: [2, 0]})
        assert (fetched.indices.tolist(), fetched.values.tolist()) == ([2, 0], [[3], [1]])


def test_variable_takes_the_arguments_of_tensorflow_1() -> None:
    eager = tf.Variable([1.0], True, None, True, None, "eager", use_resource=True)
    assert type(eager) is distopt.Variable
    assert isinstance(eager, tf.Variable)
    assert not isinstance(tf.constant(1.0), tf.Variable)
    with tf.Graph().as_default() as graph:
        local = tf.Variable([1.0], collections=[tf.GraphKeys.LOCAL_VARIABLES], expected_shape=[1])
        assert isinstance(local, tf.Variable)
        assert graph.get_all_collection_keys() == [tf.GraphKeys.LOCAL_VARIABLES]
        with tf.Session() as session:
            session.run(tf.local_variables_initializer())
            assert session.run(local) == [1]
        with pytest.raises(ValueError, match="shape"):
            tf.Variable([1.0], expected_shape=[2])


def test_every_name_that_is_listed_is_there() -> None:
    for module in (tf, tf.train):
        missing = [name for name in module.__all__ if not hasattr(module, name)]
        assert missing == []


def test_name_that_is_not_offered_says_what_to_use() -> None:
    with pytest.raises(NotOfferedError, match=r"compat.v1.get_variable is not offered by distopt: use Variable"):
        _ = tf.get_variable
    with pytest.raises(NotOfferedError, match=r"fetch the variables in session.run"):
        _ = tf.train.Saver


def test_graphs_are_found_at_the_top_too() -> None:
    with distopt.Graph().as_default():
        weights = distopt.Variable([1.0, 2.0])
        (gradient,) = distopt.gradients(distopt.reduce_sum(weights * weights), [weights])
        with distopt.compat.v1.Session() as session:
            session.run(distopt.compat.v1.global_variables_initializer())
            assert session.run(gradient).tolist() == [2, 4]
