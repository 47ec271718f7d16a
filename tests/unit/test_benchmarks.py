"""That the contenders of a benchmark compute the same thing; what they cost is measured, never asserted."""

from __future__ import annotations

import numpy as np

import distopt as tf
from benchmarks.train_step import BATCH, ByHand, Data, layers_of, num_parameters, width_for


def test_gradient_by_hand_in_train_step_is_that_of_the_tape() -> None:
    by_hand = ByHand(12, Data(rank=3), in_place=True)
    by_hand.step()
    x, y = Data(rank=3).next()
    variables = [tf.Variable(array) for layer in zip(by_hand.weights, by_hand.biases, strict=True) for array in layer]
    with tf.GradientTape() as tape:
        for weights, bias in zip(variables[:-2:2], variables[1:-2:2], strict=True):
            x = tf.nn.relu(x @ weights + bias)
        logits = x @ variables[-2] + variables[-1]
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=logits)
        loss = tf.nn.compute_average_loss(losses, global_batch_size=BATCH)
    np.testing.assert_allclose(by_hand.loss, loss.numpy(), rtol=1e-5)
    expected = [gradient.numpy() for gradient in tape.gradient(loss, variables)]
    for found, wanted in zip(reversed(by_hand.gradients), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


def test_width_for_so_many_parameters_comes_closest() -> None:
    assert width_for(num_parameters(680)) == 680
    assert num_parameters(2048) == sum(n * m + m for n, m in layers_of(2048)) == 5_824_522
