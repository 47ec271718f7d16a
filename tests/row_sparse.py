"""A training trace with row-sparse gradients that differ between replicas, for every place where it may run.

Rows come several times within a replica and on several replicas, magnitudes from 1e-4 to 1e3, so that another order of
additions shows; on some steps a replica has no rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

import distopt as tf
from distopt.aggregation import Mean
from distopt.arena import BLOCK
from distopt.distribute import Strategy
from distopt.types import Array

STEPS = 3
TABLES = ((300, 40), (70, 2, 3), (11,), (33, 4), (34, 4))
"""More than two norm blocks, whose rows owners cut in two; rows that are matrices; of one element; of 16-bit floats."""

DTYPES = (np.dtype(np.float32),) * 3 + (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))

SHARED_ROWS = tuple(BLOCK * i // TABLES[0][1] for i in (1, 2))
"""Rows of the first table that a norm block ends in, where owners may cut."""

DENSE = (37, 5)

keras = tf.keras.optimizers
OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "sgd": lambda: keras.SGD(0.1),
    "momentum": lambda: keras.SGD(0.1, 0.9),
    "adam": lambda: keras.Adam(0.01),
    "adagrad": lambda: keras.Adagrad(0.1),
    "rmsprop": lambda: keras.RMSprop(0.01),
    "nadam": lambda: keras.Nadam(0.01),
    "momentum-mean": lambda: keras.SGD(0.1, 0.9, gradient_aggregator=Mean()),
    "momentum-clipvalue": lambda: keras.SGD(0.1, 0.9, clipvalue=0.5),
    "adagrad-clipnorm": lambda: keras.Adagrad(0.1, clipnorm=0.7),
    "adam-global-clipnorm": lambda: keras.Adam(0.01, global_clipnorm=0.3),
    "momentum-clipvalue-clipnorm-mean": lambda: keras.SGD(
        0.1, 0.9, clipvalue=0.5, clipnorm=0.7, gradient_aggregator=Mean()
    ),
}
HOOKS: dict[str, Callable[[], Any]] = {
    "transformer": lambda: keras.SGD(0.1, 0.9, gradient_transformers=[_halved]),
}
NUMPY_TOO = ("sgd", "adagrad-clipnorm")
"""Run on both engines wherever they run; that all give the same bits on both is tested in one process."""


def _halved(pairs: Any) -> list[tuple[Any, Any]]:
    return [(gradient / 2, variable) for gradient, variable in pairs]


def rows(step: int, replica: int, table: tuple[int, ...], dtype: Any) -> tf.IndexedSlices:
    """Return one replica's gradient of ``table``."""
    rng = np.random.default_rng([step, replica, *table])
    count = 0 if (step + replica) % 4 == 2 else 3 + 2 * replica
    values = rng.standard_normal((count, *table[1:])) * 10.0 ** rng.integers(-4, 4, (count, *[1] * (len(table) - 1)))
    # A third of the rows of a table are asked for; row 1, and one that two owners share, by everyone.
    indices = rng.integers(0, max(2, table[0] // 3), count, np.int32 if replica % 2 else np.int64)
    indices[: count // 2] = 1
    if table is TABLES[0]:
        indices[-2:-1], indices[-1:] = SHARED_ROWS
    if dtype.itemsize == 2:
        values *= 0.01  # so that squares are finite
    return tf.IndexedSlices(values.astype(dtype), indices, table if replica % 3 else None)


def dense(step: int, replica: int) -> Array:
    """Return one replica's gradient of the dense variable."""
    rng = np.random.default_rng([7, step, replica])
    return np.asarray(rng.standard_normal(DENSE) * 10.0 ** rng.integers(-4, 4, DENSE), np.float32)


def trace(
    strategy: Strategy, make: Callable[[], Any], gradients: Callable[[int, int], list[Any]] | None = None
) -> bytes:
    """Return the bytes of variables and slots after some steps."""
    return state(*train(strategy, make, gradients))


def state(variables: list[Any], optimizer: Any) -> bytes:
    """Return the bytes of variables and slots."""
    return b"".join(array.tobytes() for array in (*(v.numpy() for v in variables), *optimizer.get_weights()))


def train(
    strategy: Strategy, make: Callable[[], Any], gradients: Callable[[int, int], list[Any]] | None = None
) -> tuple[list[Any], Any]:
    """Return variables and optimizer after some steps."""
    with strategy.scope():
        variables = fresh_variables()
    optimizer = make()

    def replica_step(step: int) -> None:
        context = tf.distribute.get_replica_context()
        assert context is not None
        replica = context.replica_id_in_sync_group
        given = (gradients or of_step)(step, replica)
        optimizer.apply_gradients(zip(given, variables, strict=True))

    for step in range(STEPS):
        strategy.run(replica_step, args=(step,))
    return variables, optimizer


def fresh_variables() -> list[Any]:
    """Return the tables and the dense variable, before the first step."""
    first, *others = (tf.Variable(np.full(shape, 0.5, dtype)) for shape, dtype in zip(TABLES, DTYPES, strict=True))
    return [first, tf.Variable(np.full(DENSE, 0.5, np.float32)), *others]


def of_step(step: int, replica: int) -> list[Any]:
    """Return one replica's gradients of all variables."""
    first, *others = (rows(step, replica, table, dtype) for table, dtype in zip(TABLES, DTYPES, strict=True))
    return [first, dense(step, replica), *others]


def all_dense(step: int, replica: int) -> list[Any]:
    """Return the same gradients, all of them dense."""
    shapes = (TABLES[0], DENSE, *TABLES[1:])
    return [
        g.with_shape(shape).to_dense() if isinstance(g, tf.IndexedSlices) else g
        for g, shape in zip(of_step(step, replica), shapes, strict=True)
    ]


def rows_later(step: int, replica: int) -> list[Any]:
    """Return gradients that are all dense at first; then the last replica alone, then all have rows."""
    return of_step(step, replica) if step > 1 or (step == 1 and replica == 4) else all_dense(step, replica)


def partly_dense(step: int, replica: int) -> list[Any]:
    """Return gradients of which, in all steps but the last, one replica has that of the first table dense."""
    first, *others = of_step(step, replica)
    if replica == 1 + step and step < STEPS - 1:
        first = np.asarray(tf.IndexedSlices(first.values, first.indices, TABLES[0]).to_dense())
    return [first, *others]
