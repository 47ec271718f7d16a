"""TensorFlow's side of :mod:`benchmarks.train_step`: ``python tensorflow_peer.py WIDTH BATCH CLIP``, with a TF_CONFIG.

Runs in an environment that has TensorFlow and knows nothing of distopt. Says "done" when it is ready and after each
step; makes a step for each line that it reads.
"""

import sys

import numpy as np
import tensorflow as tf


def main() -> None:
    """Make steps for as long as there is input."""
    width, batch, clip = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    with strategy.scope():
        model = tf.keras.Sequential(
            [
                tf.keras.Input(shape=(784,)),
                tf.keras.layers.Dense(width, activation="relu"),
                tf.keras.layers.Dense(width, activation="relu"),
                tf.keras.layers.Dense(10),
            ]
        )
        optimizer = tf.keras.optimizers.Adam(1e-3, global_clipnorm=clip or None)
    loss_of = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")
    global_batch = batch * strategy.num_replicas_in_sync

    def replica_step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = tf.nn.compute_average_loss(loss_of(y, model(x, training=True)), global_batch_size=global_batch)
        variables = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    @tf.function
    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        return strategy.run(replica_step, args=(x, y))

    rng = np.random.default_rng(strategy.cluster_resolver.task_id)
    x = tf.constant(rng.random((batch, 784), np.float32))
    y = tf.constant(rng.integers(0, 10, batch))
    step(x, y)
    print("done", flush=True)
    for _ in sys.stdin:
        strategy.experimental_local_results(step(x, y))[0].numpy()
        print("done", flush=True)


if __name__ == "__main__":
    main()
