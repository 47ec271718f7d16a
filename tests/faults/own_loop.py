"""A training loop as users write it, on a rank that may be doomed.

``python -m tests.faults.own_loop PLACEMENT DOOMED STATUS [FIFO]``

``DOOMED`` is JSON: by rank, in which step it dies, by SIGKILL, and where: before its gradients are sent or while its
update is written (a moment after its beginning); or in which step it raises an error. Each rank that is left says the
hash of what it has in the end, and what it went on from. Rank 0 ends with ``STATUS``; where that is not 0, the one
other that is left says so when rank 0 is on its way out, of which it hears by ``FIFO``.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np

import distopt as tf
from distopt.elastic import State
from distopt.types import Array

STEPS = 30
REPLICAS = 6
KEEP_EVERY = 4


def end() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def rows(step: int, replica: int) -> tuple[Array, Array]:
    generator = np.random.default_rng([step, replica])
    x = generator.standard_normal((16, 64)).astype(np.float32)
    return x, (x[:, :10] > 0).astype(np.float32)


def train(strategy: Any, state: State) -> str:
    """Train for all steps, from whichever ``state`` has been left by others; return its hash."""
    with strategy.scope():
        tf.random.set_seed(1)
        model = tf.keras.Sequential([tf.keras.layers.Dense(300, "relu"), tf.keras.layers.Dense(10)])
        model.build((None, 64))
        optimizer = tf.keras.optimizers.Adam(1e-3, global_clipnorm=1.0)
    state.follow(optimizer, model)
    say(f"size {strategy.extended.communicator.size} begins at step {state.step}")

    def replica_step(step: int) -> None:
        x, y = rows(step, tf.distribute.get_replica_context().replica_id_in_sync_group)
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum((model(x) - y) ** 2) / (16 * REPLICAS)
        gradients = tape.gradient(loss, model.trainable_variables)
        if own is not None and step == own[0]:
            if own[1] == "before":
                end()
            if own[1] == "raises":
                raise ArithmeticError("the data of this rank are bad")
            threading.Timer(1e-3, end).start()
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

    for step in range(state.step, STEPS):
        strategy.run(replica_step, args=(step,))
        state.commit()
    return state.hash()


def say(line: str) -> None:
    """Write a line at once and whole."""
    os.write(1, f"{line}\n".encode())


if __name__ == "__main__":
    own = json.loads(sys.argv[2]).get(os.environ.get("OMPI_COMM_WORLD_RANK", "0"))
    found = tf.elastic.run(train, replicas=REPLICAS, placement=sys.argv[1], keep_every_steps=KEEP_EVERY, timeout_s=30.0)
    is_first, status = os.environ.get("OMPI_COMM_WORLD_RANK") == "0", int(sys.argv[3])
    if status and not is_first:
        Path(sys.argv[4]).open().close()
    say(f"hash {found}")
    if status and is_first:
        atexit.register(lambda: Path(sys.argv[4]).open("w").close())
        sys.exit(status)
