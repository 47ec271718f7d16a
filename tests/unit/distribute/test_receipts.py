"""Receipts: what a reduction says about itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import distopt as tf
from distopt.aggregation import Aggregator, Mean
from distopt.distribute import MirroredStrategy, Receipt, Strategy
from distopt.testing import run_strategy
from distopt.types import Array


class Largest(Aggregator):
    """Element-wise maximum."""

    name = "tests.largest"

    def combine(self, contributions: Array) -> Array:
        largest: Array = contributions.max(axis=0)
        return largest


def all_reduce(operation: str, value: Any) -> Any:
    context = tf.distribute.get_replica_context()
    assert context is not None
    return context.all_reduce(operation, value)


def one_step(strategy: Strategy, **options: Any) -> tuple[Receipt, ...]:
    w, b = (tf.Variable(np.zeros(n, np.float32), name=name) for n, name in ((3, "w"), (1, "b")))
    optimizer = tf.keras.optimizers.SGD(0.1, **options)
    strategy.run(lambda: optimizer.apply_gradients([(np.ones(3, np.float32), w), (np.ones(1, np.float32), b)]))
    return strategy.extended.last_receipts


@pytest.mark.parametrize("num_replicas", [2, 3, 5])
@pytest.mark.parametrize(
    ("aggregator", "operation", "divides"), [(None, "sum", 0), (Mean(), "mean", 1), (Largest(), "tests.largest", None)]
)
def test_apply_call_leaves_one_receipt(num_replicas: int, aggregator: Any, operation: str, divides: int | None) -> None:
    (receipt,) = one_step(MirroredStrategy(num_replicas), gradient_aggregator=aggregator)
    divisor = None if divides is None else num_replicas**divides
    assert receipt == Receipt(
        what="gradients",
        variables=("w:0", "b:0"),
        participants=tuple(range(num_replicas)),
        operation=operation,
        divisor=divisor,
        weight=None if divisor is None else 1.0 / divisor,
        num_bytes=16 * num_replicas,
        bytes_sent=0,
        bytes_received=0,
        path="1 process",
        step=0,
        skipped=False,
    )


def test_receipt_counts_what_crosses_processes() -> None:
    for (receipt,) in run_strategy(one_step, num_replicas=3, num_workers=2):
        assert receipt.bytes_sent >= 16
        assert receipt.bytes_received >= 16
        assert receipt.path == "all-reduce over 2 processes"
        assert receipt.num_bytes in (16, 32)


def test_values_and_hooks_leave_receipts_in_order() -> None:
    strategy = MirroredStrategy(2)
    w = tf.Variable(np.zeros(2, np.float32))

    def hook(pairs: Any) -> Any:
        return [(all_reduce("MEAN", gradient), variable) for gradient, variable in pairs]

    optimizer = tf.keras.optimizers.SGD(0.1, gradient_aggregator=hook)
    strategy.run(lambda: (all_reduce("SUM", np.float32(1)), optimizer.apply_gradients([(np.ones(2, np.float32), w)])))
    assert [(r.what, r.operation, r.num_bytes, r.step) for r in strategy.extended.last_receipts] == [
        ("value", "sum", 8, None),
        ("value", "mean", 16, None),
    ]


def test_receipts_are_of_the_latest_run_and_observers_see_all() -> None:
    strategy = MirroredStrategy(2)
    seen: list[Receipt] = []
    stop = strategy.extended.observe_reductions(seen.append)
    one_step(strategy)
    one_step(strategy)
    stop()
    assert one_step(strategy) == tuple(seen[:1]) == tuple(seen[1:])
    strategy.run(lambda: None)
    assert strategy.extended.last_receipts == ()


def test_one_replica_reduces_nothing_and_leaves_no_receipt() -> None:
    assert one_step(MirroredStrategy(1)) == ()


def test_row_sparse_gradients_count_the_bytes_of_their_rows() -> None:
    strategy = MirroredStrategy(2)
    w = tf.Variable(np.zeros((4, 2), np.float32))
    optimizer = tf.keras.optimizers.SGD(0.1)
    rows = tf.IndexedSlices(np.ones((1, 2), np.float32), [3], (4, 2))
    strategy.run(lambda: optimizer.apply_gradients([(rows, w)]))
    (receipt,) = strategy.extended.last_receipts
    assert receipt.num_bytes == 2 * (2 * 4 + np.asarray(rows.indices).nbytes)


def test_skipped_step_says_so() -> None:
    strategy = MirroredStrategy(2)
    strategy.extended.checks = tf.distribute.Checks(non_finite="skip")
    w, optimizer = tf.Variable(np.zeros(1, np.float32)), tf.keras.optimizers.SGD(0.1)
    strategy.run(lambda: optimizer.apply_gradients([(np.array([np.nan], np.float32), w)]))
    assert [receipt.skipped for receipt in strategy.extended.last_receipts] == [True]
